"""What the curves say, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_CLEAR = 0.01  # nats: a rise of the validation loss beyond this is not taken for noise
_SLOPE = 0.005  # a fall of less than this share of the loss since the evaluation before is called level


@dataclass(frozen=True)
class Point:
    """One evaluation. `training_loss` is the mean since the one before."""

    step: int
    validation_loss: float
    training_loss: float | None = None


def verdict(points: Sequence[Point]) -> str:
    """One or two sentences: still learning, level, or overfitting, and what to do."""
    if len(points) < 2:
        return "Too few evaluations to say how it went."
    best, last, before = min(points, key=lambda p: p.validation_loss), points[-1], points[-2]
    if last.validation_loss > best.validation_loss + _CLEAR:
        learning = last.training_loss is not None and last.training_loss < best.validation_loss
        if learning:
            return (
                f"Overfitting since step {best.step:,}: it went on learning its training text by heart while the "
                f"validation loss rose by {last.validation_loss - best.validation_loss:.3f}. The checkpoint of step "
                f"{best.step:,} is kept as best; more text, more dropout or a smaller model would carry it further."
            )
        return (
            f"The validation loss was best at step {best.step:,} and rose by "
            f"{last.validation_loss - best.validation_loss:.3f} since, the training loss with it: "
            "a lower learning rate may help."
        )
    if before.validation_loss - last.validation_loss > _SLOPE * last.validation_loss:
        return "Still learning when it ended: more steps would lower the loss further."
    return "The validation loss has levelled off: at these settings, more steps would change little."
