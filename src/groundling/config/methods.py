"""The settings of post-training, a dataclass for each method, and the training settings that suit it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from groundling.config import limits
from groundling.config.limits import Limits
from groundling.config.setting import check_numbers, setting

_WHOLE, _NOT_NEGATIVE = Limits(0), Limits(0, 1e6, fractions=True)
_EPOCHS = "How often each example is used, if you give neither steps nor minutes."
_MOST_EPOCHS = Limits(0, 1e6, fractions=True, above=True)


@dataclass(frozen=True)
class TuningSettings:
    """What all methods share."""

    epochs: float = setting(3.0, _EPOCHS, _MOST_EPOCHS)
    adapter: int = setting(
        0, "Train an adapter (LoRA) of this rank instead of all weights. 0: all weights.", Limits(0, 4096)
    )
    adapter_kind: Literal["lora", "rslora", "dora"] = setting("lora", "Kind of adapter: LoRA, rsLoRA or DoRA.")
    adapter_alpha: float = setting(0.0, "Scale of the adapter (LoRA's alpha). 0: twice the rank.", _NOT_NEGATIVE)

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class SftSettings(TuningSettings):
    """Supervised fine-tuning on conversations."""

    packing: bool = setting(False, "Put several short examples into one row. They do not see each other.")


@dataclass(frozen=True)
class DpoSettings(TuningSettings):
    """Direct preference optimization, and its relatives."""

    epochs: float = setting(1.0, _EPOCHS, _MOST_EPOCHS)
    loss_type: Literal["sigmoid", "ipo", "hinge", "kto", "orpo", "simpo"] = setting(
        "sigmoid", "The loss: sigmoid (DPO), or IPO, SLiC's hinge, KTO, ORPO, SimPO. The last two need no reference."
    )
    beta: float = setting(0.1, "How strongly the model is held near its parent. For orpo, the weight of the odds.",
                          limits.POSITIVE)  # fmt: skip
    label_smoothing: float = setting(
        0.0, "sigmoid: the share of pairs that may be labelled the wrong way round (cDPO).", Limits(0, 0.5, True)
    )
    gamma: float = setting(0.5, "simpo: the margin by which the chosen reply should win.", _NOT_NEGATIVE)
    anchor: float = setting(
        0.0, "Weight of an added loss of the chosen replies (RPO), which keeps them likely.", _NOT_NEGATIVE
    )


@dataclass(frozen=True)
class RewardSettings(TuningSettings):
    """A reward model, trained on pairs (Bradley-Terry)."""

    epochs: float = setting(1.0, _EPOCHS, _MOST_EPOCHS)
    center: float = setting(0.01, "Weight of a term that keeps rewards near 0.", _NOT_NEGATIVE)


@dataclass(frozen=True)
class GrpoSettings(TuningSettings):
    """Reinforcement learning from rewards: GRPO and RLOO."""

    task: str = setting("", "The task whose answers are checked. `groundling tasks` lists them.")
    level: int = setting(0, "Level of the task. 0: its default.", _WHOLE)
    reward: str = setting("", "A reward model, trained with `groundling reward`, that judges replies to the prompts.")
    num_generations: int = setting(8, "Replies to each prompt, which are compared with each other.", Limits(2, 4096))
    baseline: Literal["group", "loo"] = setting(
        "group", "What a reward is compared with: the mean of its group (GRPO), or of the others in it (RLOO)."
    )
    scale_rewards: Literal["none", "group"] = setting(
        "none", "group: divide by the spread of the group, as in the first GRPO. none: as in Dr. GRPO."
    )
    loss_type: Literal["dr_grpo", "grpo", "dapo", "rloo"] = setting(
        "dr_grpo",
        "How tokens are averaged: over the longest possible reply (dr_grpo), each reply (grpo), all tokens of the "
        "step (dapo), or not, with one ratio for each reply (rloo).",
    )
    epsilon: float = setting(
        0.2,
        "Clips how much an update may lower a probability. The first update of a batch, the only one here, is never "
        "clipped.",
        Limits(0, 1, True),
    )
    epsilon_high: float = setting(
        0.0, "Clips how much it may raise one (clip-higher). 0: as for lower ones.", _NOT_NEGATIVE
    )
    beta: float = setting(0.0, "Weight of the KL divergence from the parent. 0: none.", _NOT_NEGATIVE)
    max_completion_length: int = setting(0, "Tokens of a reply, at most. 0: what the task needs.", _WHOLE)
    temperature: float = setting(1.0, "Temperature of sampling, and of the loss.", Limits(0, 100, True, above=True))
    tool: bool = setting(False, "Let the model call the calculator.")


@dataclass(frozen=True)
class DistillSettings(TuningSettings):
    """Distillation: a student learns the probabilities of a teacher."""

    teacher: str = setting("", "The teacher's checkpoint.")
    divergence: Literal["forward", "reverse", "jsd"] = setting(
        "forward", "What is made small: KL(teacher, student), KL(student, teacher), or Jensen-Shannon."
    )
    beta: float = setting(0.5, "jsd: the weight of the teacher in the mixture.", Limits(0, 1, True, True, True))
    temperature: float = setting(1.0, "Divides the logits of both.", Limits(0, 100, True, above=True))
    on_policy: float = setting(0.0, "Share of steps on replies that the student wrote itself.", limits.SHARE)
    task: str = setting("", "Learn from replies to the prompts of this task. `groundling tasks` lists them.")
    level: int = setting(0, "Level of the task. 0: its default.", _WHOLE)
    max_completion_length: int = setting(0, "Tokens of a reply, at most. 0: what the task needs.", _WHOLE)


METHODS: dict[str, type[Any]] = {
    "sft": SftSettings, "dpo": DpoSettings, "reward": RewardSettings, "grpo": GrpoSettings, "distill": DistillSettings,
}  # fmt: skip
"""The settings of each post-training task, by the name of the task."""

_WIDTH = 128  # of the models for which the rates below were tried; wider models get lower ones
_RATES = {"sft": 1e-3, "dpo": 5e-5, "reward": 2e-4, "grpo": 1e-4, "distill": 1e-3}
_ADAPTED = 5.0  # the rate of an adapter, in rates of all weights
_STEP = {"sft": 32, "dpo": 16, "reward": 16, "grpo": 256, "distill": 32}  # examples, pairs or replies


def training_defaults(task: str, width: int, adapter: bool) -> dict[str, Any]:
    """The training settings of a method that the user did not give, for a model `width` channels wide."""
    rate = _RATES[task] * min(1.0, _WIDTH / width) * (_ADAPTED if adapter else 1.0)
    return {
        "learning_rate": float(f"{rate:.2g}"), "optimizer": "adamw", "schedule": "linear", "final_lr_fraction": 0.1,
        "weight_decay": 0.0, "weight_average": 0.0, "beta2": 0.95 if task != "grpo" else 0.99,
        "batch_size": _STEP[task], "accumulate": 1,
    }  # fmt: skip


def method_fields(task: str) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a method by name."""
    return {field.name: field for field in dataclasses.fields(METHODS[task])}
