"""Trackers: send the events of a run to TensorBoard, Weights & Biases or trackio."""

from __future__ import annotations

import html
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from groundling.training.events import Evaluation, Event, Finished, Replies, ReplyGroup, Sample, Step, Subscriber

Tracker = Literal["tensorboard", "wandb", "trackio"]
Values = Mapping[str, float | str]
_PROJECT = "groundling"


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker starts with: name, folder, record, and the steps so far."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    step: int

    @property
    def key(self) -> str:
        """A unique name: the same after a resume, but different for a new run of the same name."""
        made = f"{self.record.get('created')} {self.record['corpus']['fingerprint']}"
        return f"{self.name}-{sha256(made.encode()).hexdigest()[:8]}"


class TensorBoard:
    """Event files in the run's folder `tensorboard`, written by TensorBoard's own writer."""

    def __init__(self, run: Tracked) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._text = Event, Summary, text_pb
        self._writer = EventFileWriter(str(run.folder / "tensorboard"))
        # TensorBoard drops all later steps: a run that resumes from a checkpoint logs them again.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=run.step + 1, session_log=start))
        self.log(run.step, {"record": html.escape(repr(dict(run.record)))})

    def log(self, step: int, values: Values) -> None:
        summary = self._summary()
        for name, value in values.items():
            if isinstance(value, str):
                summary.MergeFrom(self._text(name, _verbatim(value)))
            else:
                summary.value.add(tag=name, simple_value=value)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run: online, or as WANDB_MODE says. Its files are in the run's folder `wandb`."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self._text = lambda text: wandb.Html(f"<pre>{html.escape(text)}</pre>")
        self._run = wandb.init(
            project=_PROJECT, id=run.key, name=run.name, resume="allow", dir=str(run.folder), config=dict(run.record),
            settings=wandb.Settings(console="off"),  # we print ourselves
        )  # fmt: skip
        # W&B's own count of calls cannot go back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Values) -> None:
        self._run.log({"step": step} | _with_texts(values, self._text))

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A trackio run, stored on this machine unless trackio's own variables say otherwise."""

    def __init__(self, run: Tracked) -> None:
        import trackio

        self._text = lambda text: trackio.Markdown(_verbatim(text))
        options = {"name": run.key, "config": dict(run.record), "resume": "allow", "embed": False}
        with redirect_stdout(sys.stderr):  # standard output may be for JSON
            self._run = trackio.init(project=_PROJECT, **options)

    def log(self, step: int, values: Values) -> None:
        self._run.log(_with_texts(values, self._text), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


_TRACKERS: dict[str, Callable[[Tracked], Any]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio,
}  # fmt: skip


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError if a tracker is unknown, or if its library is not installed."""
    if isinstance(names, str):
        raise TypeError(f"Trackers are a list, such as [{names!r}].")
    for name in names:
        if name not in _TRACKERS:
            raise ValueError(f"--track {name} is unknown. Use one of {', '.join(_TRACKERS)}.")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f'--track {name}: its library is not installed. Run: pip install "groundling[{name}]"')


@contextmanager
def tracking(
    names: Sequence[Tracker], run: Tracked, notice: Callable[[str], None], *, asked: bool
) -> Iterator[Subscriber]:
    """Start trackers, yield a subscriber that sends events to them, and close them at the end.

    Training continues without a tracker that fails, after a `notice`. Raises ValueError if a tracker cannot start and
    was `asked` for in this session.
    """
    trackers: dict[Tracker, Any] = {}

    def attempt(name: Tracker, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # these libraries may raise anything
            trackers.pop(name, None)
            notice(f"Training continues without {name}, which failed: {_first_line(error)}")

    for name in names:
        try:
            check_trackers([name])
            trackers[name] = _TRACKERS[name](run)
        except Exception as error:
            if asked:
                raise ValueError(f"--track {name} could not start: {_first_line(error)}") from error
            notice(f"Training continues without {name}, which could not start: {_first_line(error)}")

    def tell(event: Event) -> None:
        if isinstance(event, Step | Evaluation | Sample | Replies | Finished):
            for name, tracker in list(trackers.items()):
                attempt(name, partial(tracker.log, event.step, values_of(event)))

    try:
        yield tell
    finally:
        for name, tracker in list(trackers.items()):
            attempt(name, tracker.close)


def values_of(event: Step | Evaluation | Sample | Replies | Finished) -> dict[str, float | str]:
    """What an event tells the trackers: figures and texts, by their names there."""
    values: dict[str, float | str | None]
    match event:
        case Step():
            names = ("loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second")
            figures = {name: getattr(event, name) for name in names} | event.figures
            values = {f"train/{name}": value for name, value in figures.items()}
        case Evaluation():
            values = {
                f"validation/{event.metric.removeprefix('validation ').replace(' ', '_')}": event.validation_loss,
                "validation/bits_per_byte": event.bits_per_byte,
                "train/mean_loss": event.training_loss,
                **{f"validation/{name.replace(' ', '_')}": value for name, value in event.figures.items()},
            }
        case Sample():
            values = {
                "sample": event.prompt + event.text,
                "sample/copied_share": event.copied_share,
                "sample/longest_copy": event.longest_copy,
            }
        case Replies():
            values = {"replies": "\n\n".join(map(_as_text, event.groups))}
        case Finished():
            values = {"verdict": event.verdict}
    return {name: v if isinstance(v, str) else float(v) for name, v in values.items() if v is not None}


def _as_text(group: ReplyGroup) -> str:
    """A prompt, and each reply with its reward."""
    pairs = zip(group.rewards, group.replies, strict=True)
    return "\n".join([group.prompt, *(f"{reward:.3g}  {reply}" for reward, reply in pairs)])


def _with_texts(values: Values, text: Callable[[str], Any]) -> dict[str, Any]:
    """`values`, each text as a library's own type for texts."""
    return {name: text(value) if isinstance(value, str) else value for name, value in values.items()}


def _verbatim(text: str) -> str:
    """As Markdown, which shows lines with four spaces before them as they are."""
    return "    " + text.replace("\n", "\n    ")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
