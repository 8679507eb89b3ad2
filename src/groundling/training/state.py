"""The training state: everything a resume needs besides weights and optimizer state."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from groundling import storage
from groundling.training.divergence import DivergenceGuard
from groundling.training.step import LossScaler


@dataclass
class TrainState:
    """The order of examples and dropout are functions of seed and step, so they have no state."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # also of scaler and guard

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0  # seconds of training, over all sessions
    evaluated_step: int = -1  # the last step that was evaluated
    best_step: int = -1
    best_score: float | None = None
    evaluations_since_best: int = 0
    loss_sum: float = 0.0  # of the training losses since the last evaluation
    loss_count: int = 0
    stage: int = 1
    stage_step: int = 0  # steps before this stage, ...
    stage_elapsed: float = 0.0  # and seconds
    scaler: LossScaler = field(default_factory=LossScaler)
    guard: DivergenceGuard = field(default_factory=DivergenceGuard)

    def note_changes(self, text_since: int, extended_at: int | None) -> None:
        """Forget what no longer counts: at step `text_since` the run got its current text, and at step `extended_at`
        its current end."""
        if 0 < self.best_step <= text_since:  # the best on another text: evaluate again
            self.best_step, self.best_score, self.evaluations_since_best = -1, None, 0
            self.evaluated_step = min(self.evaluated_step, self.step - 1)
        if self.step == extended_at:
            self.evaluations_since_best = 0

    def to_dict(self) -> dict[str, Any]:
        """One flat dict, ready for JSON."""
        values = dataclasses.asdict(self)
        scaler, guard = values.pop("scaler"), values.pop("guard")
        return {**values, **scaler, **guard}


_ADAPTER = TypeAdapter(TrainState)
_PARTS = {"scaler": LossScaler, "guard": DivergenceGuard}
_RENAMED = {
    "best_loss": "best_score", "generation": "stage", "born": "stage_step", "born_at": "stage_elapsed",
    "sound_step": "last_good_step", "rate_share": "lr_scale", "passed_over": "skipped_steps",
}  # fmt: skip
"""Names in the state.json of earlier versions."""


def read_state(checkpoint: Path) -> TrainState:
    """Read `state.json` of a checkpoint. Fields that an older version did not save get their defaults.

    Raises ValueError if the file is damaged or from a newer version.
    """
    file = checkpoint / "state.json"
    values = storage.read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: it is not a JSON object.")
    flat: dict[str, Any] = {_RENAMED.get(name) or name: value for name, value in values.items()}
    for part, kind in _PARTS.items():
        names = [field.name for field in dataclasses.fields(kind)]
        flat[part] = {name: flat.pop(name) for name in names if name in flat}
    try:
        state = _ADAPTER.validate_json(json.dumps(flat))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(each)[:80] for each in problem["loc"])
        raise ValueError(
            f"{file} is not a training state of this version: {where}: {problem['msg'].lower()}."
        ) from None
    if not all(-1 <= number < 2**63 for number in state.to_dict().values() if isinstance(number, int)):
        raise ValueError(f"{file} is damaged: one of its numbers is out of range.")
    return state
