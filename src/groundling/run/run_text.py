"""The text of a run: open it again, and say what changed in it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from groundling.config import READING, Config, CorpusSettings, flag
from groundling.data.compression import NeedsExtra, NotText
from groundling.data.corpus import Corpus, reopen
from groundling.data.files import read_text
from groundling.data.fingerprint import TextFingerprint, difference, fingerprint_of, first_difference_at
from groundling.data.mixture import Mixture, Text
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import CorpusPath, Source, find_source, is_there
from groundling.data.tokenizers.base import Tokenizer
from groundling.escape import command
from groundling.run.record import CorpusFacts, PartFacts
from groundling.run.training_data import entries_of, prepare_data, task_prompts
from groundling.training.task import TrainingData

_PIECE = 2**20  # tokens compared at a time


class TextChanged(ValueError):
    """The text is not the one that the run was trained on."""


@dataclasses.dataclass(frozen=True)
class RunText:
    """What a run records about its text. `run` is the run's name on the command line."""

    run: str
    folder: Path
    was: CorpusFacts
    config: Config
    tokenizer: Tokenizer

    def open(self, notice: Notice = silent, progress: Progress = silent) -> TrainingData:
        """Raises ValueError if the text is gone, and TextChanged, with the difference, if it has changed."""
        if (prompts := task_prompts(self.config, self.tokenizer)) is not None:
            return prompts
        settings = self.config.text
        try:
            source = self.find(self.config.corpus, settings, stored=True)
        except (FileNotFoundError, ConnectionError) as error:
            moved = self._moved(progress)
            if moved is None:
                return self._kept(error, notice)
            source, contents = moved
            notice(f"The text was moved. Using {_places(source)}, which has the same content.")
        else:
            contents = fingerprint_of(source, progress)
            self.refuse_change(source, contents)
        text = prepare_data(source, self.config, settings, self.tokenizer, contents, notice, progress)
        if (text.n_documents, text.n_characters) != (self.was.documents, self.was.characters):
            raise TextChanged(
                f"The settings of the run {self.run} ({', '.join(map(flag, READING))}) were edited: its files give "
                f"{text.n_documents:,} document(s) and {text.n_characters:,} characters now, instead of "
                f"{self.was.documents:,} and {self.was.characters:,}. Restore its config.json from a checkpoint."
            )
        return text

    def find(self, corpus: CorpusPath | Sequence[CorpusPath], settings: CorpusSettings, stored: bool = False) -> Source:
        """As `find_source`, but raises TextChanged if there is another kind of file now."""
        try:
            return find_source(corpus, settings, stored, entries_of(self.config.task, self.tokenizer))
        except NeedsExtra:
            raise  # the text is the same, but what reads it is gone
        except NotText as error:
            places = corpus if isinstance(corpus, str | os.PathLike) else ", ".join(map(str, corpus))
            raise TextChanged(
                f"The text at {places} is not the one that the run {self.run} was trained on: it has changed "
                f"({error.what}). Restore the old text, or start a new run on the new one with another --name."
            ) from None

    def _kept(self, error: OSError, notice: Notice) -> Text:
        """The tokens from the cache, if they are still there."""
        kept = self._cached(notice)
        gone = [address for address in self.config.inputs if not is_there(address)]
        missing, exist = ", ".join(gone), "exists" if len(gone) == 1 else "exist"
        if kept is None:
            why = str(error) if isinstance(error, ConnectionError) else f"{missing} no longer {exist}."
            raise ValueError(
                f"The text of the run {self.run} is gone: {why} If it was moved, say where it is now: "
                f"`{command('resume', self.run, '--corpus', 'PATH')}`."
            ) from None
        notice(f"{missing} no longer {exist}. Using the text's tokens from the cache.")
        return kept

    def _cached(self, notice: Notice) -> Text | None:
        """The text from the cache, if all of it is there."""
        parts: Sequence[CorpusFacts | PartFacts] = self.was.parts or [self.was]
        found = [reopen(part.fingerprint, part.name, self.tokenizer, self.config.text, notice) for part in parts]
        kept = tuple(part for part in found if part is not None)
        if len(kept) < len(parts):
            return None
        return kept[0] if self.config.mix is None else Mixture(kept, self.config.mix, self.was.fingerprint)

    def _moved(self, progress: Progress) -> tuple[Source, TextFingerprint] | None:
        """The text at a place where it may be now: it, or the folder around it, was moved or copied with the run."""
        for base in dict.fromkeys((Path.cwd(), self.folder.parent, self.folder.parent.parent)):
            for n_parts in (1, 2, 3):
                places = [base.joinpath(*Path(address).parts[-n_parts:]) for address in self.config.inputs]
                with suppress(OSError, ValueError):
                    source = self.find([str(place) for place in places], self.config.text)
                    contents = fingerprint_of(source, progress)
                    self.refuse_change(source, contents)
                    return source, contents
        return None

    def refuse_change(self, source: Source, contents: TextFingerprint) -> None:
        """Raise TextChanged, with the difference, if `source`, with these contents, is not the run's text."""
        was = self.was
        parts = [part.fingerprint for part in was.parts]
        if contents.fingerprint == was.fingerprint and (not parts or parts == list(contents.parts)):
            return
        what = "it differs"
        if parts:
            what = self._changed_parts(source, contents)
        elif len(source.files) == (len(was.contents) or was.documents) == 1:
            size = f"{was.contents[0].bytes:,} bytes" if was.contents else f"{was.characters:,} characters"
            what = f"it had {size} and has {contents.files[0]['bytes']:,} bytes now"
            with suppress(ValueError, OSError):  # it is no longer text, or the cache is damaged
                kept = reopen(was.fingerprint, was.name, self.tokenizer, self.config.text)
                if kept is not None and kept.n_documents == 1:
                    new = (chunk.encode() for chunk in read_text(source.files[0]))
                    offset, line = first_difference_at(_bytes_of(kept), new)
                    what += f", and differs from line {line:,} on (byte {offset:,})"
        elif was.contents:
            before = [document.model_dump() for document in was.contents]
            what = difference(before, contents.files) or "its files are in another order"
        moved = [] if source.addresses == self.config.inputs else ["--corpus", *source.addresses]
        raise TextChanged(
            f"The text at {_places(source)} is not the one that the run {self.run} was trained on: {what}. Restore the "
            "old text, start a new run on the new one with another --name, or continue with the new one: "
            f"`{command('resume', self.run, *moved, '--accept-changed-text')}`."
        )

    def _changed_parts(self, source: Source, contents: TextFingerprint) -> str:
        """Which texts of a mix have changed."""
        if len(contents.parts) != len(self.was.parts):
            return f"it mixes {len(self.was.parts)} texts, and these are {len(contents.parts)}"
        pairs = zip(self.was.parts, contents.parts, source.addresses, strict=True)
        names = [f"{was.name} ({place})" for was, now, place in pairs if was.fingerprint != now]
        return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} changed"


def _places(source: Source) -> str:
    return ", ".join(source.addresses)


def _bytes_of(corpus: Corpus) -> Iterator[bytes]:
    whole = dataclasses.replace(corpus.train, stop=corpus.validation.stop)
    for start in range(0, len(whole), _PIECE):
        yield corpus.tokenizer.decode_bytes(whole.read(start, min(start + _PIECE, len(whole))))
