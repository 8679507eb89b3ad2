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
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from groundling import storage
from groundling.model.gpt import GPT
from groundling.training.optimizer import Optimizers, load_state_tensors, state_shapes, state_tensors
from groundling.training.tensors import read_shapes, read_tensors


@dataclass
class TrainState:
    """Where training stands. With the weights and the optimizer's state, it is all that a resume needs:
    the order of the text and dropout are functions of the seed and the step."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # for those read from a file

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


_NAME = re.compile("step-[0-9]{6,18}")  # of a checkpoint's folder
_STATE = TypeAdapter(TrainState)


class Checkpoints:
    """The checkpoints of a run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, rising; whole or not."""
        names = [path.name for path in self.folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name)]
        return sorted(int(name.removeprefix("step-")) for name in names)

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
            target = storage.read_sealed(self.folder / f"{name}.json").get("checkpoint")
        except (OSError, ValueError):
            return None
        if not isinstance(target, str) or not _NAME.fullmatch(target):  # whatever it is, it leads nowhere else
            return None
        return self.folder / target if (self.folder / target).is_dir() else None

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
    """Fill `model` from a checkpoint. Raises ValueError if the weights do not fit it, or are not all numbers."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(read_tensors(path / "model.safetensors", expected))


def load_training(path: Path, model: GPT, optimizer: Optimizers) -> TrainState:
    """Fill `model` and `optimizer` from a checkpoint and return where training stood.

    Raises ValueError if one of them does not fit it, or is not all numbers.
    """
    load_weights(path, model)
    file = path / "optimizer.safetensors"
    if read_shapes(file):  # else no step was done
        load_state_tensors(model, optimizer, read_tensors(file, state_shapes(model, optimizer)))
    return read_state(path)


def read_state(path: Path) -> TrainState:
    """Where training stood; what was added to it later has its default in older ones. Raises ValueError if the file is
    damaged, or of a newer version."""
    file = path / "state.json"
    try:
        state = _STATE.validate_json(json.dumps(storage.read_json(file)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(each)[:80] for each in problem["loc"])
        raise ValueError(
            f"{file} is not a training state of this version: {where}: {problem['msg'].lower()}."
        ) from None
    if not all(-1 <= number < 2**63 for number in vars(state).values() if isinstance(number, int)):
        raise ValueError(f"{file} is damaged: it has a number that cannot be.")
    return state


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises OSError if they cannot be written."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        storage.disk.fill(path, lambda file: save_file(plain, file))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}.") from None
