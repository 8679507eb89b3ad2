"""When a generation ends and a new model begins, which the one before teaches."""

from __future__ import annotations

from groundling.config import TrainingSettings
from groundling.training.checkpoints import TrainState
from groundling.training.clock import Clock


def end_of(generation: int, generations: int) -> float:
    """The share of a run after which so many of its generations are over: the second is twice as long as the first, the
    third three times. Who is taught can learn for longer before it knows the text by heart."""
    return min(1.0, generation * (generation + 1) / (generations * (generations + 1)))


def ends_now(state: TrainState, settings: TrainingSettings, clock: Clock) -> bool:
    """Whether another generation follows now."""
    share = end_of(state.generation, settings.generations)
    return share < 1 and state.step > state.born and clock.is_over(state.step, share)


def progress(state: TrainState, settings: TrainingSettings, clock: Clock) -> float:
    """In (0, 1]: the share of this generation that is behind it when the next step is done."""
    start, end = clock.share(state.born, state.born_at), end_of(state.generation, settings.generations)
    return min(1.0, (clock.progress(state.step) - start) / max(end - start, 1e-9))
