"""What a diagnosis consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "diverged", "seeing the future", "leaking validation",
    "too good to be true", "unlike validation", "small validation", "not learning",
    "rate too high", "rate too low", "decayed too early", "overfitting", "exhausted text", "too large for its time",
    "sampler and trainer disagree", "answers never end", "answers cut", "entropy collapsed", "no signal",
    "worse than before", "reward without accuracy", "far from the parent", "always calls the tool",
    "no preference", "chosen replies less likely",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One problem. `evidence` quotes the figures, and `advice` says what to do."""

    kind: Kind
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind.capitalize()}: {self.evidence} {self.advice}"
