"""Read a text, shard by shard, to fit a tokenizer to it: its characters and where documents end, or a sample of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from groundling.data.formats import Reading
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.shards.plan import Shard, shards_of
from groundling.data.shards.pool import workers
from groundling.data.shards.read import Facts, ShardReader, check_unchanged, in_order, once, read_all
from groundling.data.sources import Source
from groundling.data.split import split_point
from groundling.data.tokenizers.alphabet import Alphabet

Ends = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CountedText:
    """A text that was read once. A document's size is its characters, and one for its end."""

    source: Source
    shards: Sequence[Shard]
    facts: Sequence[Facts]
    ends: Ends | None
    """Where the documents end, if there is one shard."""
    digests: dict[int, str]
    """Hashes of the files of which several shards are parts."""
    fingerprint: str | None
    """What the hashes of all files must give."""

    @property
    def starts(self) -> list[int]:
        """Where each shard starts, and the size of the whole text."""
        return [0, *np.cumsum([each["size"] for each in self.facts]).tolist()]

    @property
    def n_documents(self) -> int:
        return sum(each["documents"] for each in self.facts)

    @property
    def characters(self) -> list[str]:
        """All that occur, sorted."""
        return sorted(set().union(*(each["alphabet"] for each in self.facts)))

    def split_point(self, val_fraction: float) -> int:
        """Where the validation part starts. See data/split.py: only the documents around that place matter."""
        starts = self.starts
        cut = int((1 - val_fraction) * starts[-1])
        here = max(i for i in range(len(self.shards)) if starts[i] <= cut)
        ends = self.ends if self.ends is not None else count_shard(self.shards[here], self.source.reading)[1]
        known = [(start, each) for start, each in zip(starts, self.facts, strict=False) if each["documents"]]
        before = [start + each["last_end"] for start, each in known if start < starts[here]][-1:]
        after = [start + each["first_end"] for start, each in known if start > starts[here]][:1]
        return split_point(np.array([*before, *(ends + starts[here]), *after], np.int64), starts[-1], val_fraction)

    def sample(self, stop: int, most: int, processes: int, notice: Notice, progress: Progress) -> Iterator[str]:
        """The text before `stop`, at most `most` characters of it, spread evenly."""
        share = min(1.0, most / max(stop, 1))
        meter = ProgressMeter(progress, "training a tokenizer on", self.source.size)
        shards, starts = _with_whole_texts(self.source, self.shards, self.starts)
        if len(shards) == 1:
            reader = ShardReader(shards[0], self.source.reading, notice, meter.add)
            yield from _sampled(reader, stop, share)
            facts = [reader.facts]
        else:
            with workers(min(processes, len(shards))) as submit:
                reading = self.source.reading
                results = [submit(_sample_of, *each, reading, stop, share) for each in zip(shards, starts, strict=True)]
                facts = []
                for found in in_order(self.source, shards, results, notice, lambda shard: meter.add(shard.size)):
                    yield from found.pop("sample")
                    facts.append(found)
        if self.fingerprint is not None:
            check_unchanged(self.source, shards, facts, self.digests, self.fingerprint)


def count_text(
    source: Source, fingerprint: str | None, saved: Path | None, processes: int, notice: Notice, progress: Progress
) -> CountedText:
    """Read a text and count it. With `saved`, a folder, the same call continues after a kill.

    Raises ValueError if the text is empty, or not the one with this fingerprint.
    """
    shards, digests, ends = shards_of(source), dict[int, str](), None
    meter = ProgressMeter(progress, "reading", source.size)
    if len(shards) == 1:
        found, ends = count_shard(shards[0], source.reading, notice, meter.add)
        facts = [found]
        if fingerprint is not None:
            check_unchanged(source, shards, facts, digests, fingerprint)
    else:
        read = partial(_counted, name=source.name, reading=source.reading, saved=saved)
        facts, digests = read_all(
            source, shards, fingerprint, read, processes, notice, lambda shard: meter.add(shard.size)
        )
    if not any(each["characters"] for each in facts):
        raise ValueError(f"{source.name} is empty: there is no text in it.")
    return CountedText(source, shards, facts, ends, digests, fingerprint)


def count_shard(
    shard: Shard, reading: Reading, notice: Notice | None = None, progress: Callable[[int], None] = silent
) -> tuple[Facts, Ends]:
    """What was found in a shard, and where its documents end, counted from its beginning."""
    reader, alphabet, size, ends = ShardReader(shard, reading, notice, progress), Alphabet(), 0, array("q")
    for file in reader.files:
        for document in reader.documents(file):
            for chunk in document.chunks:
                alphabet.add(chunk)
                size += len(chunk)
            if document.ends:
                size += 1
                ends.append(size)
    counts = {"size": size, "characters": size - len(ends), "documents": len(ends), "alphabet": alphabet.characters}
    some = {"first_end": ends[0], "last_end": ends[-1]} if ends else {}
    return counts | some | reader.facts, np.array(ends, np.int64)


def _counted(shard: Shard, name: str, reading: Reading, saved: Path | None) -> Facts:
    """The facts of a shard, which has a folder in `saved`."""
    if saved is None:
        return count_shard(shard, reading)[0]
    return once(shard, name, saved / shard.name, lambda _: count_shard(shard, reading)[0])


def _sample_of(shard: Shard, start: int, reading: Reading, stop: int, share: float) -> Facts:
    reader = ShardReader(shard, reading)
    sample = list(_sampled(reader, stop - start, share))
    return {"sample": sample} | reader.facts


def _sampled(reader: ShardReader, stop: int, share: float) -> Iterator[str]:
    position = 0
    for file in reader.files:
        for document in reader.documents(file):
            for chunk in document.chunks:
                yield chunk[: int(share * min(len(chunk), max(0, stop - position)))]
                position += len(chunk)
            position += document.ends


def _with_whole_texts(source: Source, shards: Sequence[Shard], starts: Sequence[int]) -> tuple[list[Shard], list[int]]:
    """The shards and their starts, with each plain text as a whole: the sample depends on its chunks."""

    def text_of(pair: tuple[int, Shard]) -> int:
        number, shard = pair
        file = shard.files[0]
        return -1 - shard.first if file.is_part and file.format == "text" else number

    whole, begin = list[Shard](), list[int]()
    for _, group in groupby(enumerate(shards), text_of):
        (number, shard), *more = group
        whole.append(Shard(shard.first, source.files[shard.first : shard.first + 1]) if more else shard)
        begin.append(starts[number])
    return whole, begin
