"""Checks of chapter 5, "Reading a curve"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from groundling.course.checks import expect, expect_close


def smoothed(answer: Callable[..., Any]) -> None:
    losses = [4.0, 2.0, 3.0, 1.0, 5.0, 0.0]
    found = answer(list(losses), 3)
    expect(found is not None, "It should return a list.")
    expect(len(found) == len(losses), f"It should return {len(losses)} values, one for each loss, not {len(found)}.")
    changed = answer([*losses[:-1], 100.0], 3)
    expect(
        all(abs(float(a) - float(b)) < 1e-9 for a, b in zip(found[:-1], changed[:-1], strict=True)),
        "A later loss changes the average of earlier steps. Average backwards only.",
    )
    expect_close("The first value", float(found[0]), 4.0, hint="The first step has none before it: it is its own mean.")
    expect_close("The second value", float(found[1]), 3.0, hint="The first steps average only what there is.")
    wanted = [4.0, 3.0, 3.0, 2.0, 3.0, 2.0]
    expect_close("The averages", [float(x) for x in found], wanted, hint="Each is of `width` losses, its own included.")


def best_step(answer: Callable[..., Any]) -> None:
    steps = [100, 200, 300, 400]
    found = answer(list(steps), [2.0, 1.5, 1.8, 1.9])
    expect(found is not None, "It should return a step.")
    expect(int(found) != 1, "It should return the step, not its place in the list.")
    expect(int(found) != 400, "That is the last step. The best is the one with the lowest loss.")
    expect(int(found) == 200, f"The lowest loss, 1.5, is at step 200, not at step {found}.")
    same = int(answer(list(steps), [2.0, 1.5, 1.5, 1.9]))
    expect(same == 200, f"Two steps have the same lowest loss: choose the first, 200, not {same}.")
    for bad in (math.nan, -math.inf):
        for place in (0, 2, 3):
            losses = [2.0, 1.5, 1.8, 1.9]
            losses[place] = bad
            here = answer(list(steps), losses)
            expect(
                here is not None and int(here) == 200,
                f"With the losses {losses}, it is 200, not {here}. Losses that are not finite do not count.",
            )


_HEALTHY = {"training": [3.0, 2.2, 1.9], "validation": [2.6, 2.1, 1.95], "epochs": 0.8, "one_gram": 3.3,
            "best_ngram": 1.7}  # fmt: skip
_LATER = {"epochs": 12.0}


def name_fault(answer: Callable[..., Any]) -> None:
    def asked(wanted: str, hint: str, **changes: Any) -> None:
        run = {name: list(x) if isinstance(x, list) else x for name, x in (_HEALTHY | changes).items()}
        said = answer(**run)
        shown = ", ".join(f"{name} {value}" for name, value in (_HEALTHY | changes).items())
        expect(said == wanted, f"A run with {shown} is {wanted!r}, not {said!r}. {hint}".strip())

    asked("healthy", "Nothing is wrong with it.")
    asked("diverged", "NaN is neither above nor below any number: ask math.isfinite.", training=[3.0, 2.5, math.nan])
    asked("diverged", "Infinite losses count, too, and those of validation.", validation=[2.6, math.inf, 2.1])
    asked("diverged", "Look at all losses, not only at the last.", training=[3.0, math.nan, 2.5])
    asked("too good to be true", "In the first epoch nothing can be learned by heart.", training=[2.0, 0.5, 0.1],
          validation=[2.0, 0.6, 0.2])  # fmt: skip
    asked("unlike validation", "New text should be as easy as new text.", validation=[4.0, 3.5, 3.0])
    asked("not learning", "Compare with the 1-gram model: ln V is what guessing reaches.",
          training=[3.5, 3.3, 3.28], validation=[3.4, 3.3, 3.3])  # fmt: skip
    asked("overfitting", "Compare the last validation loss with the lowest.", training=[2.0, 1.5, 0.9],
          validation=[2.1, 1.8, 2.2], **_LATER)  # fmt: skip
    asked("overfitting", "A low training loss after many epochs is memorized, not impossible.",
          training=[2.0, 1.0, 0.3], validation=[2.1, 1.8, 2.6], **_LATER)  # fmt: skip
    asked("healthy", "A gap after many epochs is usual. Overfitting is a rise of the validation loss.",
          training=[2.0, 1.6, 1.2], validation=[2.1, 1.8, 1.7], **_LATER)  # fmt: skip
    asked("healthy", "If the training loss is above the best validation loss, the rise has another cause.",
          training=[2.6, 2.3, 2.2], validation=[2.4, 2.1, 2.15], **_LATER)  # fmt: skip
