"""A corpus as token ids on the disk: tokenized once, cached, and memory-mapped.

A tokenized corpus is a folder in the cache, named by a hash of the text's fingerprint and the tokenizer:

    tokens.bin       ids of all documents in order, 16 bits each, or 32 if the vocabulary needs them
    documents.bin    the end of each document in tokens.bin, 64 bits each
    files.bin        how many documents end up to the end of each file, 64 bits each; none if each file is one document
    places.bin       pairs of 64 bits: the first N tokens hold M characters and document ends
    tokenizer.json
    manifest.json    hashes of these files, and counts
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data.characters import OddCharacters
from groundling.data.fingerprint import fingerprint_of
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.sources import CorpusPath, HashingSource, Source, find_source
from groundling.data.split import split_point
from groundling.data.tokenizers.base import Tokenizer, Unknown, UnknownText
from groundling.data.tokenizers.train import fit_tokenizer
from groundling.data.tokens import Tokens
from groundling.storage.safe_read import LARGEST_TOKENIZER

_PIECE = 4 * 2**20  # tokens searched at a time
_WRITTEN = 2**20  # tokens written at a time, or more


@dataclass(frozen=True)
class Corpus:
    """A tokenized text, split into `train` and `validation`, its end."""

    name: str
    fingerprint: str
    """SHA-256 of the files' bytes and formats. File names do not change it."""
    tokenizer: Tokenizer
    train: Tokens
    validation: Tokens
    n_documents: int
    n_characters: int
    odd: Mapping[str, int] = field(default_factory=dict)
    """Characters that are probably accidents: see data/characters.py."""

    @property
    def token_counts(self) -> tuple[int, int]:
        """Tokens of the training and of the validation part."""
        return len(self.train), len(self.validation)

    @property
    def n_train(self) -> int:
        """Windows are not counted as examples."""
        return 0

    @property
    def n_eos(self) -> int:
        """Number of tokens that end a document and have no text."""
        return 0 if self.tokenizer.end_of_text_id is None else self.n_documents

    @property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """End of each document in tokens from the start of the text, its end token included: (n_documents,)."""
        return np.fromfile(self.train.path.with_name("documents.bin"), dtype=np.int64)

    @cached_property
    def _file_ends(self) -> npt.NDArray[np.int64]:
        """How many documents end up to the end of each file, shape (files,)."""
        path = self.train.path.with_name("files.bin")
        return np.fromfile(path, dtype=np.int64) if path.exists() else np.arange(1, self.n_documents + 1)

    def document_name(self, source: Source, document: int) -> str:
        """The name of a document, counted from 0: its file, and its number if the file has several."""
        file = int(np.searchsorted(self._file_ends, document, side="right"))
        before = int(self._file_ends[file - 1]) if file else 0
        name = source.files[file].short if len(source.files) > 1 else source.name
        alone = self._file_ends[file] - before == 1
        return name if alone else f"{name}, document {document - before + 1:,}"

    @staticmethod
    def open(
        corpus: CorpusPath | Sequence[CorpusPath],
        settings: CorpusSettings = CorpusSettings(),  # noqa: B008  (frozen)
    ) -> Corpus:
        """Find the text, tokenize it (or reuse it from the cache) and split it."""
        return prepare(find_source(corpus, settings), settings)


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
    folder = _token_folder(fingerprint, tokenizer, unknown, settings)
    if not _is_prepared(folder):
        storage.make_folder(folder.parent)
        with storage.locked(folder.with_suffix(".lock")):  # two runs may start on the same new text at once
            if not _is_prepared(folder, lambda fault: notice(f"{fault} Tokenizing the text again.")):
                storage.remove_folder(folder)
                storage.remove_temporary(folder.parent, folder.name)
                _tokenize(source, fingerprint, tokenizer, unknown, folder, notice, progress)
    corpus = _open(folder, source.name, settings)
    if sentence := source.idle_separator(corpus.n_documents):
        notice(sentence)
    return corpus


def reopen(
    fingerprint: str, name: str, tokenizer: Tokenizer, settings: CorpusSettings, notice: Notice = silent
) -> Corpus | None:
    """The corpus from the cache, if it is still there, without reading the text: for a text that is gone."""
    folder = _token_folder(fingerprint, tokenizer, "error", settings)
    return _open(folder, name, settings) if _is_prepared(folder, notice) else None


def _tokenizer_of(
    source: Source, fingerprint: str, settings: CorpusSettings, notice: Notice, progress: Progress
) -> Tokenizer:
    """The tokenizer from the settings, fitted to this text once and then cached."""
    if settings.tokenizer not in ("char", "bpe"):
        return fit_tokenizer(source, settings, notice, progress)  # nothing to fit, so nothing to cache
    key = {"version": 2, "text": fingerprint, "tokenizer": settings.tokenizer} | _reading(settings)
    if settings.tokenizer == "bpe":
        key |= {"vocab_size": settings.vocab_size, "val_fraction": settings.val_fraction}
    path = storage.cache_folder() / "tokenizers" / f"{_short_hash(key)}.json"
    storage.make_folder(path.parent)
    with storage.locked(path.with_suffix(".lock")):
        try:
            return Tokenizer.of(storage.read_checksummed(path, LARGEST_TOKENIZER), path)
        except (FileNotFoundError, ValueError):
            reading = HashingSource(source)
            tokenizer = fit_tokenizer(reading.source, settings, notice, progress)
            reading.check(fingerprint)
            storage.remove_temporary(path.parent, path.name)
            storage.write_checksummed(path, tokenizer.to_dict())
            return tokenizer


def _token_folder(fingerprint: str, tokenizer: Tokenizer, unknown: Unknown, settings: CorpusSettings) -> Path:
    key = {"version": 3, "text": fingerprint, "tokenizer": tokenizer.fingerprint, "unknown": unknown}
    key |= _reading(settings)
    return storage.cache_folder() / "tokens" / _short_hash(key)


def _reading(settings: CorpusSettings) -> dict[str, Any]:
    """What decides how the same files are split into documents. Their formats are in the fingerprint."""
    return {name: value for name in ("field", "document_separator") if (value := getattr(settings, name))}


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
    about, document_ends, file_ends, n_characters = dict[str, Any](), array("q"), array("q"), 0
    end = [] if tokenizer.end_of_text_id is None else [np.array([tokenizer.end_of_text_id], np.uint32)]
    start = [np.array([id], np.uint32) for id in tokenizer.start_ids]
    units = tokenizer.sizes[1].copy()  # characters and document ends of each token
    units[end] = 1
    odd = OddCharacters()

    def read(chunks: Iterable[str]) -> Iterator[str]:
        nonlocal n_characters
        for chunk in chunks:
            n_characters += len(chunk)
            odd.add(chunk)
            yield chunk

    # An estimate of the bytes to write: a token holds at least one byte of text.
    with storage.readable_errors(folder, source.size * dtype.itemsize), storage.new_folder(folder, about) as temporary:
        tokens = _TokenFile(temporary / "tokens.bin", dtype, units)
        for file in reading.source.files:
            for document in reading.source.documents(file, notice, meter.add):
                try:
                    for ids in itertools.chain(start, tokenizer.encode_chunks(read(document.chunks), unknown), end):
                        tokens.write(ids)
                except UnknownText as error:
                    raise UnknownText(f"{document.name}: {error}") from None
                document_ends.append(tokens.n_tokens)
            file_ends.append(len(document_ends))
        tokens.flush()
        reading.check(fingerprint)
        if n_characters == 0:
            raise ValueError(f"{source.name} is empty: there is no text in it.")
        if tokens.n_units == len(end) * len(document_ends):  # nothing but document ends
            raise ValueError(f"{source.name} has no character that is in the vocabulary. Use another text.")
        storage.disk.write(temporary / "documents.bin", document_ends.tobytes())
        storage.disk.write(temporary / "places.bin", np.concatenate(tokens.places).tobytes())
        if len(file_ends) != len(document_ends) or any(end != i for i, end in enumerate(file_ends, 1)):
            storage.disk.write(temporary / "files.bin", file_ends.tobytes())
        tokenizer.save(temporary / "tokenizer.json")
        about |= {
            "fingerprint": fingerprint, "dtype": dtype.name, "tokens": tokens.n_tokens, "characters": n_characters,
            "documents": len(document_ends), "vocab_size": tokenizer.vocab_size,
            **({"odd": counts} if (counts := odd.counts()) else {}),
        }  # fmt: skip


class _TokenFile:
    """Writes `tokens.bin`, and counts the units of text in it. Pieces are collected: a document may be a few tokens."""

    def __init__(self, path: Path, dtype: np.dtype[Any], units: npt.NDArray[np.int64]) -> None:
        self._path, self._dtype, self._units = path, dtype, units
        self._pieces, self._ends = list[npt.NDArray[np.uint32]](), array("q")
        self._n_written = self.n_tokens = self.n_units = 0
        self.places = [np.zeros((1, 2), np.int64)]
        """The content of `places.bin`, a pair after each piece."""

    def write(self, ids: npt.NDArray[np.uint32]) -> None:
        self._pieces.append(ids)
        self.n_tokens += len(ids)
        self._ends.append(self.n_tokens - self._n_written)
        if self._ends[-1] >= _WRITTEN:
            self.flush()

    def flush(self) -> None:
        """Write the collected pieces, if there are any."""
        if not self._pieces:
            return
        ids, ends = np.concatenate(self._pieces), np.array(self._ends)
        storage.disk.write(self._path, ids.astype(self._dtype).tobytes())
        counted = np.pad(self._units[ids].cumsum(), (1, 0))
        self.places.append(np.stack([self._n_written + ends, self.n_units + counted[ends]], axis=1))
        self._n_written, self.n_units = self.n_tokens, self.n_units + int(counted[-1])
        self._pieces.clear()
        del self._ends[:]


def _open(folder: Path, name: str, settings: CorpusSettings) -> Corpus:
    about = _checked_manifest(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    whole = Tokens(folder / "tokens.bin", about["dtype"], 0, about["tokens"])
    cut = _validation_start(folder, whole, tokenizer, settings.val_fraction)
    train, validation = dataclasses.replace(whole, stop=cut), dataclasses.replace(whole, start=cut)
    counts = about["documents"], about["characters"], about.get("odd", {})
    return Corpus(name, about["fingerprint"], tokenizer, train, validation, *counts)


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
