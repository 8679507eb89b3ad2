"""A checkpoint is a folder that needs nothing else, in open formats, and is whole or not there.

checkpoints/step-000400/
  model.safetensors      the weights
  optimizer.safetensors  the optimizer's state
  state.json             where training stood: step, tokens, seconds, best loss, ...
  config.json            every setting
  tokenizer.json
  manifest.json          sizes and hashes, written last
checkpoints/best.json    {"checkpoint": "step-000400"}: a pointer that Windows can follow too
checkpoints/last.json
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from groundling import storage
from groundling.model.gpt import GPT
from groundling.training.optimizer import Optimizers, load_state_tensors, state_tensors


@dataclass
class TrainState:
    """Where training stands. With the weights and the optimizer's state, it is all that a resume needs:
    the order of the text and dropout are functions of the seed and the step."""

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0  # seconds of training, over all sessions
    evaluated_step: int = -1  # the last step at which an evaluation ended
    best_step: int = -1
    best_loss: float | None = None
    evaluations_since_best: int = 0
    loss_sum: float = 0.0  # of the training losses since the last evaluation
    loss_count: int = 0
    loss_scale: float = 2.0**16  # for float16 only: see fit.py
    steps_in_range: int = 0  # since the scale was changed


class Checkpoints:
    """The checkpoints of a run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, rising; whole or not."""
        names = [p.name.removeprefix("step-") for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def save(self, model: GPT, optimizer: Optimizers, state: TrainState, run_folder: Path, keep: int) -> Path:
        """Save, point `last` at it (and `best`, if this is the best step), then delete the oldest beyond `keep`."""
        path = self.path(state.step)
        if path.exists():
            try:
                # A resumed run comes by a step that was saved before: the same bits, unless they were damaged.
                storage.verify(path)
            except ValueError:
                storage.remove_folder(path)
        if not path.exists():
            with storage.new_folder(path, {"step": state.step}) as temporary:
                _write_tensors(temporary / "model.safetensors", model.state_dict())
                _write_tensors(temporary / "optimizer.safetensors", state_tensors(model, optimizer))
                storage.disk.write(temporary / "state.json", json.dumps(dataclasses.asdict(state), indent=1).encode())
                for name in ("config.json", "tokenizer.json"):
                    storage.disk.write(temporary / name, (run_folder / name).read_bytes())
        self._point("last", path)
        if state.best_step == state.step:
            self._point("best", path)
        if keep:
            spare = {self.pointed("best"), *(self.path(step) for step in self.steps()[-keep:])}
            for step in self.steps():
                if self.path(step) not in spare:
                    storage.remove_folder(self.path(step))
        return path

    def _point(self, name: str, path: Path) -> None:
        storage.write_sealed(self.folder / f"{name}.json", {"checkpoint": path.name})

    def pointed(self, name: str) -> Path | None:
        """The checkpoint that `best` or `last` names, if it is there."""
        try:
            target = self.folder / Path(storage.read_sealed(self.folder / f"{name}.json")["checkpoint"]).name
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return target if target.is_dir() else None

    def newest(self, notice: Callable[[str], None]) -> Path | None:
        """The newest whole checkpoint; damaged ones are passed over, and said."""
        for step in reversed(self.steps()):
            try:
                storage.verify(self.path(step))
                return self.path(step)
            except ValueError as error:
                notice(f"{error} The checkpoint before it is used.")
        return None


def load_weights(path: Path, model: GPT) -> None:
    """Fill `model` from a checkpoint. Raises ValueError if the weights do not fit it."""
    _load_into(model, _read_tensors(path / "model.safetensors"), path)


def load_training(path: Path, model: GPT, optimizer: Optimizers) -> TrainState:
    """Fill `model` and `optimizer` from a checkpoint and return where training stood."""
    load_weights(path, model)
    load_state_tensors(model, optimizer, _read_tensors(path / "optimizer.safetensors"))
    return read_state(path)


def read_state(path: Path) -> TrainState:
    values: dict[str, Any] = storage.read_json(path / "state.json")
    try:
        return TrainState(**values)
    except TypeError:
        raise ValueError(f"{path / 'state.json'} is not the state of a training run of this version.") from None


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None


def _load_into(model: GPT, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    wrong = own.keys() ^ tensors.keys() or {n for n in own if own[n].shape != tensors[n].shape}
    if wrong:
        raise ValueError(
            f"The weights in {path} do not fit the model in its config.json: {', '.join(sorted(wrong)[:3])}."
        )
    model.load_state_dict(tensors)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises OSError if they cannot be written."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        storage.disk.fill(path, lambda file: save_file(plain, file))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}.") from None
