"""Groups of replies that a model wrote while it trained by rewards, for pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from groundling.escape import printable
from groundling.reporting.plot import Lines

_POSITIONS = 60  # of the slider
_CHARACTERS = 400_000  # of all replies on the page together


def rollout_slides(lines: Lines) -> list[dict[str, Any]]:
    """Evenly spread steps with the first and the last, as many as a page can hold. Each has its `step`, `said`, a line
    about it, and `groups`: a prompt, and its replies from the best to the worst, each with its reward as text, and with
    where that is between the lowest reward of all steps (0) and the highest (1)."""
    lines = [line for line in lines if line["groups"]]
    if not lines:
        return []
    longest = max(sum(map(_size, line["groups"])) for line in lines)
    n = min(len(lines), _POSITIONS, max(2, _CHARACTERS // max(longest, 1)))
    chosen = [lines[i] for i in np.linspace(0, len(lines) - 1, n).round().astype(int)]
    rewards = [reward for line in chosen for group in line["groups"] for reward in group["rewards"]]
    low, high = min(rewards, default=0.0), max(rewards, default=1.0)

    def share(reward: float) -> float:
        return round((reward - low) / (high - low), 3) if high > low else float(reward > 0)

    def shown(group: Mapping[str, Any]) -> dict[str, Any]:
        ranked = sorted(zip(group["rewards"], group["replies"], strict=False), key=lambda each: -each[0])
        replies = [[f"{reward:.3g}", printable(text.strip("\n")), share(reward)] for reward, text in ranked]
        return {"prompt": printable(group["prompt"].strip("\n")), "replies": replies}

    return [
        {"step": line["step"], "said": _about(line), "groups": [shown(group) for group in line["groups"]]}
        for line in chosen
    ]


def _size(group: Mapping[str, Any]) -> int:
    return len(group["prompt"]) + sum(map(len, group["replies"]))


def _about(line: Mapping[str, Any]) -> str:
    rewards = [reward for group in line["groups"] for reward in group["rewards"]]
    mean = f" · mean reward of these replies {np.mean(rewards):.3g}" if rewards else ""
    return f"step {line['step']:,}{mean}"
