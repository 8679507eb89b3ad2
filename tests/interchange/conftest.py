"""Two tiny runs, trained once: characters of several scripts in the modern family, BPE in GPT-2's."""

from __future__ import annotations

import pytest
from small import MODERN, trained

from groundling.run.run import Run


@pytest.fixture(scope="session")
def characters(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Run:
    """Of one document, so that no token ends a text; with characters of one to four bytes that share their first."""
    text = "".join(f"{line}\n — “é”, ß; ’tis ‘語’\t語誤 😀🙂\r\n" for line in prose[:12_000].split("\n"))
    return trained(tmp_path_factory.mktemp("characters"), text, n_head=4, n_kv_head=2, head_size=10, **MODERN)


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Run:
    return trained(tmp_path_factory.mktemp("pieces"), prose, tokenizer="bpe", vocab_size=400, tie_head=False)
