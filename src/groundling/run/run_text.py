"""The text of a run: open it again, and say what changed in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress

from groundling.config import Config
from groundling.data.corpus import Corpus, prepare, reopen
from groundling.data.fingerprint import TextFingerprint, difference, fingerprint_of, first_difference_at
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import Source, find_source, read_text
from groundling.data.tokenizers.base import Tokenizer
from groundling.run.record import CorpusFacts

_PIECE = 2**20  # tokens compared at a time


class TextChanged(ValueError):
    """The text is not the one that the run was trained on."""


@dataclasses.dataclass(frozen=True)
class RunText:
    """What a run records about its text. `run` is the run's name on the command line."""

    run: str
    was: CorpusFacts
    config: Config
    tokenizer: Tokenizer

    def open(self, notice: Notice = silent, progress: Progress = silent) -> Corpus:
        """Raises ValueError if the text is gone, and TextChanged, with the difference, if it has changed."""
        address, fingerprint, settings = self.config.corpus, self.was.fingerprint, self.config.text
        try:
            source = find_source(address, settings.glob, stored=True)
        except (FileNotFoundError, ConnectionError):
            kept = reopen(fingerprint, self.was.name, address, self.tokenizer, settings, notice)
            if kept is None:
                raise ValueError(f"The text of the run {self.run} is gone: {address} does not exist.") from None
            notice(f"{address} no longer exists. Using its tokens from the cache.")
            return kept
        contents = fingerprint_of(source, progress)
        self.refuse_change(source, contents)
        return prepare(
            source, settings, tokenizer=self.tokenizer, fingerprint=fingerprint, notice=notice, progress=progress
        )

    def refuse_change(self, source: Source, contents: TextFingerprint) -> None:
        """Raise TextChanged, with the difference, if `source`, with these contents, is not the run's text."""
        was = self.was
        if contents.fingerprint == was.fingerprint:
            return
        what = "it differs"
        if was.documents == len(source.documents) == 1:
            size = f"{was.contents[0].bytes:,} bytes" if was.contents else f"{was.characters:,} characters"
            what = f"it had {size} and has {contents.documents[0]['bytes']:,} bytes now"
            with suppress(ValueError, OSError):  # it is no longer text, or the cache is damaged
                kept = reopen(was.fingerprint, was.name, source.address, self.tokenizer, self.config.text)
                if kept is not None:
                    new = (chunk.encode() for chunk in read_text(source.documents[0]))
                    offset, line = first_difference_at(_bytes_of(kept), new)
                    what += f", and differs from line {line:,} on (byte {offset:,})"
        elif was.contents:
            before = [document.model_dump() for document in was.contents]
            what = difference(before, contents.documents) or "its files are in another order"
        raise TextChanged(
            f"The text at {source.address} is not the one that the run {self.run} was trained on: {what}. Restore the "
            "old text, start a new run on the new one with another --name, or continue with the new one: "
            f"`groundling resume {self.run} --accept-changed-text`."
        )


def _bytes_of(corpus: Corpus) -> Iterator[bytes]:
    whole = dataclasses.replace(corpus.train, stop=corpus.validation.stop)
    for start in range(0, len(whole), _PIECE):
        yield corpus.tokenizer.decode_bytes(whole.read(start, min(start + _PIECE, len(whole))))
