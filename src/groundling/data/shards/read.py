"""Read the documents of a shard, and keep what is to be said about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.data.documents import Document, skipped_entries
from groundling.data.files import TextFile, read_bytes
from groundling.data.fingerprint import HashingSource, combined, refuse_edited
from groundling.data.formats import Reading
from groundling.data.progress import Notice, silent
from groundling.data.shards.plan import Shard
from groundling.data.shards.pool import workers
from groundling.data.sources import Source

Facts = dict[str, Any]
"""What was found in a shard, as JSON."""


class ShardReader:
    """The documents of a shard. `files` are to be read in order."""

    def __init__(
        self, shard: Shard, reading: Reading, notice: Notice | None = None, progress: Callable[[int], None] = silent
    ) -> None:
        """`notice` gets the sentences for the user. Without it, `facts` has them."""
        whole = tuple(file for file in shard.files if not file.is_part)
        self._hashing = HashingSource(Source("", (), whole, reading))
        self.files = self._hashing.source.files or shard.files
        self._source = Source("", (), self.files, reading)
        self._notices, self._skipped = list[str](), 0
        self._notice = notice or self._notices.append
        self._progress = progress
        self._kept = None if shard.kept is None else iter(shard.kept.flags())

    def documents(self, file: TextFile) -> Iterator[Document]:
        """Those of one of the files, without copies of earlier ones if `Source.kept` tells them."""
        skip = self._skip if file.is_part else None
        for document in self._source.documents(file, self._notice, self._progress, skip):
            if self._kept is None or next(self._kept):
                yield document
            else:
                read_through(document)

    def _skip(self, n: int) -> None:
        self._skipped += n

    @property
    def facts(self) -> Facts:
        """Once all is read: sentences, entries of a part that were skipped, and the hashes of whole files."""
        return {"notices": self._notices, "skipped": self._skipped, "digests": self._hashing.hex_digests}


@contextmanager
def finished_shards(folder: Path) -> Iterator[Path]:
    """A folder for `once`. When all is done, it is deleted, and also if the text cannot be used. A kill leaves it."""
    storage.remove_temporary(folder.parent, folder.name)  # half-deleted
    storage.remove_temporary(folder)
    try:
        yield folder
    except ValueError:
        _remove(folder)
        raise
    _remove(folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        storage.remove_folder(folder)


def once(shard: Shard, name: str, folder: Path, write: Callable[[Path], Facts]) -> Facts:
    """The facts of a shard of the text `name`, from `folder` if it was finished before, and is undamaged. Otherwise let
    `write` fill the folder."""
    if folder.exists():
        try:
            return storage.verify(folder)
        except (ValueError, OSError):
            storage.remove_folder(folder)
    facts = Facts()
    with storage.new_folder(folder, facts) as temporary:
        shard.check(name)
        facts |= write(temporary)
        shard.check(name)
    return facts


def read_all(
    source: Source, shards: Sequence[Shard], fingerprint: str | None, read: Callable[[Shard], Facts], processes: int,
    notice: Notice, progress: Callable[[Shard], None], again: Callable[[Document], None] | None = None,
) -> tuple[list[Facts], dict[int, str]]:  # fmt: skip
    """The facts of all shards, which `read` finds in several processes, and the hashes of files that several shards are
    parts of. See `in_order`, also for the errors.

    Raises ValueError if what was read is not the text with this fingerprint.
    """
    with workers(min(processes, len(shards))) as submit:
        parted = {shard.first: source.files[shard.first] for shard in shards if shard.files[0].is_part}
        hashed = {number: submit(_digest_of, file) for number, file in parted.items()}
        results = [submit(read, shard) for shard in shards]
        facts = list(in_order(source, shards, results, notice, progress, again or read_through))
        digests = {number: result() for number, result in hashed.items()}
    if fingerprint is not None:
        check_unchanged(source, shards, facts, digests, fingerprint)
    return facts, digests


def _digest_of(file: TextFile) -> str:
    found = list[bytes]()
    for _ in read_bytes(dataclasses.replace(file, on_read=found.append)):
        pass
    return found[0].hex()


def read_through(document: Document) -> None:
    for _ in document.chunks:
        pass


def check_unchanged(
    source: Source, shards: Sequence[Shard], facts: Sequence[Facts], digests: dict[int, str], fingerprint: str
) -> None:
    """Raise ValueError if what was read is not the text with this fingerprint. `digests` are those of files that
    several shards are parts of."""
    for shard in shards:
        shard.check(source.name)
    for shard, each in zip(shards, facts, strict=True):
        if not shard.files[0].is_part:
            digests |= dict(enumerate(each["digests"], shard.first))
    if combined(source.files, [bytes.fromhex(digests[i]) for i in range(len(source.files))]) != fingerprint:
        refuse_edited(source.name)


def in_order(
    source: Source, shards: Sequence[Shard], results: Iterable[Callable[[], Facts]], notice: Notice,
    progress: Callable[[Shard], None], again: Callable[[Document], None] = read_through,
) -> Iterator[Facts]:  # fmt: skip
    """Wait for the facts of each shard in order, and tell its notices.

    If a shard cannot be read or tokenized, its files are read from their beginning, each document by `again`, so that
    the error has the right lines and comes after the notices that belong before it.
    """
    skipped = 0
    for shard, result in zip(shards, results, strict=True):
        try:
            found = result()
        except (ValueError, OSError) as error:
            if not (isinstance(error, OSError) and error.strerror):  # the disk's
                for file in source.files[shard.first : shard.first + len(shard.files)]:
                    for document in source.documents(file, notice):
                        again(document)
            raise
        for sentence in found["notices"]:
            notice(sentence)
        skipped += found["skipped"]
        if skipped and shard.files[-1].stop is None:
            notice(skipped_entries(shard.files[-1].name, skipped))
            skipped = 0
        progress(shard)
        yield found
