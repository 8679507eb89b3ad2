"""One real server for all tests of the API, with two small models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asked import TINY, Server, serving
from openai import OpenAI

import groundling
from groundling.run.run import Run
from groundling.web.loaded_model import LoadedModel, open_runs


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, prose: str) -> list[Run]:
    """A character-level model of one text, and a byte-level model of several documents."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "letters.txt").write_text(prose, encoding="utf-8")
    (folder / "poems").mkdir()
    for i, line in enumerate(["Über allen Gipfeln ist Ruh, ", "行く水の流れは絶えずして ", "🌒🌓🌔🌕 "]):
        (folder / "poems" / f"{i}.txt").write_text(line * 40, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        letters = groundling.train(folder / "letters.txt", name="letters", out=folder / "runs", **TINY)
        poems = groundling.train(
            folder / "poems", name="poems", out=folder / "runs", **TINY | {"tokenizer": "byte", "steps": 120}
        )
    return [letters, poems]


@pytest.fixture(scope="session")
def models(trained: list[Run]) -> list[LoadedModel]:
    return open_runs(trained)


@pytest.fixture(scope="session")
def shared_server(models: list[LoadedModel]) -> Iterator[Server]:
    with serving(models) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The server that all tests share. Checks after each test that it is idle and healthy."""
    yield shared_server
    shared_server.is_well()


@pytest.fixture
def openai(server: Server) -> OpenAI:
    return server.client()
