"""Tokenize a text, shard by shard, into the folder that data/corpus.py describes.

While a text of several shards is prepared, `<folder>.shards/` holds a folder for each shard that is done, complete or
absent like all others. So the same command continues after a kill.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.data.characters import OddCharacters
from groundling.data.documents import Document
from groundling.data.formats import Reading
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.shards.join import join
from groundling.data.shards.plan import Shard, shards_of
from groundling.data.shards.read import Facts, ShardReader, check_unchanged, in_order, once, read_all
from groundling.data.shards.write import TokenFiles, token_type
from groundling.data.sources import Source
from groundling.data.tokenizers.base import Tokenizer, Unknown, UnknownText

_ENCODED = 2**18  # characters of documents encoded together, or more: their ids fit in a core's own cache


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
            write = partial(write_shard, shards[0], source.reading, tokenizer, unknown, temporary, notice, meter.add)
            facts = list(in_order(source, shards, [write], notice, silent, partial(_encode_alone, tokenizer, unknown)))
            check_unchanged(source, shards, facts, {}, fingerprint)
        else:
            facts = _in_shards(source, shards, fingerprint, tokenizer, unknown, parts, processes, notice, progress)
            known |= join([parts / shard.name for shard in shards], temporary)
            about["parts"] = [each["tokens"] for each in facts if each["tokens"]]
        about |= _described(source, tokenizer, facts)
        tokenizer.save(temporary / "tokenizer.json")
        about |= {"fingerprint": fingerprint, "dtype": dtype.name, "vocab_size": tokenizer.vocab_size}


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
    read = partial(_saved, name=source.name, reading=source.reading, unknown=unknown, parts=parts)
    again = partial(_encode_alone, tokenizer, unknown)
    facts, _ = read_all(
        source, shards, fingerprint, read, processes, notice, lambda shard: meter.add(left.get(shard.name, 0)), again
    )
    return facts


def _encode_alone(tokenizer: Tokenizer, unknown: Unknown, document: Document) -> None:
    """Raise the error of a document, with its name."""
    try:
        for _ in tokenizer.encode_chunks(document.chunks, unknown):
            pass
    except UnknownText as error:
        raise UnknownText(f"{document.name}: {error}") from None


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
    """Write the tokens of a shard, and where its documents and files end, counted from its beginning.

    If a document cannot be read or encoded, an earlier one may have an error, too: documents are encoded together.
    """
    notices, file_ends = list[str](), array("q")
    reader, odd = ShardReader(shard, reading, notice and notices.append, progress), OddCharacters()
    tokens, n_characters = TokenFiles(folder, tokenizer, unknown), 0

    def counted(chunks: Iterable[str]) -> Iterator[str]:
        nonlocal n_characters
        for chunk in chunks:
            n_characters += len(chunk)
            odd.add(chunk)
            yield chunk

    for each in _batches(reader, file_ends):
        if isinstance(each, Document):
            encoded = tokenizer.encode_chunks(counted(each.chunks), unknown, 0 if each.starts else 1)
            tokens.write_chunks(encoded, each)
        elif texts := list(counted(each)):
            tokens.write_documents(*tokenizer.encode_batch(texts, unknown), texts)
        for sentence in notices:
            notice and notice(sentence)
        notices.clear()
    tokens.flush()
    if list(file_ends) != list(range(1, tokens.n_documents + 1)):
        storage.disk.write(folder / "files.bin", file_ends.tobytes())
    counts = {"tokens": tokens.n_tokens, "characters": n_characters, "documents": tokens.n_documents}
    return counts | {"units": tokens.n_units, "odd": odd.state()} | reader.facts


def _documents(reader: ShardReader, file_ends: array[int]) -> Iterator[Document]:
    """Those of all files of a shard. `file_ends` gets how many end up to the end of each file."""
    n = 0
    for file in reader.files:
        for document in reader.documents(file):
            yield document
            n += document.ends
        if file.stop is None:
            file_ends.append(n)


def _batches(reader: ShardReader, file_ends: array[int]) -> Iterator[list[str] | Document]:
    """The texts of documents, some at a time, to be encoded together; and long documents, in chunks, alone."""
    texts, size = list[str](), 0
    for document in _documents(reader, file_ends):
        text, more = next(document.chunks), next(document.chunks, None)
        is_whole = more is None and document.starts and document.ends
        if is_whole:
            texts.append(text)
            size += len(text)
        if size >= _ENCODED or not is_whole:
            yield texts
            texts, size = [], 0
        if not is_whole:
            document.chunks = itertools.chain([text], [] if more is None else [more], document.chunks)
            yield document
    yield texts
