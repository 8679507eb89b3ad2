"""What a fuzzer calls: bytes into whatever reads a stranger's file. `atheris_run.py` is the fuzzer, and
`test_crashers.py` tries what it once found."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from groundling import storage
from groundling.course.submission import SUBMISSION, read
from groundling.data import corpus as tokens
from groundling.data.tokenizers.base import Tokenizer
from groundling.model.tensor_file import shard_path
from groundling.model.weights_file import read_shapes
from groundling.run.metrics_log import read_history, read_result
from groundling.run.record import RunRecord
from groundling.storage import safe_read
from groundling.training.checkpoints import Checkpoints
from groundling.training.state import read_state

_ROOM = tempfile.TemporaryDirectory(prefix="groundling-fuzz-")  # deleted at the end of the process
ROOM = Path(_ROOM.name)


def manifest(content: bytes) -> None:
    folder = ROOM / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / "tokens.bin").write_bytes(b"0" * 6)
    (folder / storage.MANIFEST).write_bytes(content)
    storage.verify(folder)


def shard(content: bytes) -> None:
    """A prepared corpus: its manifest, the documents' ends, places, and tokens."""
    folder = ROOM / "shard"
    folder.mkdir(exist_ok=True)
    about, ends, places, ids = [*content.split(b"\n", 3), b"", b"", b""][:4]
    (folder / "tokenizer.json").write_text('{"kind": "char", "version": 1, "characters": "ab", "special_tokens": {}}')
    for name, part in (("documents.bin", ends), ("places.bin", places), ("tokens.bin", ids)):
        (folder / name).write_bytes(part)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": storage.sha256(p)}
             for p in folder.iterdir() if p.name != storage.MANIFEST}  # fmt: skip
    value = safe_read.parse(about, "the manifest")
    storage.write_checksummed(folder / storage.MANIFEST, {"about": value, "files": files})
    opened = tokens._open(folder, "a text", tokens.CorpusSettings())
    if len(opened.train):
        opened.train.read(0, min(8, len(opened.train)))


def config(content: bytes) -> None:
    RunRecord.read(safe_read.parse(content, "config.json"), "config.json")


def tokenizer(content: bytes) -> None:
    file = ROOM / "tokenizer.json"
    file.write_bytes(content)
    found = Tokenizer.load(file)
    found.decode(found.encode("a text, and one more.", "skip"))


def state(content: bytes) -> None:
    (ROOM / "state.json").write_bytes(content)
    read_state(ROOM)


def pointer(content: bytes) -> None:
    (ROOM / "best.json").write_bytes(content)
    found = Checkpoints(ROOM).pointed("best")
    assert found is None or found.parent == ROOM


def history(content: bytes) -> None:
    (ROOM / "metrics.jsonl").write_bytes(content)
    read_history(ROOM / "metrics.jsonl")


def result(content: bytes) -> None:
    (ROOM / "result.json").write_bytes(content)
    read_result(ROOM / "result.json")


def header(content: bytes) -> None:
    """A safetensors file whose header's length is right."""
    (ROOM / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + np.zeros(8, "u1").tobytes())
    read_shapes(ROOM / "model.safetensors")


def weights(content: bytes) -> None:
    (ROOM / "model.safetensors").write_bytes(content)
    read_shapes(ROOM / "model.safetensors")


def sharding(content: bytes) -> None:
    """What two shards say of where their slices belong, one a line."""
    folder = ROOM / "sharding"
    folder.mkdir(exist_ok=True)
    for number, line in enumerate([*content.split(b"\n", 1), b""][:2], start=1):
        tensors = {"a": np.zeros((2, 3), "f4"), f"b{number}": np.zeros(3, "f4")}
        path = shard_path(folder / "model.safetensors", number, 2)
        save_file(tensors, path, {"DCP_SHARDING_INFO": line.decode(errors="replace")})
    read_shapes(folder / "model.safetensors")


def submission(content: bytes) -> None:
    folder = ROOM / "submission"
    folder.mkdir(exist_ok=True)
    (folder / SUBMISSION).write_bytes(content)
    read(folder)


READERS: tuple[Callable[[bytes], None], ...] = (
    manifest, shard, config, tokenizer, state, pointer, history, result, header, weights, sharding,
    submission,
)  # fmt: skip


def one_input(content: bytes) -> None:
    """The first byte chooses who reads the others. A ValueError of one line is an answer; all else is a crash."""
    if not content:
        return
    try:
        READERS[content[0] % len(READERS)](content[1:])
    except (ValueError, FileNotFoundError) as error:
        if not 0 < len(str(error)) < 2000:
            raise AssertionError(f"an error must be a sentence: {error!r:.300}") from error
