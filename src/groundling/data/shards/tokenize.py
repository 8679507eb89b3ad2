"""Tokenize a text, shard by shard, into the folder that data/corpus.py describes.

While a text of several shards is prepared, `<folder>.shards/` holds a folder for each shard that is done, complete or
absent like all others. So the same command continues after a kill.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.data.characters import OddCharacters
from groundling.data.documents import Document
from groundling.data.formats import Reading
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.shards.join import join
from groundling.data.shards.plan import Shard, shards_of
from groundling.data.shards.read import Facts, ShardReader, check_unchanged, once, read_all
from groundling.data.sources import Source
from groundling.data.tokenizers.base import Tokenizer, Unknown, UnknownText

_WRITTEN = 2**20  # tokens written at a time, or more


def tokenize(
    source: Source, fingerprint: str, tokenizer: Tokenizer, unknown: Unknown, folder: Path, parts: Path,
    processes: int, notice: Notice, progress: Progress,
) -> None:  # fmt: skip
    """Write the folder. `parts` is one for finished shards. The content does not depend on the number of processes.

    Raises ValueError if the text is empty, was edited since `fingerprint` was taken, or cannot be encoded.
    """
    shards, about, known = shards_of(source, tokenizer.can_be_cut), dict[str, Any](), dict[str, Any]()
    dtype = token_type(tokenizer)
    # An estimate of the bytes to write: a token holds at least one byte of text.
    with (
        storage.readable_errors(folder, source.size * dtype.itemsize),
        storage.new_folder(folder, about, known) as temporary,
    ):
        if len(shards) == 1:
            meter = ProgressMeter(progress, "tokenizing", source.size)
            facts = [write_shard(shards[0], source.reading, tokenizer, unknown, temporary, notice, meter.add)]
            check_unchanged(source, shards, facts, {}, fingerprint)
        else:
            facts = _in_shards(source, shards, fingerprint, tokenizer, unknown, parts, processes, notice, progress)
            known |= join([parts / shard.name for shard in shards], temporary)
            about["parts"] = [each["tokens"] for each in facts if each["tokens"]]
        about |= _described(source, tokenizer, facts)
        tokenizer.save(temporary / "tokenizer.json")
        about |= {"fingerprint": fingerprint, "dtype": dtype.name, "vocab_size": tokenizer.vocab_size}


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def _described(source: Source, tokenizer: Tokenizer, facts: Sequence[Facts]) -> dict[str, Any]:
    """Counts for the manifest. Raises ValueError if there is no text."""
    sums = {name: sum(each[name] for each in facts) for name in ("tokens", "characters", "documents", "units")}
    if sums["characters"] == 0:
        raise ValueError(f"{source.name} is empty: there is no text in it.")
    if sums.pop("units") == (tokenizer.end_of_text_id is not None) * sums["documents"]:  # nothing but document ends
        raise ValueError(f"{source.name} has no character that is in the vocabulary. Use another text.")
    odd = OddCharacters()
    for each in facts:
        odd.merge(each["odd"])
    counts = odd.counts()
    return sums | ({"odd": counts} if counts else {})


def _in_shards(
    source: Source, shards: Sequence[Shard], fingerprint: str, tokenizer: Tokenizer, unknown: Unknown, parts: Path,
    processes: int, notice: Notice, progress: Progress,
) -> list[Facts]:  # fmt: skip
    """Tokenize each shard into a folder in `parts`, unless it was before."""
    storage.make_folder(parts)
    tokenizer.save(parts / "tokenizer.json")
    left = {shard.name: shard.size for shard in shards if not (parts / shard.name).exists()}
    if len(left) < len(shards):
        before = storage.in_bytes(source.size - sum(left.values()))
        notice(f"Continuing: {before} of {storage.in_bytes(source.size)} were tokenized before.")
    meter = ProgressMeter(progress, "tokenizing", sum(left.values()))

    def again(document: Document) -> None:
        with named_errors(document):
            for _ in tokenizer.encode_chunks(document.chunks, unknown):
                pass

    read = partial(_saved, name=source.name, reading=source.reading, unknown=unknown, parts=parts)
    facts, _ = read_all(
        source, shards, fingerprint, read, processes, notice, lambda shard: meter.add(left.get(shard.name, 0)), again
    )
    return facts


def _saved(shard: Shard, name: str, reading: Reading, unknown: Unknown, parts: Path) -> Facts:
    """The facts of a shard, which has a folder in `parts`."""
    tokenizer = _loaded(parts / "tokenizer.json")
    return once(shard, name, parts / shard.name, lambda folder: write_shard(shard, reading, tokenizer, unknown, folder))


@cache
def _loaded(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def write_shard(
    shard: Shard, reading: Reading, tokenizer: Tokenizer, unknown: Unknown, folder: Path,
    notice: Notice | None = None, progress: Callable[[int], None] = silent,
) -> Facts:  # fmt: skip
    """Write the tokens of a shard, and where its documents and files end, counted from its beginning."""
    reader, odd = ShardReader(shard, reading, notice, progress), OddCharacters()
    tokens, file_ends, n_characters = _TokenFiles(folder, tokenizer), array("q"), 0
    start = np.array(tokenizer.start_ids, np.uint32)
    end = np.array([] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id], np.uint32)

    def read(chunks: Iterable[str]) -> Iterator[str]:
        nonlocal n_characters
        for chunk in chunks:
            n_characters += len(chunk)
            odd.add(chunk)
            yield chunk

    for file in reader.files:
        for document in reader.documents(file):
            position = 0 if document.starts else 1
            with named_errors(document):
                encoded = tokenizer.encode_chunks(read(document.chunks), unknown, position)
                for ids in itertools.chain([start] if document.starts else [], encoded):
                    tokens.write(ids)
            if document.ends:
                tokens.write(end)
                tokens.end_document()
        if file.stop is None:
            file_ends.append(tokens.n_documents)
    tokens.flush()
    if list(file_ends) != list(range(1, tokens.n_documents + 1)):
        storage.disk.write(folder / "files.bin", file_ends.tobytes())
    counts = {"tokens": tokens.n_tokens, "characters": n_characters, "documents": tokens.n_documents}
    return counts | {"units": tokens.n_units, "odd": odd.state()} | reader.facts


@contextmanager
def named_errors(document: Document) -> Iterator[None]:
    try:
        yield
    except UnknownText as error:
        raise UnknownText(f"{document.name}: {error}") from None


class _TokenFiles:
    """Writes `tokens.bin`, `documents.bin` and `places.bin`. Pieces are collected: a document may be a few tokens."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder, self._dtype = folder, token_type(tokenizer)
        units = tokenizer.sizes[1].copy()  # characters and document ends of each token
        if tokenizer.end_of_text_id is not None:
            units[tokenizer.end_of_text_id] = 1
        self._units = units.astype(np.min_scalar_type(units.max()))
        self._pieces, self._ends, self._document_ends = list[npt.NDArray[np.uint32]](), array("q"), array("q")
        self._places = np.zeros((1, 2), np.int64)  # a pair after each piece
        self._n_written = self.n_tokens = self.n_units = self.n_documents = 0

    def write(self, ids: npt.NDArray[np.uint32]) -> None:
        if len(ids) == 0:
            return
        self._pieces.append(ids)
        self.n_tokens += len(ids)
        self._ends.append(self.n_tokens - self._n_written)
        if self._ends[-1] >= _WRITTEN:
            self.flush()

    def end_document(self) -> None:
        self._document_ends.append(self.n_tokens)
        self.n_documents += 1

    def flush(self) -> None:
        """Write what was collected."""
        if self._pieces:
            ids, ends = np.concatenate(self._pieces), np.array(self._ends)
            self._append("tokens", ids.astype(self._dtype))
            # Adding up the units between the ends is several times faster than their cumulative sum.
            counted = np.add.reduceat(self._units[ids], np.pad(ends, (1, 0))[:-1], dtype=np.int64).cumsum()
            pairs = np.stack([self._n_written + ends, self.n_units + counted], axis=1)
            self._places = np.concatenate([self._places, pairs])
            self._n_written, self.n_units = self.n_tokens, self.n_units + int(counted[-1])
            self._pieces.clear()
            del self._ends[:]
        self._append("places", self._places)
        self._append("documents", np.array(self._document_ends, np.int64))
        self._places = np.empty((0, 2), np.int64)
        del self._document_ends[:]

    def _append(self, name: str, numbers: npt.NDArray[Any]) -> None:
        if len(numbers):
            storage.disk.write(self._folder / f"{name}.bin", numbers.tobytes())
