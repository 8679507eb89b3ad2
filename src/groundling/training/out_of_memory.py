"""Where memory runs out: how it is told from other errors, and what is made smaller.

Nothing here imports torch, so that the command line can ask as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from groundling.config import TrainingSettings

ADVICE = "Choose a smaller --n-embd, --n-layer or --block-size, or end other programs."


class OutOfMemoryError(MemoryError):
    """Memory ran out where nothing can be made smaller by itself; a sentence says which setting can."""


class HalfDoneError(MemoryError):
    """Memory ran out in the midst of an optimizer's step: some weights may have had theirs, and others not."""


def is_out_of_memory(error: BaseException) -> bool:
    """Python's MemoryError, PyTorch's of a GPU, and what its allocator for CPUs says in a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in _ALLOCATORS)


_ALLOCATORS = ("not enough memory", "can't allocate memory", "out of memory", "std::bad_alloc")


def halved(settings: TrainingSettings) -> TrainingSettings | None:
    """The same step in smaller passes: half of the windows in each, and twice as many; None for a pass of one window.

    Where a half does not divide the step's windows, it is the next smaller number that does.
    """
    windows = settings.batch_size * settings.accumulate
    smaller = next((n for n in range(settings.batch_size // 2, 0, -1) if windows % n == 0), None)
    if smaller is None:
        return None
    return dataclasses.replace(settings, batch_size=smaller, accumulate=windows // smaller)


@contextmanager
def told_as(doing: str, advice: str = ADVICE) -> Iterator[None]:
    """Where memory runs out inside, raises OutOfMemoryError with a sentence that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"Memory ran out while {doing}. {advice}") from None
