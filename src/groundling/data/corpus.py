"""A corpus as token ids on the disk: tokenized once, cached, and memory-mapped.

A tokenized corpus is a folder in the cache, named by a hash of the text's fingerprint and the tokenizer:

    tokens.bin       ids of all documents in order, 16 bits each, or 32 if the vocabulary needs them
    documents.bin    the end of each document in tokens.bin, 64 bits each
    places.bin       pairs of 64 bits: the first N tokens hold M characters and document ends
    tokenizer.json
    manifest.json    hashes of these files, and counts
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data.fingerprint import fingerprint_of
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.sources import Document, HashingSource, Source, find_source, read_text
from groundling.data.split import split_point
from groundling.data.tokenizers.base import Tokenizer, Unknown, UnknownText
from groundling.data.tokenizers.train import fit_tokenizer
from groundling.storage.safe_read import LARGEST_TOKENIZER

_PIECE = 4 * 2**20  # tokens searched at a time


@dataclass(frozen=True)
class Tokens:
    """A range [start, stop) of a token file.

    Every access maps the file again: the pages that a mapping has touched count as this process's memory while it
    lives, and a shuffled epoch touches all of them.
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
    """A tokenized text, split into `train` and `validation`, its end."""

    name: str
    address: str
    fingerprint: str
    """SHA-256 of the documents' bytes. File names do not change it."""
    tokenizer: Tokenizer
    train: Tokens
    validation: Tokens
    n_documents: int
    n_characters: int

    @property
    def n_eos(self) -> int:
        """Number of tokens that end a document and have no text."""
        return 0 if self.tokenizer.end_of_text_id is None else self.n_documents

    @property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """End of each document in tokens from the start of the text, its end token included: (n_documents,)."""
        return np.fromfile(self.train.path.with_name("documents.bin"), dtype=np.int64)

    @staticmethod
    def open(corpus: str, settings: CorpusSettings = CorpusSettings()) -> Corpus:  # noqa: B008  (frozen)
        """Find the text, tokenize it (or reuse it from the cache) and split it."""
        return prepare(find_source(corpus, settings.glob), settings)


def prepare(
    source: Source,
    settings: CorpusSettings,
    *,
    tokenizer: Tokenizer | None = None,
    fingerprint: str | None = None,
    unknown: Unknown = "error",
    notice: Notice = silent,
    progress: Progress = silent,
) -> Corpus:
    """Tokenize `source`, or reuse it from the cache. Without `tokenizer`, use the one from the settings.

    `fingerprint` is the text's, if you have it from `fingerprint_of`; otherwise the text is hashed first.
    Raises ValueError with a sentence for the user if the text is empty, or cannot be decoded or encoded.
    """
    notice = cache(notice)  # without repetition: the text may be read several times
    for sentence in source.notices:
        notice(sentence)
    fingerprint = fingerprint or fingerprint_of(source, progress).fingerprint
    if tokenizer is None:
        tokenizer = _tokenizer_of(source, fingerprint, settings, notice, progress)
    folder = _token_folder(fingerprint, tokenizer, unknown)
    if not _is_prepared(folder):
        storage.make_folder(folder.parent)
        with FileLock(folder.with_suffix(".lock")):  # two runs may start on the same new text at once
            if not _is_prepared(folder, lambda fault: notice(f"{fault} Tokenizing the text again.")):
                storage.remove_folder(folder)
                storage.remove_temporary(folder.parent, folder.name)
                _tokenize(source, fingerprint, tokenizer, unknown, folder, notice, progress)
    return _open(folder, source.name, source.address, settings)


def reopen(
    fingerprint: str, name: str, address: str, tokenizer: Tokenizer, settings: CorpusSettings, notice: Notice = silent
) -> Corpus | None:
    """The corpus from the cache, if it is still there, without reading the text: for a text that is gone."""
    folder = _token_folder(fingerprint, tokenizer, "error")
    return _open(folder, name, address, settings) if _is_prepared(folder, notice) else None


def _tokenizer_of(
    source: Source, fingerprint: str, settings: CorpusSettings, notice: Notice, progress: Progress
) -> Tokenizer:
    """The tokenizer from the settings, fitted to this text once and then cached."""
    if settings.tokenizer not in ("char", "bpe"):
        return fit_tokenizer(source, settings, notice, progress)  # nothing to fit, so nothing to cache
    key: dict[str, Any] = {"version": 2, "text": fingerprint, "tokenizer": settings.tokenizer}
    if settings.tokenizer == "bpe":
        key |= {"vocab_size": settings.vocab_size, "val_fraction": settings.val_fraction}
    path = storage.cache_folder() / "tokenizers" / f"{_short_hash(key)}.json"
    storage.make_folder(path.parent)
    with FileLock(path.with_suffix(".lock")):
        try:
            return Tokenizer.of(storage.read_checksummed(path, LARGEST_TOKENIZER), path)
        except (FileNotFoundError, ValueError):
            reading = HashingSource(source)
            tokenizer = fit_tokenizer(reading.source, settings, notice, progress)
            reading.check(fingerprint)
            storage.remove_temporary(path.parent, path.name)
            storage.write_checksummed(path, tokenizer.to_dict())
            return tokenizer


def _token_folder(fingerprint: str, tokenizer: Tokenizer, unknown: Unknown) -> Path:
    key = {"version": 3, "text": fingerprint, "tokenizer": tokenizer.fingerprint, "unknown": unknown}
    return storage.cache_folder() / "tokens" / _short_hash(key)


def _short_hash(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]


def _is_prepared(folder: Path, notice: Notice = silent) -> bool:
    """Whether the folder exists and is undamaged. Hashes its files, once per process."""
    try:
        if folder.exists():
            storage.verify_once(folder)
            return True
    except (ValueError, OSError) as error:
        notice(f"Cached tokens are unusable: {error}")
    return False


def _tokenize(
    source: Source, fingerprint: str, tokenizer: Tokenizer, unknown: Unknown, folder: Path,
    notice: Notice, progress: Progress,
) -> None:  # fmt: skip
    """Write the folder described at the top of this file."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    meter, reading = ProgressMeter(progress, "tokenizing", source.size), HashingSource(source)
    about, document_ends, places = dict[str, Any](), list[int](), [(0, 0)]
    n_tokens = n_units = n_characters = 0
    end = [] if tokenizer.end_of_text_id is None else [np.array([tokenizer.end_of_text_id], np.uint32)]
    units = tokenizer.sizes[1].copy()  # characters and document ends of each token
    units[end] = 1

    def read(document: Document) -> Iterator[str]:
        nonlocal n_characters
        for chunk in read_text(document, notice, meter.add):
            n_characters += len(chunk)
            yield chunk

    # An estimate of the bytes to write: a token holds at least one byte of text.
    with storage.readable_errors(folder, source.size * dtype.itemsize), storage.new_folder(folder, about) as temporary:
        for document in reading.source.documents:
            try:
                for ids in itertools.chain(tokenizer.encode_chunks(read(document), unknown), end):
                    storage.disk.write(temporary / "tokens.bin", ids.astype(dtype).tobytes())
                    n_tokens, n_units = n_tokens + len(ids), n_units + int(units[ids].sum())
                    places.append((n_tokens, n_units))
            except UnknownText as error:
                raise UnknownText(f"{document.name}: {error}") from None
            document_ends.append(n_tokens)
        reading.check(fingerprint)
        if n_characters == 0:
            raise ValueError(f"{source.name} is empty: there is no text in it.")
        if n_units == len(end) * len(document_ends):  # nothing but document ends
            raise ValueError(f"{source.name} has no character that is in the vocabulary. Use another text.")
        storage.disk.write(temporary / "documents.bin", np.array(document_ends, dtype=np.int64).tobytes())
        storage.disk.write(temporary / "places.bin", np.array(places, dtype=np.int64).tobytes())
        tokenizer.save(temporary / "tokenizer.json")
        about |= {
            "fingerprint": fingerprint, "dtype": dtype.name, "tokens": n_tokens, "characters": n_characters,
            "documents": len(document_ends), "vocab_size": tokenizer.vocab_size,
        }  # fmt: skip


def _open(folder: Path, name: str, address: str, settings: CorpusSettings) -> Corpus:
    about = _checked_manifest(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    whole = Tokens(folder / "tokens.bin", about["dtype"], 0, about["tokens"])
    cut = _validation_start(folder, whole, tokenizer, settings.val_fraction)
    train, validation = dataclasses.replace(whole, stop=cut), dataclasses.replace(whole, start=cut)
    return Corpus(
        name, address, about["fingerprint"], tokenizer, train, validation, about["documents"], about["characters"]
    )


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's entries about the corpus. Raises ValueError if the files do not fit them."""
    about = storage.read_manifest(folder)
    counts: list[Any] = [about.get(name) for name in ("tokens", "documents", "characters")]
    files = {name: (folder / f"{name}.bin") for name in ("tokens", "documents", "places")}
    if (
        about.get("dtype") not in ("uint16", "uint32")
        or not all(type(count) is int and count > 0 for count in counts)
        or not isinstance(about.get("fingerprint"), str)
        or not all(file.is_file() for file in files.values())
        or files["tokens"].stat().st_size != counts[0] * np.dtype(about["dtype"]).itemsize
        or files["documents"].stat().st_size != 8 * counts[1]
        or files["places"].stat().st_size % 16
    ):
        raise ValueError(f"{folder} is damaged: its manifest does not match its files.")
    return about


def _rises(numbers: npt.NDArray[np.int64], end: int | None = None) -> bool:
    rises = len(numbers) > 0 and numbers[0] >= 0 and bool((np.diff(numbers) >= 0).all())
    return rises and end in (None, int(numbers[-1]))


def _validation_start(folder: Path, whole: Tokens, tokenizer: Tokenizer, val_fraction: float) -> int:
    """The first token of the validation part. It starts at the same character for every tokenizer, or at the first
    token after that, so that results with different tokenizers are about the same text."""
    ends = np.memmap(folder / "documents.bin", dtype=np.int64, mode="r")
    tokens, units = np.fromfile(folder / "places.bin", dtype=np.int64).reshape(-1, 2).T
    if not (_rises(ends, len(whole)) and _rises(tokens, len(whole)) and _rises(units)):
        raise ValueError(f"{folder} is damaged: places.bin or documents.bin does not match its tokens.")
    wanted = split_point(units[np.searchsorted(tokens, ends)], int(units[-1]), val_fraction)
    before = int(np.searchsorted(units, wanted, side="right")) - 1
    cut, missing = int(tokens[before]), wanted - int(units[before])
    if missing == 0:
        return cut
    continues = np.array([b"\x80" <= piece[:1] < b"\xc0" for piece in tokenizer.pieces])  # inside a character
    while cut < len(whole):
        ids = whole.read(cut, min(cut + _PIECE, len(whole)))
        if ids.max() >= tokenizer.vocab_size:
            raise ValueError(f"{folder} is damaged: it has token ids outside its tokenizer's vocabulary.")
        characters = tokenizer.sizes[1][ids]
        counted = characters.cumsum()
        possible = (counted - characters >= missing) & ~continues[ids]
        if possible.any():
            return cut + int(possible.argmax())
        cut, missing = cut + len(ids), missing - int(counted[-1])
    return cut
