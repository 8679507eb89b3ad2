"""The loss of a run's model by place in the context, kept in the run's folder for its report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.data.tokens import Tokens
from groundling.evaluation.positions import PositionLoss, losses_by_position
from groundling.run.folder import RunFolder

_FILE = "positions.json"


def keep_position_losses(run: RunFolder, model: Any, tokens: Tokens, max_tokens: int) -> list[PositionLoss]:
    """Measure them, and write positions.json. `groundling report` draws it."""
    losses = losses_by_position(model, tokens, run.machine, max_tokens)
    rows = [dataclasses.asdict(loss) for loss in losses]
    storage.write_json(run.folder / _FILE, {"step": run.step, "losses": rows})
    return losses


def read_position_losses(folder: Path) -> tuple[int, Sequence[PositionLoss]]:
    """The step at which they were measured, and the losses. There are none without the file, or if it is damaged."""
    try:
        found = storage.read_json(folder / _FILE)
        losses = [PositionLoss(**row) for row in found["losses"]]
        numbers = [found["step"], *(n for loss in losses for n in (loss.first, loss.last, loss.tokens))]
        sound = all(type(n) is int and 0 <= n < 2**53 for n in numbers) and all(loss.last >= 1 for loss in losses)
        sound = sound and all(type(loss.loss) is float and math.isfinite(loss.loss) for loss in losses)
    except (OSError, ValueError, TypeError, KeyError):
        sound = False
    return (found["step"], losses) if sound else (0, [])
