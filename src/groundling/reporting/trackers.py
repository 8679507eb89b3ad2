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
from typing import Any, Literal, Protocol, get_args

from groundling.training.events import Evaluation, Event, Finished, Sample, Step, Subscriber

Tracker = Literal["tensorboard", "wandb", "trackio"]
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


class _Library(Protocol):
    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def write(self, step: int, name: str, text: str) -> None: ...

    def close(self) -> None: ...


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
        self.write(run.step, "record", html.escape(repr(dict(run.record))))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(step, self._summary(value=values))

    def write(self, step: int, name: str, text: str) -> None:
        self._add(step, self._text(name, _verbatim(text)))

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run: online, or as WANDB_MODE says. Its files are in the run's folder `wandb`."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self._html = wandb.Html
        self._run = wandb.init(
            project=_PROJECT, id=run.key, name=run.name, resume="allow", dir=str(run.folder), config=dict(run.record),
            settings=wandb.Settings(console="off"),  # we print ourselves
        )  # fmt: skip
        # W&B's own count of calls cannot go back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def write(self, step: int, name: str, text: str) -> None:
        self._run.log({"step": step, name: self._html(f"<pre>{html.escape(text)}</pre>")})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A trackio run, stored on this machine unless trackio's own variables say otherwise."""

    def __init__(self, run: Tracked) -> None:
        import trackio

        self._markdown = trackio.Markdown
        options = {"name": run.key, "config": dict(run.record), "resume": "allow", "embed": False}
        with redirect_stdout(sys.stderr):  # standard output may be for JSON
            self._run = trackio.init(project=_PROJECT, **options)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def write(self, step: int, name: str, text: str) -> None:
        self._run.log({name: self._markdown(_verbatim(text))}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


_TRACKERS: dict[Tracker, Callable[[Tracked], _Library]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio,
}  # fmt: skip


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError if a tracker is unknown, or if its library is not installed."""
    for name in names:
        if name not in get_args(Tracker):
            raise ValueError(f"--track {name} is unknown. Use one of {', '.join(get_args(Tracker))}.")
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
    trackers: dict[Tracker, _Library] = {}

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
        for name, tracker in list(trackers.items()):
            attempt(name, partial(_forward, event, tracker))

    try:
        yield tell
    finally:
        for name, tracker in list(trackers.items()):
            attempt(name, tracker.close)


def _forward(event: Event, tracker: _Library) -> None:
    step, figures = figures_of(event)
    if figures:
        tracker.log(step, figures)
    if isinstance(event, Sample):
        tracker.write(step, "sample", event.prompt + event.text)
    elif isinstance(event, Finished):
        tracker.write(step, "verdict", event.verdict)


def figures_of(event: Event) -> tuple[int, dict[str, float]]:
    """The step of an event and its figures, by their names in trackers. Most events have none."""
    match event:
        case Step():
            names = ("loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second")
            values: dict[str, float | None] = {name: getattr(event, name) for name in names} | event.figures
            figures = {f"train/{name}": value for name, value in values.items()}
        case Evaluation():
            figures = {
                f"validation/{event.metric.removeprefix('validation ').replace(' ', '_')}": event.validation_loss,
                "validation/bits_per_byte": event.bits_per_byte,
                "train/mean_loss": event.training_loss,
                **{f"validation/{name}": value for name, value in event.figures.items()},
            }
        case Sample():
            figures = {"sample/copied_share": event.copied_share, "sample/longest_copy": event.longest_copy}
        case _:
            figures = {}
    return getattr(event, "step", 0), {name: float(value) for name, value in figures.items() if value is not None}


def _verbatim(text: str) -> str:
    """As Markdown, which shows lines with four spaces before them as they are."""
    return "    " + text.replace("\n", "\n    ")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
