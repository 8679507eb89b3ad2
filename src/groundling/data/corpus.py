"""A corpus as token ids on the disk: tokenized once, cached, and memory-mapped.

A tokenized corpus is a folder in the cache, named by a hash of the text's fingerprint and the tokenizer:

    tokens.bin       ids of all documents in order, 16 bits each, or 32 if the vocabulary needs them;
                     tokens-00000.bin and so on for a large text, which is prepared in shards
    documents.bin    the end of each document in tokens.bin, 64 bits each
    files.bin        how many documents end up to the end of each file, 64 bits each; none if each file is one document
    places.bin       pairs of 64 bits: the first N tokens hold M characters and document ends
    tokenizer.json
    manifest.json    hashes of these files, and counts
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data.fingerprint import fingerprint_of
from groundling.data.progress import Notice, Progress, silent
from groundling.data.shards.count import count_text
from groundling.data.shards.duplicates import without_copies
from groundling.data.shards.pool import processes_for
from groundling.data.shards.read import finished_shards
from groundling.data.shards.tokenize import tokenize
from groundling.data.sources import CorpusPath, Source, find_source
from groundling.data.split import split_point
from groundling.data.tokenizers.base import Tokenizer, Unknown
from groundling.data.tokenizers.train import fit_to, fit_tokenizer
from groundling.data.tokens import Tokens, part_name
from groundling.storage.safe_read import LARGEST_TOKENIZER

_PIECE = 4 * 2**20  # tokens searched at a time
_AROUND = 4  # documents before and after a place


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
        """End of each document in tokens from the start of the text, its end token included: (n_documents,), mapped."""
        return np.memmap(self.train.path.with_name("documents.bin"), dtype=np.int64, mode="r")

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

    def count_left_out(self) -> int:
        """Count the characters of the text that are in no token. Reads all tokens."""
        sizes, whole = self.tokenizer.sizes[1], dataclasses.replace(self.train, stop=self.validation.stop)
        pieces = (whole.read(i, min(i + _PIECE, len(whole))) for i in range(0, len(whole), _PIECE))
        return self.n_characters - sum(int(sizes[piece].sum()) for piece in pieces)

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
    processes: int | None = None,
    notice: Notice = silent,
    progress: Progress = silent,
) -> Corpus:
    """Tokenize `source`, or reuse it from the cache. Without `tokenizer`, use the one from the settings.

    `fingerprint` is the text's, if you have it from `fingerprint_of`; otherwise the text is hashed first. Large texts
    are prepared by several `processes`, by default as many as there are cores. Their number changes nothing.
    Raises ValueError with a sentence for the user if the text is empty, or cannot be decoded or encoded.
    """
    notice = cache(notice)  # without repetition: the text may be read several times
    for sentence in source.notices:
        notice(sentence)
    fingerprint = fingerprint or fingerprint_of(source, progress).fingerprint
    processes = processes_for(source.size, processes)

    # Called only if it must be read.
    text = cache(partial(_deduplicated, source, fingerprint, settings, processes, notice, progress))
    if tokenizer is None:
        tokenizer = _tokenizer_of([text], [fingerprint], settings, processes, notice, progress)
    folder = _token_folder(fingerprint, tokenizer, unknown, settings)
    shards = folder.with_suffix(".shards")
    storage.remove_temporary(folder.parent, shards.name)  # what a kill left after the last shard
    if shards.exists() or not _is_prepared(folder):
        storage.make_folder(folder.parent)
        # Two runs may start on the same new text at once.
        with storage.locked(folder.with_suffix(".lock")), finished_shards(shards):
            if not _is_prepared(folder, lambda fault: notice(f"{fault} Tokenizing the text again.")):
                storage.remove_folder(folder)
                storage.remove_temporary(folder.parent, folder.name)
                tokenize(text(), fingerprint, tokenizer, unknown, folder, shards, processes, notice, progress)
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


def common_tokenizer(
    sources: Sequence[Source], fingerprints: Sequence[str], settings: CorpusSettings, notice: Notice = silent,
    progress: Progress = silent,
) -> Tokenizer:  # fmt: skip
    """The tokenizer from the settings, fitted to several texts, each with its fingerprint."""
    processes = processes_for(sum(source.size for source in sources))
    texts = [
        partial(_deduplicated, source, fingerprint, settings, processes, notice, progress)
        for source, fingerprint in zip(sources, fingerprints, strict=True)
    ]
    return _tokenizer_of(texts, fingerprints, settings, processes, notice, progress)


def _deduplicated(
    source: Source, fingerprint: str, settings: CorpusSettings, processes: int, notice: Notice, progress: Progress
) -> Source:
    """The text to read: without copies, if the settings say so."""
    return without_copies(source, fingerprint, processes, notice, progress) if settings.deduplicate else source


def _tokenizer_of(
    texts: Sequence[Callable[[], Source]], fingerprints: Sequence[str], settings: CorpusSettings, processes: int,
    notice: Notice, progress: Progress,
) -> Tokenizer:  # fmt: skip
    """The tokenizer from the settings, fitted to these texts once and then cached."""
    if settings.tokenizer not in ("char", "bpe"):
        return fit_tokenizer(None, settings, notice, progress)  # nothing to fit, so nothing to cache
    content = fingerprints[0] if len(fingerprints) == 1 else list(fingerprints)
    key = {"version": 2, "text": content, "tokenizer": settings.tokenizer} | _reading(settings)
    if settings.tokenizer == "bpe":
        key |= {"vocab_size": settings.vocab_size, "val_fraction": settings.val_fraction}
    path = storage.cache_folder() / "tokenizers" / f"{_short_hash(key)}.json"
    storage.make_folder(path.parent)
    with storage.locked(path.with_suffix(".lock")), finished_shards(path.with_suffix(".shards")) as saved:
        try:
            return Tokenizer.of(storage.read_checksummed(path, LARGEST_TOKENIZER), path)
        except (FileNotFoundError, ValueError):
            counted = [
                count_text(text(), fingerprint, saved / f"text-{i}", processes, notice, progress)
                for i, (text, fingerprint) in enumerate(zip(texts, fingerprints, strict=True))
            ]
            tokenizer = fit_to(counted, settings, notice, progress, processes)
            storage.remove_temporary(path.parent, path.name)
            storage.write_checksummed(path, tokenizer.to_dict())
            return tokenizer


def _token_folder(fingerprint: str, tokenizer: Tokenizer, unknown: Unknown, settings: CorpusSettings) -> Path:
    key = {"version": 3, "text": fingerprint, "tokenizer": tokenizer.fingerprint, "unknown": unknown}
    key |= _reading(settings)
    return storage.cache_folder() / "tokens" / _short_hash(key)


def _reading(settings: CorpusSettings) -> dict[str, Any]:
    """What decides how the same files are split into documents. Their formats are in the fingerprint."""
    return {
        name: value for name in ("field", "document_separator", "deduplicate") if (value := getattr(settings, name))
    }


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


def _open(folder: Path, name: str, settings: CorpusSettings) -> Corpus:
    about = _checked_manifest(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    ends = tuple(accumulate(about.get("parts", ())))
    whole = Tokens(folder / "tokens.bin", about["dtype"], 0, about["tokens"], ends)
    cut = _validation_start(folder, whole, tokenizer, settings.val_fraction)
    train, validation = dataclasses.replace(whole, stop=cut), dataclasses.replace(whole, start=cut)
    counts = about["documents"], about["characters"], about.get("odd", {})
    return Corpus(name, about["fingerprint"], tokenizer, train, validation, *counts)


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's entries about the corpus. Raises ValueError if the files do not fit them."""
    about = storage.read_manifest(folder)
    counts: list[Any] = [about.get(name) for name in ("tokens", "documents", "characters")]
    parts = about.get("parts", counts[:1])
    if (
        about.get("dtype") not in ("uint16", "uint32")
        or not isinstance(parts, list)
        or not all(type(count) is int and count > 0 for count in [*counts, *parts])
        or not isinstance(about.get("fingerprint"), str)
        or sum(parts) != counts[0]
    ):
        raise ValueError(f"{folder} is damaged: its manifest does not match its files.")
    names = [part_name(i) for i in range(len(parts))] if "parts" in about else ["tokens.bin"]
    width = np.dtype(about["dtype"]).itemsize
    sizes = {name: width * n for name, n in zip(names, parts, strict=True)} | {"documents.bin": 8 * counts[1]}
    places = folder / "places.bin"
    if (
        any(not (folder / name).is_file() or (folder / name).stat().st_size != size for name, size in sizes.items())
        or not places.is_file()
        or places.stat().st_size % 16
    ):
        raise ValueError(f"{folder} is damaged: its manifest does not match its files.")
    return about


def _rises(numbers: npt.NDArray[np.int64], end: int | None = None) -> bool:
    """Whether numbers do not decrease from 0 or more, to `end`. Reads a piece at a time."""
    pieces = (numbers[max(i - 1, 0) : i + _PIECE] for i in range(0, len(numbers), _PIECE))
    rises = len(numbers) > 0 and numbers[0] >= 0 and all(bool((np.diff(piece) >= 0).all()) for piece in pieces)
    return rises and end in (None, int(numbers[-1]))


def _validation_start(folder: Path, whole: Tokens, tokenizer: Tokenizer, val_fraction: float) -> int:
    """The first token of the validation part. It starts at the same character for every tokenizer, or at the first
    token after that, so that results with different tokenizers are about the same text."""
    ends = np.memmap(folder / "documents.bin", dtype=np.int64, mode="r")
    tokens, units = _columns(folder / "places.bin")
    if not (_rises(ends, len(whole)) and _rises(tokens, len(whole)) and _rises(units)):
        raise ValueError(f"{folder} is damaged: places.bin or documents.bin does not match its tokens.")
    wanted = _wanted_units(ends, tokens, units, val_fraction)
    before = bisect_right(units, wanted) - 1
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


def _columns(path: Path) -> npt.NDArray[np.int64]:
    """The two columns of `places.bin`, mapped."""
    return np.memmap(path, dtype=np.int64, mode="r").reshape(-1, 2).T if path.stat().st_size else np.empty((2, 0), int)


def _wanted_units(
    ends: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64], units: npt.NDArray[np.int64], val_fraction: float
) -> int:
    """Where the validation part starts, in characters and document ends. Of the documents, only those around that
    place are looked at: a large text has a billion."""
    cut = int((1 - val_fraction) * int(units[-1]))
    near = bisect_left(ends, int(tokens[min(bisect_left(units, cut), len(units) - 1)]))
    around = ends[max(near - _AROUND, 0) : near + _AROUND]
    return split_point(units[[bisect_left(tokens, int(end)) for end in around]], int(units[-1]), val_fraction)
