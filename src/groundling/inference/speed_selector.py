"""SpeedSelector: choose the faster of two ways to do the same work by timing both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

_SOON, _LATE = 8.0, 100.0  # pause until the next try, as a multiple of its time: doubles while the choice is the same
_TRIES = 4  # steps in a row, because code that has not run for a while is slow at first
_HOPELESS = 4.0  # this many times slower: one try is enough


class SpeedSelector:
    """Decides whether an option makes steps faster, from times with and without it.

    Only for options that do not change the result: speed depends on the machine and on what else runs on it.
    """

    def __init__(self) -> None:
        self._known = defaultdict[Hashable, _Known](_Known)

    def takes(self, task: Hashable) -> bool:
        """Whether to use the option in the next step: what was faster for this task, and sometimes the other way."""
        known = self._known[task]
        if len(known.seconds) < 2:
            return bool(known.seconds)
        return known.pays == (known.rest > 0)

    def record(self, task: Hashable, taken: bool, seconds: float) -> None:
        """Note how long a step took, with the option (`taken`) or without."""
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
    seconds: dict[bool, float] = field(default_factory=dict)  # of a recent step, with the option and without
    rest: float = 0.0  # seconds until the slower way is tried again
    tries: int = 0  # of the slower way, in a row
    patience: float = _SOON

    @property
    def pays(self) -> bool:
        return self.seconds.get(True, 0.0) <= self.seconds.get(False, 0.0)
