"""A corpus in shards that is killed at any operation of the disk is the same in the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import forked
from disks import Killing, Logging

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data.corpus import prepare
from groundling.data.shards import plan
from groundling.data.sources import find_source

CHOSEN = CorpusSettings(deduplicate=True)


def prepared(text: Path, cache: Path, disk: storage.Disk, patch: pytest.MonkeyPatch) -> str:
    """Prepare the text: the hash of all files that came of it."""
    patch.setenv("GROUNDLING_CACHE", str(cache))
    patch.setattr(storage, "disk", disk)
    folder = prepare(find_source(text), CHOSEN, processes=1).train.path.parent
    assert storage.verify(folder) and not list(cache.glob("*/*.shards"))
    assert not list(cache.rglob(".tmp-*"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


def test_any_kill_gives_the_same(write: Callable[..., Path], prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD", 3000)
    write("folder/a.txt", prose[:7000])
    path = write("folder/b.txt", prose[3000:10_000]).parent
    logging = Logging()
    expected = prepared(path, Path("undisturbed"), logging, monkeypatch)
    assert len(list(Path("undisturbed").glob("tokens/*/tokens-*.bin"))) == 2
    n = len(logging.log)
    assert n > 60
    for at in range(1, n + 1, 5):
        cache = Path(f"killed-{at}")
        signal, answer = forked(lambda: prepared(path, cache, Killing(at, midway=at % 2 == 0), monkeypatch))  # noqa: B023
        assert signal == 9, answer
        assert prepared(path, cache, storage.Disk(), monkeypatch) == expected, at
