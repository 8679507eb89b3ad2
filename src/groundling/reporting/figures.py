"""The figures of post-training in words: which of them matter, and how their values look."""

from __future__ import annotations

from collections.abc import Mapping

from groundling.analysis.history import measured

SHARES = frozenset({"accuracy", "token_accuracy", "signal", "cut", "clipped"})
"""Figures from 0 to 1, which are shown as percent."""

HEADLINES = {
    "grpo": ("reward", "signal", "entropy", "length"),
    "dpo": ("accuracy", "margin"),
    "reward": ("accuracy", "margin"),
    "distill": ("length", "cut"),
}
"""By task, what to watch from step to step, beside the loss. The loss of grpo is no measure of progress."""


def shown(name: str, value: float) -> str:
    """A value as text: `71.3%` for a share, `0.8123` for others."""
    return f"{value:.1%}" if name in SHARES else f"{value:.4f}" if "loss" in name else f"{round(value, 4) + 0.0:.4g}"


def worded(name: str) -> str:
    return name.replace("_", " ")


def best_of(metric: str, value: float) -> str:
    """Such as `Best accuracy 71.3%`."""
    return f"Best {metric} {shown(metric, value)}"


def step_figures(task: str, figures: Mapping[str, float]) -> str:
    """What matters of a step's figures, such as `reward 0.412  signal 63.0%`. Empty if none does."""
    names = [name for name in HEADLINES.get(task, ()) if name in measured(figures)]
    return "  ".join(f"{worded(name)} {brief(name, figures[name])}" for name in names)


def brief(name: str, value: float) -> str:
    """A value in three digits."""
    return f"{value:.0%}" if name in SHARES else f"{value:.3g}"
