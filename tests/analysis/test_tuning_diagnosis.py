"""Faults of post-training are named from the figures that its tasks log; healthy curves are told nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from groundling.analysis.diagnosis import diagnose, outcome, verdict
from groundling.analysis.history import History
from groundling.config import Config

N = 100
UP, DOWN = np.linspace(0.3, 0.8, N), np.linspace(0.5, 0.3, N)
HEALTHY: dict[str, dict[str, Any]] = {
    "grpo": {
        "reward": UP, "signal": np.full(N, 0.6), "entropy": DOWN, "length": np.full(N, 20.0), "cut": np.full(N, 0.02),
        "sampling_gap": np.full(N, 1e-4),
    },
    "dpo": {"accuracy": np.linspace(0.5, 0.9, N), "margin": UP},
    "reward": {"accuracy": np.linspace(0.5, 0.9, N), "margin": UP},
    "sft": {},
    "distill": {"length": np.full(N, 20.0), "cut": np.full(N, 0.02)},
}  # fmt: skip
SCORED: dict[str, dict[str, list[float]]] = {
    "grpo": {"accuracy": [0.4, 0.6, 0.7, 0.82], "kl": [0.0, 0.1, 0.2, 0.3]},
    "dpo": {"preference loss": [0.69, 0.6, 0.5, 0.45], "accuracy": [0.5, 0.7, 0.8, 0.82],
            "chosen_logprob": [-20, -20.5, -21, -21], "rejected_logprob": [-22, -25, -30, -33]},
    "reward": {"reward loss": [0.69, 0.6, 0.5, 0.45], "accuracy": [0.5, 0.7, 0.8, 0.82]},
    "sft": {"": [2.0, 1.2, 1.0, 0.9], "token_accuracy": [0.4, 0.6, 0.7, 0.75]},
    "distill": {"accuracy": [0.1, 0.3, 0.5, 0.6]},
}  # fmt: skip


def history(task: str, figures: dict[str, Any] | None = None, scored: Any = None, /, **settings: Any) -> History:
    """A run of 100 steps with four evaluations, healthy but for what is given."""
    config = Config.tuning(task, "data.jsonl", Config.build("", "nano"), "", **settings)
    trained, points = HEALTHY[task] | (figures or {}), SCORED[task] | (scored or {})
    metric = "reward" if "reward" in points else next(iter(points))
    corpus = {"training_tokens": 90_000, "validation_tokens": 9_000}
    lines: list[dict[str, Any]] = [{"event": "started", "steps": N, "epochs": 2.0, "corpus": corpus}]
    for i in range(N):
        values = {name: float(np.broadcast_to(np.asarray(value, float), N)[i]) for name, value in trained.items()}
        lines.append({"event": "step", "step": i + 1, "loss": 2.0 - i / N, "learning_rate": 1e-3, "elapsed": i + 1.0,
                      "figures": values})  # fmt: skip
    for i, step in enumerate((0, 33, 66, 100)):
        values = {name: float(value[i]) for name, value in points.items() if value and name != metric}
        line = {"event": "evaluation", "step": step, "validation_loss": points[metric][i], "elapsed": float(step),
                "training_loss": 1.0, "figures": values}  # fmt: skip
        lines.append(line | ({"metric": metric} if metric else {}))
    return History.read(lines, config)


GRPO: dict[str, Any] = {"task": "reverse"}


def test_healthy_curves_are_told_nothing() -> None:
    for task in HEALTHY:
        assert diagnose(history(task, **(GRPO if task == "grpo" else {}))) == [], task


def test_a_task_that_is_learned_has_neither_signal_nor_entropy_and_that_is_fine() -> None:
    learned = {"reward": np.linspace(0.4, 0.99, N), "signal": np.linspace(0.6, 0.02, N), "entropy": 0.5 - UP * 0.6}
    assert diagnose(history("grpo", learned, {"accuracy": [0.5, 0.8, 0.95, 0.99]}, **GRPO)) == []


@pytest.mark.parametrize(
    ("task", "figures", "scored", "settings", "kind", "words"),
    [
        ("grpo", {"reward": 0.02, "signal": 0.04}, {"accuracy": [0.02] * 4}, GRPO, "no signal",
         "from the start, only 4% of the groups"),
        ("grpo", {"signal": np.linspace(0.6, 0.01, N)}, {}, GRPO, "no signal", "in the last steps"),
        ("grpo", {"entropy": np.linspace(0.6, 0.01, N), "signal": np.linspace(0.6, 0.01, N)}, {}, GRPO,
         "entropy collapsed", "fell from 0.573 to 0.037 nats"),
        ("grpo", {"cut": 0.35}, {}, GRPO, "answers cut", "35% of the replies were cut off"),
        ("distill", {"cut": 0.97}, {}, {}, "answers never end", "97% of the replies"),
        ("grpo", {"sampling_gap": 0.05}, {}, GRPO, "sampler and trainer disagree", "differ by 0.050 nats"),
        ("grpo", {}, {"accuracy": [0.4, 0.41, 0.4, 0.41]}, GRPO, "reward without accuracy", "from 0.32 to 0.78"),
        ("grpo", {}, {"accuracy": [0.9, 0.8, 0.82, 0.82]}, GRPO, "worse than before", "from 90% to 82%"),
        ("grpo", {"reward": UP * 3}, {"accuracy": [], "reward": [0.1, 0.2, 0.5, 2.0], "kl": [0, 0.3, 0.6, 0.9]},
         {"reward": "judge"}, "far from the parent", "0.90 nats likelier"),
        ("grpo", {"tool_calls": np.linspace(0.3, 1.0, N)}, {}, GRPO, "always calls the tool", "from 0.33 to 0.97"),
        ("reward", {"accuracy": 0.5}, {"accuracy": [0.5, 0.51, 0.49, 0.5]}, {}, "no preference", "higher"),
        ("dpo", {"accuracy": 0.99}, {"accuracy": [0.5, 0.51, 0.49, 0.5]}, {}, "no preference",
         "99%: the pairs are too few"),
        ("dpo", {}, {"chosen_logprob": [-20, -24, -28, -32]}, {}, "chosen replies less likely",
         "--anchor 1"),
        ("sft", {}, {"": [2.0, 1.2, 1.3, 1.5]}, {}, "overfitting", "fewer --epochs"),
    ],
)  # fmt: skip
def test_a_fault_is_named(
    task: str, figures: dict[str, Any], scored: dict[str, Any], settings: dict[str, Any], kind: str, words: str
) -> None:
    found = diagnose(history(task, figures, scored, **settings))
    assert [finding.kind for finding in found] == [kind]
    assert words in str(found[0])


def test_greedy_replies_that_were_right_before_are_no_gaming() -> None:
    """Sampled replies only become as good as the most likely ones were."""
    assert diagnose(history("grpo", {}, {"accuracy": [0.8, 0.8, 0.81, 0.8]}, **GRPO)) == []


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("grpo", "went from 40.0% before training to 82.0%. It was still rising"),
        ("dpo", "Of unseen pairs, the model ranks 82% as people did"),
        ("reward", "the reward model ranks 82%"),
        ("sft", "fell from 2.000 to 0.900 at step 100, where 75% of the replies' tokens"),
        ("distill", "from 10.0% before training to 60.0%"),
    ],
)
def test_the_outcome_says_what_was_reached(task: str, words: str) -> None:
    found = history(task, **(GRPO if task == "grpo" else {}))
    assert words in outcome(found)
    assert verdict(found) == outcome(found)


def test_a_step_without_a_signal_measures_no_entropy() -> None:
    figures = {"signal": np.tile([0.0, 0.5], N // 2), "entropy": np.tile([0.0, 0.5], N // 2)}
    assert set(history("grpo", figures, **GRPO).figures["entropy"].values) == {0.5}


def test_epochs_are_those_of_the_examples() -> None:
    assert history("sft").epochs(50) == 1.0
