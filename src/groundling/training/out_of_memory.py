"""Out of memory: how to recognize it, and what to make smaller.

This module does not import torch, so that the command line can use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from groundling.config import TrainingSettings
from groundling.parallel.exit_codes import START_AGAIN

T = TypeVar("T")

ADVICE = "Close other programs, or train a smaller model (--n-embd, --n-layer, --block-size)."


class OutOfMemoryError(MemoryError):
    """Nothing more can be made smaller automatically. The message says which settings to reduce."""


class StartAgain(OutOfMemoryError):
    """What ran out of memory is smaller from now on, but this process must start again, with all others."""

    exit_code = START_AGAIN

    def __init__(self, doing: str) -> None:
        super().__init__(
            f"Memory ran out {doing}. All processes must start again, with smaller parts. If nothing starts them, run "
            "the same command again."
        )


class HalfDoneError(MemoryError):
    """Memory ran out in the middle of an optimizer step: some weights may have changed, and others not."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's MemoryError, PyTorch's for a GPU, or the RuntimeError of its CPU allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


_ALLOCATORS = ("not enough memory", "can't allocate memory", "out of memory", "std::bad_alloc")


def halved(settings: TrainingSettings, least: int = 1) -> TrainingSettings | None:
    """The same optimizer step in micro-batches of half the size. None if a micro-batch then had fewer than `least`
    windows.

    The new size is the largest one up to a half that divides the windows of the step.
    """
    windows = settings.batch_size * settings.accumulate
    smaller = next((n for n in range(settings.batch_size // 2, least - 1, -1) if windows % n == 0), None)
    if smaller is None:
        return None
    return dataclasses.replace(settings, batch_size=smaller, accumulate=windows // smaller)


def retrying(action: Callable[[], T], shrink: Callable[[], None]) -> T:
    """Call `action()`. Each time that memory runs out, call `shrink()` and try again."""
    while True:
        try:
            return action()
        except Exception as error:
            if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                raise
        shrink()  # the error is freed by now, and with it the memory that the failed action had used


@contextmanager
def raised_as(error: MemoryError) -> Iterator[None]:
    """A context that raises `error` if memory runs out."""
    try:
        yield
    except Exception as cause:
        if not is_out_of_memory(cause):
            raise
        raise error from None
