"""Faults that a resume could have, planted by resumptions.py. The tests must find each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def after_load(change: Callable[[Any, Any], None]) -> None:
    """Something is not brought back as it was saved: `change` gets the learner and the state."""
    from groundling.training.learner import Learner

    load = Learner.load

    def changing(self: Learner, checkpoint: Path) -> Any:
        state = load(self, checkpoint)
        change(self, state)
        return state

    Learner.load = changing  # type: ignore[method-assign]


def forget(quantity: str) -> None:
    """One quantity of the optimizer's state is not brought back, of one parameter."""

    def change(learner: Any, state: Any) -> None:
        states = [learner.optimizer.state_of(parameter) for parameter in learner.model.parameters()]
        next(state for state in states if quantity in state)[quantity].zero_()

    after_load(change)


def keep_average(learner: Any, state: Any) -> None:
    """Training continues with the average, in place of the weights that it is of."""
    for name, parameter in learner.model.named_parameters():
        parameter.data.copy_(learner.average._averages[name])


def lose_average(learner: Any, state: Any) -> None:
    """The average begins anew."""
    learner.average.forget()


def spoil_teacher(learner: Any, state: Any) -> None:
    """The model that teaches is another one."""
    for parameter in learner.task._teacher.parameters():
        parameter.mul_(1.01)


def shift_schedule() -> None:
    """The learning rate is that of the next step."""
    from groundling.training.clock import Clock

    progress = Clock.progress
    Clock.progress = lambda self, step: progress(self, step + 1)  # type: ignore[method-assign]


def shift_dropout() -> None:
    """Dropout is drawn with the seed of the next step."""
    from groundling.training import step

    dropout_seed = step._dropout_seed
    step._dropout_seed = lambda seed, step, *place: dropout_seed(seed, step + 1, *place)


def shift_data() -> None:
    """Each window of the text begins one token later."""
    from groundling.data.tokens import Tokens

    windows = Tokens.windows
    Tokens.windows = lambda self, starts, length: windows(  # type: ignore[method-assign]
        self, starts + (starts.max() + length < len(self)), length
    )


def shift_order() -> None:
    """The batches are those of the next step."""
    from groundling.data.batches import WindowSampler

    offsets = WindowSampler.offsets
    WindowSampler.offsets = lambda self, step: offsets(self, step + 1)  # type: ignore[method-assign]


def next_weight(learner: Any, state: Any) -> None:
    """One weight is the next larger number."""
    import torch

    weight = learner.model.wte.weight.data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


def session_seeds() -> None:
    """Replies are drawn with random numbers of the session, not of the step."""
    import numpy as np

    drawn = np.random.default_rng(1)
    _change_replies(lambda seeds: [int(drawn.integers(2**32))])


def same_seeds() -> None:
    """Replies are drawn with the same seed in all steps."""
    _change_replies(lambda seeds: seeds[:1])


def _change_replies(change: Callable[[Any], Any]) -> None:
    from groundling.tasks import distill, grpo, replies

    sample = replies.sample_groups

    def changed(model: Any, prompts: Any, part: Any, indices: Any, n: int, seeds: Any, *rest: Any) -> Any:
        return sample(model, prompts, part, indices, n, change(seeds), *rest)

    for module in (grpo, distill):
        vars(module)["sample_groups"] = changed


def remembered_rewards() -> None:
    """A reply earns less the more replies were rewarded before."""
    from groundling.tasks.prompts import TaskPrompts

    rewards, calls = TaskPrompts.rewards, [0]

    def remembering(self: Any, prompts: Any, replies: Any) -> list[float]:
        calls[0] += 1
        return [reward / calls[0] for reward in rewards(self, prompts, replies)]

    TaskPrompts.rewards = remembering  # type: ignore[method-assign]


def session_coin() -> None:
    """Who writes the replies is decided by random numbers of the session."""
    import numpy as np

    from groundling.tasks.distill import Distill

    drawn = np.random.default_rng(1)
    Distill.batch = lambda self, step, model: self.inner.batch(  # type: ignore[method-assign]
        step, model if drawn.random() < self.method.on_policy or self._teacher is None else self._teacher
    )


def present_reference(learner: Any, state: Any) -> None:
    """The reference is the model as it was loaded."""
    import copy

    class Present:
        checkpoint = learner.initial.checkpoint
        build = staticmethod(lambda: copy.deepcopy(learner.model))

    learner.task.initial = Present


def present_parent() -> None:
    """The parent that the model is held near is the model as it was loaded."""
    import copy

    from groundling.training.trainer import Trainer

    compile_model = Trainer.compile

    def changing(self: Trainer) -> None:
        compile_model(self)
        self.task._parent = copy.deepcopy(self.learner.model).requires_grad_(False).eval()  # type: ignore[attr-defined]

    Trainer.compile = changing  # type: ignore[method-assign]


def lose_adapter(learner: Any, state: Any) -> None:
    """The adapter is as it was at the start."""
    from groundling.model.adapter import Adapter

    fresh = Adapter(learner.initial.build(), learner.adapter.spec, learner.initial.seed)
    learner.adapter.load_state_dict(fresh.state_dict())
    learner.adapter.merge()


def shift_examples() -> None:
    """The examples are those of the next step."""
    from groundling.data.examples import ExampleSampler

    rows = ExampleSampler.rows
    ExampleSampler.rows = lambda self, step: rows(self, step + 1)  # type: ignore[method-assign]


TASK_MUTATIONS: dict[str, tuple[str, Callable[[], None]]] = {
    "place in the examples": ("sft", shift_examples),
    "adapter": ("sft-adapter", lambda: after_load(lose_adapter)),
    "reference of dpo": ("dpo", lambda: after_load(present_reference)),
    "parent of grpo": ("grpo-rloo", present_parent),
    "seeds of replies": ("grpo", session_seeds),
    "steps of the seeds": ("grpo", same_seeds),
    "rewards that remember": ("grpo", remembered_rewards),
    "coin of distillation": ("distill-own", session_coin),
}
"""Faults of the methods after pretraining, each with the method that it is planted in."""

PRETRAINING_MUTATIONS: dict[str, Callable[[], None]] = {
    "first moment of AdamW": lambda: forget("exp_avg"),
    "second moment of AdamW": lambda: forget("exp_avg_sq"),
    "step count of AdamW": lambda: forget("step"),
    "momentum of Muon": lambda: forget("momentum"),
    "weights that the model is the average of": lambda: after_load(keep_average),
    "average of the weights": lambda: after_load(lose_average),
    "weights of the teacher": lambda: after_load(spoil_teacher),
    "step at which the generation began": lambda: after_load(lambda learner, state: setattr(state, "stage_step", 0)),
    "step of the schedule": shift_schedule,
    "seed of dropout": shift_dropout,
    "data by one token": shift_data,
    "data by one batch": shift_order,
    "last bit of one weight": lambda: after_load(next_weight),
    "mean of the losses": lambda: after_load(lambda learner, state: setattr(state, "loss_sum", 0.0)),
}
MUTATIONS = PRETRAINING_MUTATIONS | {name: plant for name, (_, plant) in TASK_MUTATIONS.items()}
