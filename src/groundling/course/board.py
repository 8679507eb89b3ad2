"""The board of the class competition: folders with submissions, possibly strangers', come in, verified ones go out.

Nothing that a submission claims is believed: its loss is measured again on the board's text, its poem is generated
again, and on request its run is trained again. On the same kind of machine (`machine.bits`), all of this must give the
same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import groundling
from groundling import __version__, storage
from groundling.analysis.memorization import TrainingText, parts
from groundling.config import CorpusSettings
from groundling.course.submission import ENDING, SUBMISSION, Entry, Submission, check_rules, held_out, measured, read
from groundling.data.corpus import prepare
from groundling.data.fingerprint import fingerprint_of
from groundling.data.progress import Progress, silent
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokens import Tokens
from groundling.machine import bits as bits_of
from groundling.machine import default_torch, usable_threads
from groundling.model.weights_file import weights_hash
from groundling.reporting.html import render
from groundling.run.record import RunRecord
from groundling.training.events import Event, Step

TOLERANCE = 1e-4
"""Bits per byte by which a loss may differ on another kind of machine."""
TRAINED = 0.05
"""Bits per byte by which a run may be worse when it is trained again and the same bits cannot be expected."""
_SAME = "same to the bit"
_WHOLE = 0.9  # share of a poem from which it counts as copied word for word
_NEAR = 64  # bytes by which a token may reach over the border of the validation part
_FORMAT = 1  # of a verdict in the cache


@dataclass(frozen=True)
class Verdict:
    """What the board found out about a submission. If it is `refused`, the reason, and nothing else but its names."""

    path: str
    author: str
    refused: str = ""
    bits_per_byte: float = 0.0
    loss: float = 0.0
    loss_verdict: str = ""
    prompt: str = ""
    poem: str = ""
    """What the board's model wrote from the seed, not what the submission says."""
    poem_verdict: str = ""
    copied: float = 0.0
    """Share of the poem that is copied from the text."""
    copied_spans: Sequence[tuple[int, int]] = ()
    training_verdict: str = ""
    parameters: int = 0
    command: str = ""
    weights: str = ""
    same_as: str = ""
    """Authors with the same weights."""

    @property
    def copied_words(self) -> str:
        """How much of the poem is copied, such as `12%`."""
        if self.copied >= _WHOLE:
            return "word for word"
        return f"{self.copied:.0%}" if self.copied_spans else "nothing"

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The poem in pieces, each with whether it is copied."""
        spans = [slice(*span) for span in self.copied_spans]
        return [(piece, span is not None) for piece, span in parts(self.poem, spans)]


class Board:
    """The text of a competition, and the checks of submissions on it."""

    def __init__(self, text: str, retrain: bool = False, tell: Progress = silent) -> None:
        """`tell` gets what is being done, how much of it is done, and how much there is.

        Raises ValueError or OSError with a sentence if the text cannot be read.
        """
        self.source, self.retrain, self.tell = find_source(text), retrain, tell
        self.fingerprint = fingerprint_of(self.source).fingerprint
        corpus = prepare(self.source, CorpusSettings(), fingerprint=self.fingerprint)
        self.end = _bytes_of(corpus.validation, corpus.tokenizer)
        self.training_text = TrainingText.of(corpus)
        self.cache = storage.cache_folder() / "board"

    def verdicts(self, folder: Path) -> Iterator[Verdict]:
        """Check each submission below `folder`. Yields as it goes. Verdicts are kept in the cache, so a board that was
        stopped continues."""
        found = submissions(folder)
        for done, path in enumerate(found):
            self.tell(f"checking {path.name}", done, len(found))
            yield dataclasses.replace(self._verdict(path), path=path.relative_to(folder).as_posix())
        self.tell("checked", len(found), len(found))

    def _verdict(self, path: Path) -> Verdict:
        author = path.name.removesuffix(ENDING)
        try:
            submission = read(path)
            author = submission.author
            storage.verify(path)
            kept = self.cache / f"{self._key(path)}.json"
            if (known := _kept(kept)) is not None:
                return known
        except (ValueError, OSError) as error:
            return Verdict(path.name, author, refused=str(error))
        try:
            verdict = self._checked(path, submission, kept.with_suffix(""))
        except ValueError as error:
            verdict = Verdict(path.name, author, refused=str(error))
        except (OSError, ArithmeticError, MemoryError, RuntimeError) as error:  # another time it may work
            return Verdict(path.name, author, refused=str(error) or type(error).__name__)
        storage.make_folder(self.cache)
        storage.write_checksummed(kept, {"format": _FORMAT, "verdict": dataclasses.asdict(verdict)})
        storage.remove_folder(kept.with_suffix(""))
        return verdict

    def _key(self, path: Path) -> str:
        """Of all that decides a verdict."""
        files = {file.name: storage.sha256(file) for file in sorted(path.iterdir()) if file.is_file()}
        key = [files, self.fingerprint, self.retrain, __version__, bits_of(Entry(path, path).machine)]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

    @default_torch()
    def _checked(self, path: Path, submission: Submission, room: Path) -> Verdict:
        """The verdict on an undamaged submission. Raises ValueError if it breaks a rule or lies."""
        entry = Entry(path, path)
        check_rules(entry)
        if {submission.fingerprint, entry.record.corpus.fingerprint} != {self.fingerprint}:
            raise ValueError(f"It was trained on another text than the board's, {self.source.name}.")
        if weights_hash(path) != submission.weights:
            raise ValueError(f"Its weights are not the ones that {SUBMISSION} names.")
        tokens = held_out(entry, self.source)
        self._check_tokens(entry, tokens)
        found = measured(entry, tokens)
        same_machine = _same_machine(entry, submission)
        loss_verdict = _compared(submission, found.bits_per_byte, same_machine)
        poem, poem_verdict = _again(entry, submission, same_machine)
        copies = self.training_text.report(poem)
        return Verdict(
            path.name,
            submission.author,
            bits_per_byte=found.bits_per_byte,
            loss=found.loss,
            loss_verdict=loss_verdict,
            prompt=submission.poem.prompt,
            poem=poem,
            poem_verdict=poem_verdict,
            copied=copies.share,
            copied_spans=tuple((span.start, span.stop) for span in copies.spans),
            training_verdict=self._trained_again(entry, submission, room) if self.retrain else "",
            parameters=sum(p.numel() for p in entry.model.parameters()),
            command=submission.command,
            weights=submission.weights,
        )

    def _check_tokens(self, entry: Entry, tokens: Tokens) -> None:
        """Raise ValueError if a tokenizer leaves something out or counts bytes that are not there: both would make the
        bits per byte fewer."""
        end = _bytes_of(tokens, entry.tokenizer)
        shorter, longer = sorted((end, self.end), key=len)
        if not longer.endswith(shorter) or len(longer) - len(shorter) > _NEAR:
            raise ValueError("Its tokenizer changes the text, so its loss cannot be compared.")

    def _trained_again(self, entry: Entry, submission: Submission, room: Path) -> str:
        """Train the run again, in the folder `room`. Raises ValueError if it becomes another or a worse one."""
        record = entry.record
        name = room / "again"
        if name.exists() and Entry(name).finished:
            run: groundling.Run = Entry(name)
        else:

            def progress(event: Event) -> None:
                if isinstance(event, Step):
                    self.tell(f"training {submission.author} again", event.step, record.settings.training.steps)

            run = groundling.train(
                self.source.addresses[0], preset=record.settings.preset, name=name.name, out=room, on_event=progress,
                **_settings(record),
            )  # fmt: skip
            if run.stopped_by is not None:
                raise KeyboardInterrupt
        if weights_hash(run.checkpoint) == submission.weights:
            return _SAME
        why = _obstacle(record)
        if not why and (run.record.bits != record.bits or submission.versions.get("groundling") != __version__):
            why = "on another kind of machine"
        if not why:
            raise ValueError("Trained again from its settings and seed, it has other weights.")
        again = Entry(run.folder, run.checkpoint)
        worse = measured(again, held_out(again, self.source)).bits_per_byte - submission.bits_per_byte
        if not worse <= TRAINED:
            raise ValueError(
                f"Trained again, it is worse by {worse:.3f} bits per byte ({why}). {TRAINED} would be allowed."
            )
        return f"same within {TRAINED:g} ({why})" if worse >= -TRAINED else f"better by {-worse:.3f} ({why})"


def submissions(folder: Path) -> list[Path]:
    """The folders of submissions below `folder`. One that is called so counts even if it has lost its files.

    Raises ValueError if there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the folder with the submissions.")
    found = {path.parent for path in folder.rglob(SUBMISSION)}
    named = {path for path in folder.rglob(f"*{ENDING}") if path.is_dir()}
    # Who unpacks an archive may get a folder of this name around the submission.
    lost = {path for path in named if not any(each.is_relative_to(path) for each in found)}
    if not (paths := sorted(path for path in found | lost if not path.name.startswith("."))):
        raise ValueError(f"There are no submissions below {folder}. `groundling course submit` makes them.")
    return paths


def ranked(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The best first, the refused last. Says of each which others have the same weights."""
    good = sorted((each for each in verdicts if not each.refused), key=lambda each: each.bits_per_byte)
    twins = [", ".join(b.author for b in good if b is not a and b.weights == a.weights) for a in good]
    good = [dataclasses.replace(each, same_as=same) for each, same in zip(good, twins, strict=True)]
    return good + [each for each in verdicts if each.refused]


def board_page(verdicts: Sequence[Verdict], text: str) -> str:
    """One HTML page of `ranked` verdicts, for a projector. `text` is the name of the board's text."""
    good = [each for each in verdicts if not each.refused]
    refused = [each for each in verdicts if each.refused]
    return render("course/board.html", good=good, refused=refused, text=text)


def _bytes_of(tokens: Tokens, tokenizer: Tokenizer) -> bytes:
    return tokenizer.decode_bytes(tokens.read(0, len(tokens)))


def _kept(file: Path) -> Verdict | None:
    """A verdict in the cache."""
    try:
        value = storage.read_checksummed(file)
        verdict = value["verdict"]
        spans = tuple((start, stop) for start, stop in verdict["copied_spans"])
        return Verdict(**verdict | {"copied_spans": spans}) if value["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same_machine(entry: Entry, submission: Submission) -> bool:
    return submission.bits == bits_of(entry.machine) and submission.versions.get("groundling") == __version__


def _compared(submission: Submission, bits_per_byte: float, same_machine: bool) -> str:
    if bits_per_byte == submission.bits_per_byte:
        return _SAME
    if not abs(bits_per_byte - submission.bits_per_byte) <= TOLERANCE:
        raise ValueError(f"It claims {submission.bits_per_byte:.4f} bits per byte, and has {bits_per_byte:.4f}.")
    return f"same within {TOLERANCE:g}" + ("" if same_machine else " (another kind of machine)")


def _again(entry: Entry, submission: Submission, same_machine: bool) -> tuple[str, str]:
    """The poem that the model writes from the seed, and how it compares with the one in the submission. On another
    kind of machine, one token may fall differently, and all after it."""
    claimed = submission.poem
    poem = "".join(entry.stream(claimed.prompt, claimed.sampling, claimed.max_new_tokens))
    if poem == claimed.text:
        return poem, "same"
    if same_machine:
        raise ValueError("Its model writes another poem from this prompt and seed.")
    same = next((i for i, (a, b) in enumerate(zip(poem, claimed.text, strict=False)) if a != b), 0)
    return poem, f"differs from character {same + 1} on (another kind of machine)"


def _obstacle(record: RunRecord) -> str:
    """Why a run cannot be trained again to the bit, or nothing."""
    reasons = {
        "its schedule followed the clock": bool(record.settings.training.minutes),
        "it was given a new end": record.extended_at is not None,
        "its text had changed": bool(record.former_texts),
        "several processes trained it": record.settings.machine.processes > 1,
        "memory ran out": record.machine.evaluation_batch is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _settings(record: RunRecord) -> dict[str, Any]:
    """What trains a run again: its settings, with the machine's choices made, and by steps. Nothing that names a file
    of this machine; `check_rules` has refused other sources of weights and tokenizers."""
    config, decided = record.settings, record.machine
    groups = (config.text, config.model, config.training)
    settings = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
    return settings | {
        "glob": None, "init_from": None, "minutes": 0.0, "sample_every": 0,
        "device": "cpu" if decided.device == "cpu" else "auto", "dtype": decided.dtype, "compile": decided.compile,
        "threads": min(decided.threads, usable_threads()[0]),
    }  # fmt: skip
