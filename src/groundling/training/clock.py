"""Progress of a run, measured in steps or, with `--minutes`, in time."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from groundling.config import TrainingSettings
from groundling.parallel import processes
from groundling.training.state import TrainState

Kind = Literal["step", "evaluation", "save"]

_PICTURE = 2.5  # seconds after the last save, for verdict, loss.png, report.html and Python's exit
_UNMEASURED = 0.04  # of the budget is reserved for the last evaluation and save, until one was timed


def local_time() -> datetime:
    """Now, in UTC if the time zone (TZ) is impossible."""
    try:
        return datetime.now().astimezone()
    except (ValueError, OverflowError, OSError):
        return datetime.now(UTC)


@dataclass
class Timing:
    times: int = 1


class Clock:
    """Times steps, evaluations and saves, and decides from that when to end.

    A run with a time budget ends while its last evaluation and save still fit. Its progress is the share of the time
    that has passed, so the learning rate reaches its floor at the end on any machine.
    """

    def __init__(self, elapsed_before: float, settings: TrainingSettings) -> None:
        self._steps, self._eval_every = settings.steps, settings.eval_every
        self._budget = 60 * settings.minutes
        self._start = self._now() - elapsed_before
        self._seconds: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=20))

    def elapsed(self) -> float:
        return self._now() - self._start

    def _now(self) -> float:
        """With a time budget, the same for all processes: they decide by it."""
        return processes.clock() if self._budget else time.perf_counter()

    @contextmanager
    def timing(self, kind: Kind) -> Iterator[Timing]:
        """A context that times its body. Set `times` on the result if the body did the work several times."""
        start, timing = self._now(), Timing()
        yield timing
        self._seconds[kind].append((self._now() - start) / timing.times)

    def typical(self, kind: Kind) -> float:
        """Seconds that one takes. 0 if none was timed yet."""
        return statistics.median(self._seconds[kind]) if self._seconds[kind] else 0.0

    def progress(self, step: int) -> float:
        """In (0, 1]: the share of the run that is done after step `step` + 1."""
        return min(1.0, self.share(step + 1, self.elapsed() + self.typical("step")))

    def share(self, step: int, elapsed: float) -> float:
        """The share of the run that is done after `step` steps and `elapsed` seconds."""
        return elapsed / self._time_for_steps() if self._budget else step / self._steps

    def stage_progress(self, state: TrainState, end: float) -> float:
        """In (0, 1]: the share of the present stage that is done after the next step. `end` is where the stage ends,
        as a share of the run."""
        start = self.share(state.stage_step, state.stage_elapsed)
        return min(1.0, (self.progress(state.step) - start) / max(end - start, 1e-9))

    def is_over(self, step: int, share: float = 1.0) -> bool:
        """Whether `step` steps are that `share` of the run. By the clock: whether one more step would end farther from
        that moment than none."""
        if not self._budget:
            return step >= share * self._steps
        return step > 0 and self.elapsed() + self.typical("step") / 2 > share * self._time_for_steps()

    def seconds_left(self, step: int) -> float:
        if self._budget:
            return max(0.0, self._budget - self.elapsed())
        # The evaluation after the last step always happens.
        evaluations = (self._steps - 1) // self._eval_every - step // self._eval_every + 1
        return (self._steps - step) * self.typical("step") + evaluations * self.typical("evaluation")

    def _time_for_steps(self) -> float:
        if self._seconds["evaluation"]:
            closing = self.typical("evaluation") + self.typical("save")
        else:
            closing = _UNMEASURED * self._budget
        # However long the end takes, half of the time is for training.
        return max(self._budget - closing - _PICTURE, self._budget / 2)
