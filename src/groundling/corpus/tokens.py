"""Token files: the corpus as ids on the disk, memory-mapped, prepared once and reused.

A prepared corpus is a folder in the cache, named by what went into it (the text's fingerprint and the
tokenizer), with a manifest of hashes and counts:

    tokens.bin       ids, 16 or 32 bits each as the vocabulary needs, document after document
    documents.bin    where each document ends in tokens.bin, 64 bits each
    tokenizer.json
    manifest.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from groundling import storage
from groundling.config import CorpusSettings
from groundling.corpus.sources import Source, find_source, read_bytes, read_text
from groundling.corpus.tokenizer import CharTokenizer, Tokenizer, Unknown

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many bytes."""
Notice = Callable[[str], None]
"""Told a sentence that the user should see."""


def _silent(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Tokens:
    """A range [start, stop) of a token file.

    The file is mapped anew for every access: pages that a long-lived mapping has touched count as this
    process's memory until it ends, and a shuffled pass touches them all.
    """

    path: Path
    dtype: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Ids at `starts[i] ... starts[i] + length - 1`, shape (len(starts), length), int64."""
        assert starts.min() >= 0 and starts.max() + length <= len(self)
        file = np.memmap(self.path, dtype=self.dtype, mode="r")
        return file[(self.start + starts)[:, None] + np.arange(length)].astype(np.int64)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids [start, stop) of this range, shape (stop - start,)."""
        return self.windows(np.array([start]), stop - start)[0]


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, in two parts: `train`, and `validation`, its end."""

    name: str
    address: str
    fingerprint: str
    """SHA-256 of the documents' bytes: equal where the text is equal, whatever the files are called."""
    tokenizer: Tokenizer
    train: Tokens
    validation: Tokens
    n_documents: int
    n_characters: int

    @property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """Where each document ends, its end mark included, in tokens from the text's beginning: (n_documents,)."""
        return np.fromfile(self.train.path.with_name("documents.bin"), dtype=np.int64)

    @staticmethod
    def open(corpus: str, settings: CorpusSettings = CorpusSettings()) -> Corpus:  # noqa: B008  (frozen)
        """Find the text, tokenize it (or reuse what was prepared before) and split it."""
        return prepare(find_source(corpus, settings.glob), settings)


def prepare(
    source: Source,
    settings: CorpusSettings,
    *,
    tokenizer: Tokenizer | None = None,
    unknown: Unknown = "error",
    notice: Notice = _silent,
    progress: Progress = _silent,
) -> Corpus:
    """Tokenize `source`, or find it tokenized already. Without a `tokenizer`, one is made from the text.

    Raises ValueError with a sentence for the user if the text is empty, undecodable or not expressible.
    """
    for sentence in source.notices:
        notice(sentence)
    fingerprint = _fingerprint(source, progress)
    folder = _home(fingerprint, tokenizer.fingerprint if tokenizer else settings.tokenizer, unknown)
    if not _is_prepared(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # two runs may begin on the same new text at once
            if not _is_prepared(folder):
                storage.remove_folder(folder)
                storage.sweep(folder.parent, folder.name)
                if tokenizer is None:
                    tokenizer = _fit(source, notice, progress)
                    notice = _silent  # the same text is read again
                _tokenize(source, fingerprint, tokenizer, unknown, folder, notice, progress)
    return _open(folder, source.name, source.address, settings)


def reopen(fingerprint: str, name: str, address: str, tokenizer: Tokenizer, settings: CorpusSettings) -> Corpus | None:
    """A corpus whose text is gone, if it is still in the cache as a run of this tokenizer prepared it."""
    folder = _home(fingerprint, settings.tokenizer, "error")
    if not _is_prepared(folder) or Tokenizer.load(folder / "tokenizer.json") != tokenizer:
        return None
    return _open(folder, name, address, settings)


class _Meter:
    """Counts bytes towards a progress display."""

    def __init__(self, progress: Progress, doing: str, total: int) -> None:
        self._progress, self._doing, self._total, self._done = progress, doing, total, 0

    def add(self, n: int) -> None:
        # A compressed file gives more bytes than lie on the disk.
        self._done = min(self._done + n, self._total)
        self._progress(self._doing, self._done, self._total)


def _fingerprint(source: Source, progress: Progress) -> str:
    meter, whole = _Meter(progress, "checking", source.size), hashlib.sha256()
    for document in source.documents:
        digest = hashlib.sha256()
        for chunk in read_bytes(document):
            digest.update(chunk)
            meter.add(len(chunk))
        whole.update(digest.digest())
    return whole.hexdigest()


def _home(fingerprint: str, tokenizer: str, unknown: Unknown) -> Path:
    key = json.dumps({"version": 1, "text": fingerprint, "tokenizer": tokenizer, "unknown": unknown})
    return storage.cache_folder() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:24]


def _is_prepared(folder: Path) -> bool:
    """Whether it is there and whole. The sizes of its files are checked, not their hashes: they may be large."""
    try:
        storage.read_manifest(folder)
        Tokenizer.load(folder / "tokenizer.json")
    except ValueError:
        return False
    return True


def _fit(source: Source, notice: Notice, progress: Progress) -> Tokenizer:
    meter = _Meter(progress, "reading", source.size)

    def chunks() -> Iterator[str]:
        for document in source.documents:
            yield from read_text(document, notice, meter.add)

    return CharTokenizer.fit(chunks(), end_of_text=len(source.documents) > 1)


def _tokenize(
    source: Source, fingerprint: str, tokenizer: Tokenizer, unknown: Unknown, folder: Path,
    notice: Notice, progress: Progress,
) -> None:  # fmt: skip
    """Write the folder described at the top of this file."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    meter, about, ends = _Meter(progress, "tokenizing", source.size), dict[str, Any](), list[int]()
    n_tokens = n_characters = 0
    with storage.new_folder(folder, about) as temporary:
        with (temporary / "tokens.bin").open("wb") as file:
            for document in source.documents:
                position = 0
                for chunk in read_text(document, notice, meter.add):
                    try:
                        ids = tokenizer.encode_array(chunk, unknown, offset=position)
                    except ValueError as error:
                        raise ValueError(f"{document.name}: {error}") from None
                    ids.astype(dtype).tofile(file)
                    n_tokens, position = n_tokens + len(ids), position + len(chunk)
                if tokenizer.end_of_text_id is not None:
                    np.array([tokenizer.end_of_text_id], dtype).tofile(file)
                    n_tokens += 1
                n_characters += position
                ends.append(n_tokens)
        if n_characters == 0:
            raise ValueError(f"{source.name} is empty: there is no text in it.")
        if n_tokens == 0:
            raise ValueError(f"{source.name} has no character that this model knows.")
        np.array(ends, dtype=np.int64).tofile(temporary / "documents.bin")
        tokenizer.save(temporary / "tokenizer.json")
        about |= {
            "fingerprint": fingerprint,
            "dtype": dtype.name,
            "tokens": n_tokens,
            "characters": n_characters,
            "documents": len(ends),
            "vocab_size": tokenizer.vocab_size,
        }


def _open(folder: Path, name: str, address: str, settings: CorpusSettings) -> Corpus:
    about = storage.read_manifest(folder)
    ends = np.memmap(folder / "documents.bin", dtype=np.int64, mode="r")
    border = _border(ends, about["tokens"], settings.val_fraction)
    path, dtype = folder / "tokens.bin", about["dtype"]
    return Corpus(
        name=name,
        address=address,
        fingerprint=about["fingerprint"],
        tokenizer=Tokenizer.load(folder / "tokenizer.json"),
        train=Tokens(path, dtype, 0, border),
        validation=Tokens(path, dtype, border, about["tokens"]),
        n_documents=about["documents"],
        n_characters=about["characters"],
    )


def _border(ends: npt.NDArray[np.int64], total: int, val_fraction: float) -> int:
    """Where the validation part begins: at the document border nearest to its share of the text.

    A border that would make the validation part less than half or more than twice its share is not
    used: the text is then cut inside a document, as it is where there is only one.
    """
    cut = int((1 - val_fraction) * total)
    near = np.searchsorted(ends, cut)
    candidates = [int(end) for end in ends[max(near - 1, 0) : near + 1]]
    border = min(candidates, key=lambda end: abs(end - cut), default=cut)
    return border if 0.5 <= (total - border) / max(total - cut, 1) <= 2 and border > 0 else cut
