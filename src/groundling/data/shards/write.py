"""Write the tokens of a shard, and where its documents end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.data.documents import Document
from groundling.data.tokenizers.base import Tokenizer, Unknown, UnsignedIds

_WRITTEN = 2**20  # tokens written at a time, or more


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


class TokenFiles:
    """Writes `tokens.bin`, `documents.bin` and `places.bin`, described in data/corpus.py. Small pieces are collected.

    Counts tokens, documents and units, which are characters and document ends.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, unknown: Unknown) -> None:
        self._folder, self._dtype = folder, token_type(tokenizer)
        self._start = np.array(tokenizer.start_ids, self._dtype)
        self._end = np.array([] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id], self._dtype)
        units = tokenizer.sizes[1].copy()  # of each token
        units[self._end] = 1
        self._units = units.astype(np.min_scalar_type(units.max()))
        self._is_exact = unknown == "error" and not tokenizer.puts_space_first  # a text's tokens have its characters
        self._pieces, self._document_ends = list[npt.NDArray[Any]](), list[npt.NDArray[np.int64]]()
        self._places = [np.zeros((1, 2), np.int64)]  # a pair after each piece
        self._n_collected = self.n_tokens = self.n_units = self.n_documents = 0

    def write_chunks(self, chunks: Iterable[UnsignedIds], document: Document) -> None:
        """The ids of a document, or of its part in this shard."""
        if document.starts:
            self._write(self._start)
        for ids in chunks:
            self._write(ids)
        if document.ends:
            self._write(self._end)
            self._document_ends.append(np.array([self.n_tokens]))
            self.n_documents += 1

    def write_documents(self, ids: UnsignedIds, lengths: Sequence[int], texts: Sequence[str]) -> None:
        """The ids of whole documents, one after another, and how many each has."""
        n_start, n_end, n_ids = len(self._start), len(self._end), np.array(lengths)
        ends = (n_start + n_ids + n_end).cumsum()
        whole = np.empty(ends[-1], self._dtype)
        place = stop = 0
        for length, end in zip(lengths, ends.tolist(), strict=True):  # several times faster than `np.insert`
            first, stop = stop, stop + length
            whole[place : place + n_start] = self._start
            whole[place + n_start : end - n_end] = ids[first:stop]
            place = end
        if n_end:
            whole[ends - 1] = self._end
        steps = np.empty((len(ends), 3, 2), np.int64)  # tokens and units of each start, text and end
        steps[:, 0] = n_start, self._units[self._start].sum()
        steps[:, 1, 0], steps[:, 1, 1] = n_ids, self._counted(ids, n_ids, texts)
        steps[:, 2] = n_end, n_end
        steps = steps[steps[:, :, 0] > 0]
        self._document_ends.append(self.n_tokens + ends)
        self._places.append(np.array([self.n_tokens, self.n_units]) + steps.cumsum(axis=0))
        self.n_tokens += len(whole)
        self.n_units += int(steps[:, 1].sum())
        self.n_documents += len(ends)
        self._collect(whole)

    def _counted(self, ids: UnsignedIds, n_ids: npt.NDArray[np.int64], texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Units of each document."""
        if self._is_exact:
            return np.array([len(text) for text in texts])
        units = np.pad(self._units[ids].cumsum(dtype=np.int64), (1, 0))
        return np.diff(units[np.pad(n_ids.cumsum(), (1, 0))])

    def _write(self, ids: UnsignedIds) -> None:
        if len(ids):
            self.n_tokens += len(ids)
            self.n_units += int(self._units[ids].sum(dtype=np.int64))
            self._places.append(np.array([[self.n_tokens, self.n_units]]))
            self._collect(ids.astype(self._dtype))

    def _collect(self, ids: npt.NDArray[Any]) -> None:
        self._pieces.append(ids)
        self._n_collected += len(ids)
        if self._n_collected >= _WRITTEN:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        for name, pieces in (("tokens", self._pieces), ("places", self._places), ("documents", self._document_ends)):
            if pieces:
                storage.disk.write(self._folder / f"{name}.bin", b"".join([piece.data for piece in pieces]))
            pieces.clear()
        self._n_collected = 0
