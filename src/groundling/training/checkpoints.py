"""A checkpoint is a folder that needs nothing else, in open formats, and is whole or not there.

checkpoints/step-000400/
  model.safetensors      the weights, or their average over the latest steps
  optimizer.safetensors  the optimizer's state; with an average, the weights as trained, too; and the weights of the
                         generation before, which teaches this one
  state.json             where training stood: step, tokens, seconds, best loss, ...
  config.json            every setting
  tokenizer.json
  manifest.json          sizes and hashes, written last
checkpoints/best.json    {"checkpoint": "step-000400"}: a pointer that Windows can follow too
checkpoints/last.json
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from groundling import __version__, storage
from groundling.config import TrainingSettings
from groundling.machine import versions
from groundling.model.gpt import GPT
from groundling.model.weights_file import read_shapes, read_tensors
from groundling.training.optimizer import TEACHER, Optimizers, load_state_tensors, state_shapes, state_tensors


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
    generation: int = 1
    born: int = 0  # the steps that were done before this generation, ...
    born_at: float = 0.0  # and the seconds
    # For rescue.py:
    sound_step: int = 0  # the last step that was saved as a matter of course: where to go back to
    recent_losses: list[float] = field(default_factory=list)
    bad_steps: list[int] = field(default_factory=list)  # those that were left out just now, in a row
    rollbacks: int = 0
    rate_share: float = 1.0  # what they have left of the learning rates
    passed_over: list[int] = field(default_factory=list)  # steps that are not made any more


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
        """Save, read it back, point `last` at it and `best` at the best one, then delete the oldest beyond `keep`.

        Two whole checkpoints stand at any time, whatever `keep` says, since one may be damaged while it lies there;
        0 keeps all. Raises OSError with a sentence if the disk will not have it; those before are then as they were.
        """
        path, n_bytes = self.path(state.step), size_of(model, optimizer, state.generation)
        # What was logged before this step must not be missing after a power cut: it is not computed again.
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (file := run_folder / name).exists():
                storage.patiently(file, 0, partial(storage.disk.sync, file))
        storage.patiently(path, n_bytes, lambda: self._save(path, model, optimizer, state, run_folder))
        self._point("last", path)
        best = self.path(state.best_step)
        if self.pointed("best") != best and best.exists():
            self._point("best", best)
        if keep:
            self._prune(max(keep, 2), {best, self.path(state.sound_step)})
        return path

    def _save(self, path: Path, model: GPT, optimizer: Optimizers, state: TrainState, run_folder: Path) -> None:
        if path.exists():
            try:
                # A resumed run comes by a step that was saved before: the same bits, unless they were damaged.
                self.verify(path)
                return
            except ValueError:
                storage.remove_folder(path)
        files = {name: (run_folder / name).read_bytes() for name in ("config.json", "tokenizer.json")}
        about = {
            "step": state.step,
            "corpus": storage.read_json(run_folder / "config.json").get("corpus", {}).get("fingerprint"),
            "versions": versions() | {"groundling": __version__},
        }
        with storage.new_folder(path, about) as temporary:
            with optimizer.averaged():
                _write_tensors(temporary / "model.safetensors", model.state_dict())
            _write_tensors(temporary / "optimizer.safetensors", state_tensors(model, optimizer))
            storage.disk.write(temporary / "state.json", json.dumps(dataclasses.asdict(state), indent=1).encode())
            for name, content in files.items():
                storage.disk.write(temporary / name, content)
        try:
            self.verify(path)
        except ValueError as error:
            raise OSError(errno.EIO, f"what the disk gives back is not what was saved ({error})") from None

    def verify(self, path: Path, again: bool = True) -> None:
        """Raise ValueError with a sentence if a checkpoint is not whole, or is not that of the step in its name.

        Without `again`, what this process has verified, and nobody has touched since, is believed.
        """
        try:
            step = (storage.verify(path) if again else storage.verify_once(path)).get("step")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
        if path != self.path(step if isinstance(step, int) else -1):
            raise ValueError(f"{path} is not what its name says: it holds step {step}.")

    def _prune(self, keep: int, spare: set[Path]) -> None:
        """Delete what is older than the newest `keep` whole checkpoints, but not what is to be spared."""
        whole = 0
        for path in map(self.path, reversed(self.steps())):
            if whole >= keep and path not in spare:
                with suppress(OSError):  # it costs room, and the next save tries again
                    storage.remove_folder(path)
            elif whole < keep:
                with suppress(ValueError):
                    self.verify(path, again=False)
                    whole += 1

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
        steps = self.steps()
        for path in map(self.path, reversed(steps)):
            try:
                self.verify(path)
                return path
            except ValueError as error:
                notice(f"{error} The checkpoint before it is used." if path != self.path(steps[0]) else str(error))
        if steps:
            notice("No checkpoint is whole: training begins again at step 0.")
        return None

    def check_room(self, model: GPT, optimizer: Optimizers, settings: TrainingSettings) -> None:
        """Raise OSError with a sentence if the disk has no room for the checkpoints that will stand at once."""
        count = max(settings.keep_checkpoints, 2) + 2  # the best one, and the one that is being written
        if not settings.keep_checkpoints:
            count = settings.steps // settings.checkpoint_every + 2  # all; those at a new best loss come on top
        one = size_of(model, optimizer, settings.generations)
        needed = one * max(count - len(self.steps()), 1)
        home = next(folder for folder in self.folder.absolute().parents if folder.exists())
        if needed > (free := storage.free_bytes(home)):
            raise OSError(
                f"The checkpoints of this run need {storage.in_bytes(needed)} more ({count} of "
                f"{storage.in_bytes(one)}), and {storage.in_bytes(free)} are free on the disk of {home}. Delete "
                "what you do not need there, choose another disk with --out, or a smaller model."
            )


def size_of(model: GPT, optimizer: Optimizers, generations: int = 1) -> int:
    """About how many bytes a checkpoint has: weights, the optimizer's state, a teacher's weights, and some kilobytes
    beside them."""
    copies = 1 + (generations > 1)
    count = sum(p.numel() * p.element_size() * (copies + len(optimizer.quantities(p))) for p in model.parameters())
    return 20_000 + count


def load_weights(path: Path, model: GPT) -> None:
    """Fill `model` from a checkpoint. Raises ValueError if the weights do not fit it, or are not all numbers."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(read_tensors(path / "model.safetensors", expected))


def load_training(path: Path, model: GPT, optimizer: Optimizers) -> TrainState:
    """Fill `model` and `optimizer` from a checkpoint and return where training stood.

    Raises ValueError if one of them does not fit it, or is not all numbers.
    """
    load_weights(path, model)
    state, file = read_state(path), path / "optimizer.safetensors"
    found = {key.rpartition("/")[2] for key in read_shapes(file)}
    # Before the first step of a generation there is nothing, but for its teacher.
    expected = state_shapes(model, optimizer, begun=bool(found - {TEACHER}), taught=state.generation > 1)
    load_state_tensors(model, optimizer, read_tensors(file, expected))
    return state


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
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
