"""Where a run comes from: the runs before it, and those that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DID = {"pretraining": "pretrained", "distill": "distilled"}


class Origin:
    """A run's ancestors, oldest first, from its record's `lineage`, and the runs that it uses, from its `others`.

    Each is a dictionary of `run`, `task`, `step`, `weights` and `corpus`.
    """

    def __init__(self, record: Mapping[str, Any], task: str) -> None:
        self.ancestors: list[Mapping[str, Any]] = record.get("lineage", [])
        self.others: Mapping[str, Mapping[str, Any]] = record.get("others", {})
        self._task, self._corpus = task, record["corpus"]["name"]

    @property
    def sentence(self) -> str:
        """Such as `Pretrained as base on a.txt (2,000 steps), then sft as base-sft on b.jsonl (300 steps), then grpo on
        sums. Reward: judge, step 50.`"""
        if not self.ancestors:
            first = f"Trained from scratch on {self._corpus}" if self._task == "pretraining" else self._here()
        else:
            first = ", then ".join([*(f"{_past(a)}" for a in self.ancestors), self._here()])
        used = [f"{role.capitalize()}: {other['run']}, step {other['step']:,}" for role, other in self.others.items()]
        return ". ".join([first[:1].upper() + first[1:], *used])

    def _here(self) -> str:
        return f"{_DID.get(self._task, self._task)} on {self._corpus}"


def _past(ancestor: Mapping[str, Any]) -> str:
    did = _DID.get(ancestor["task"], ancestor["task"])
    return f"{did} as {ancestor['run']} on {ancestor['corpus']} ({ancestor['step']:,} steps)"
