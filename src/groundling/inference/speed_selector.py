"""Which of two ways is the faster one, found out on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

_SOON, _LATE = 8.0, 100.0  # times what a try took, until the next one: twice as long after each that changed nothing
_TRIES = 4  # steps in a row, since what has rested is slow at first
_HOPELESS = 4.0  # times as slow: one try is enough


class SpeedSelector:
    """Whether something pays, here and now: seconds with it and without, both measured where they are spent.

    For what changes nothing but the speed, which depends on the machine and on what else it does meanwhile.
    """

    def __init__(self) -> None:
        self._known = defaultdict[Hashable, _Known](_Known)

    def takes(self, task: Hashable) -> bool:
        """Whether the next step is to take it: as was faster for such a task so far, and now and then as was not."""
        known = self._known[task]
        if len(known.seconds) < 2:
            return bool(known.seconds)
        return known.pays == (known.rest > 0)

    def record(self, task: Hashable, taken: bool, seconds: float) -> None:
        """How long such a step took."""
        known = self._known[task]
        if taken in known.seconds and taken == known.pays:
            known.seconds[taken] += 0.1 * (seconds - known.seconds[taken])
            known.rest, known.tries = known.rest - seconds, 0
            return
        known.seconds[taken] = min(seconds, known.seconds.get(taken, seconds)) if known.tries else seconds
        known.tries += 1
        if known.tries == _TRIES or seconds > _HOPELESS * known.seconds.get(not taken, seconds):
            known.rest, known.tries = known.tries * seconds * known.patience, 0
            known.patience = _SOON if taken == known.pays else min(2 * known.patience, _LATE)


@dataclass
class _Known:
    seconds: dict[bool, float] = field(default_factory=dict)  # of a step with it and without, of the latest ones
    rest: float = 0.0  # seconds until the slower way is tried again
    tries: int = 0  # of it, in a row
    patience: float = _SOON

    @property
    def pays(self) -> bool:
        return self.seconds.get(True, 0.0) <= self.seconds.get(False, 0.0)
