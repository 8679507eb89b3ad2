"""Checkpoints: self-contained folders in open formats, written atomically.

checkpoints/step-000400/
  model.safetensors      the weights, or their moving average
  optimizer.safetensors  the other tensors of training: optimizer state, weights as trained (if averaged),
                         and the task's own, such as a teacher's weights
  state.json             the training state: step, tokens, seconds, best score, ...
  config.json            the run's record
  tokenizer.json
  manifest.json          sizes and hashes, written last

Where each rank has a part of the model, the first two are shards (model/tensor_file.py), such as
model-00001-of-00004.safetensors. Each rank writes its own, and the checkpoint gets its name when all are on the disk.

checkpoints/best.json    {"checkpoint": "step-000400"}: a pointer that also works on Windows
checkpoints/last.json
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from groundling import __version__, storage
from groundling.config import TrainingSettings
from groundling.machine import versions
from groundling.model.describe import CODE, Shape
from groundling.model.tensor_file import shard_path
from groundling.model.weights_file import write_tensors
from groundling.parallel.processes import Ranks
from groundling.training.state import TrainState, read_state

_NAME = re.compile("step-[0-9]{6,18}")  # of a checkpoint's folder
ALONE = Ranks()
_OTHER_FILES = 20_000  # bytes beside the tensors


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint: the training state, the model's `weights`, and the other tensors, `training`.

    Or what one rank has of them: `offsets` then says where each slice begins in the whole tensor.
    """

    state: TrainState
    weights: Mapping[str, torch.Tensor]
    training: Mapping[str, torch.Tensor]
    offsets: Mapping[str, Sequence[int]] | None = None

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return _OTHER_FILES + sum(x.nbytes for tensors in (self.weights, self.training) for x in tensors.values())


def size_in_bytes(*shapes: Mapping[str, Shape]) -> int:
    """Approximate size in bytes of a checkpoint with tensors of these shapes."""
    tensors = [item for each in shapes for item in each.items()]
    return _OTHER_FILES + sum(prod(shape) * (1 if name.endswith(CODE) else 4) for name, shape in tensors)


def _write_tensors(folder: Path, snapshot: Snapshot, shards: Sequence[bool], rank: int) -> dict[str, Any]:
    """Write whole tensors, or this rank's shard, which is one of several. Returns size and hash of each shard."""
    records = dict[str, Any]()
    for name, tensors in (("model.safetensors", snapshot.weights), ("optimizer.safetensors", snapshot.training)):
        if snapshot.offsets is None:
            write_tensors(folder / name, tensors)
        elif shards[rank]:
            path = shard_path(folder / name, sum(shards[:rank]) + 1, sum(shards))
            write_tensors(path, tensors, snapshot.offsets)
            records[path.name] = storage.file_record(path)
            storage.disk.sync(path)
    return records


class AllDamaged(ValueError):
    """A run has checkpoints, but none can be read. Training again from step 0 would overwrite their weights."""


class Checkpoints:
    """The checkpoints of a run, in its subfolder `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, damaged or not, in ascending order."""
        names = [path.name for path in self.folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name)]
        return sorted(int(name.removeprefix("step-")) for name in names)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def save(self, snapshot: Snapshot, keep: int, ranks: Ranks = ALONE) -> Path:
        """Save, read it back, update the pointers `last` and `best`, then delete the oldest beyond `keep` (0: none).

        If the snapshot is a part, all `ranks` must call this, each with its own. At least two undamaged checkpoints are
        kept. Raises OSError with a sentence if writing fails; the earlier checkpoints are not changed then.
        """
        path = self.path(snapshot.state.step)
        size = sum(ranks.each(lambda: snapshot.size))
        ranks.on_main(self._flush_history)
        storage.retry_io(path, size, lambda: self._save(path, snapshot, ranks))
        ranks.on_main(lambda: self._note_saved(path, snapshot.state, keep))
        return path

    def _flush_history(self) -> None:
        """What was logged before this step must survive a power cut, since it is not computed again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (file := self.folder.parent / name).exists():
                storage.retry_io(file, 0, partial(storage.disk.sync, file))

    def _note_saved(self, path: Path, state: TrainState, keep: int) -> None:
        self._point("last", path)
        best = self.path(state.best_step)
        if self.pointed("best") != best and best.exists():
            self._point("best", best)
        if keep:
            self._prune(max(keep, 2), {best, self.path(state.guard.last_good_step)})

    def _save(self, path: Path, snapshot: Snapshot, ranks: Ranks) -> None:
        if ranks.on_main(lambda: self._is_saved(path)):
            return
        shards = ranks.each(lambda: bool(snapshot.weights))  # of copies of the same part, one rank saves it
        records: dict[str, Any] = {}
        with ExitStack() as stack:
            folder = ranks.on_main(
                lambda: stack.enter_context(storage.new_folder(path, self._about(snapshot.state), records))
            )
            written = ranks.each(lambda: _write_tensors(folder, snapshot, shards, ranks.rank))
            for each in written:
                records |= each
            ranks.on_main(lambda: self._write_others(folder, snapshot.state))
            ranks.on_main(stack.close)  # writes the manifest, and renames the folder
        ranks.each(lambda: self._read_back(path, written[ranks.rank] if ranks.size > 1 else None))
        if ranks.size > 1:
            ranks.on_main(lambda: storage.note_verified(path))

    def _is_saved(self, path: Path) -> bool:
        """Whether a resumed run has come to a step that is already saved, with the same bits. A damaged checkpoint of
        this step is deleted."""
        if path.exists():
            try:
                self.verify(path)
                return True
            except ValueError:
                storage.remove_folder(path)
        return False

    def _about(self, state: TrainState) -> dict[str, Any]:
        return {
            "step": state.step,
            "corpus": storage.read_json(self.folder.parent / "config.json").get("corpus", {}).get("fingerprint"),
            "versions": versions() | {"groundling": __version__},
        }

    def _write_others(self, folder: Path, state: TrainState) -> None:
        storage.disk.write(folder / "state.json", json.dumps(state.to_dict(), indent=1).encode())
        for name in ("config.json", "tokenizer.json"):
            storage.disk.write(folder / name, (self.folder.parent / name).read_bytes())

    def _read_back(self, path: Path, shards: Mapping[str, Any] | None) -> None:
        """Check that the disk has what was written: everything, or these `shards`, given with their size and hash."""
        try:
            if shards is None:
                self.verify(path)
                return
            for name, record in shards.items():
                if not record == storage.file_records(path).get(name) == storage.file_record(path / name):
                    raise ValueError(f"{path / name} is damaged: its content differs from what was saved.")
        except ValueError as error:
            raise OSError(
                errno.EIO, f"the disk returned different data than was written ({error}). The disk may be failing"
            ) from None

    def verify(self, path: Path, again: bool = True) -> None:
        """Raise ValueError with a sentence if a checkpoint is damaged, or is not of the step in its name.

        Without `again`, files that this process has verified, and that have not changed since, are not read again.
        """
        try:
            step = (storage.verify(path) if again else storage.verify_once(path)).get("step")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
        if path != self.path(step if isinstance(step, int) else -1):
            raise ValueError(f"{path} does not match its name: it contains step {step}.")

    def go_back(self, last_good: int) -> Path | None:
        """The newest undamaged scheduled checkpoint up to step `last_good`. Those after it are deleted."""
        for step in reversed(self.steps()):
            path = self.path(step)
            with suppress(ValueError):  # damaged
                self.verify(path)
                if step <= last_good and not read_state(path).guard.bad_steps:
                    return path
            storage.remove_folder(path)
        return None

    def _prune(self, keep: int, spare: set[Path]) -> None:
        """Delete checkpoints older than the newest `keep` undamaged ones, except those to `spare`."""
        whole = 0
        for path in map(self.path, reversed(self.steps())):
            if whole >= keep and path not in spare:
                with suppress(OSError):  # it only takes disk space, and the next save tries again
                    storage.remove_folder(path)
            elif whole < keep:
                with suppress(ValueError):
                    self.verify(path, again=False)
                    whole += 1

    def _point(self, name: str, path: Path) -> None:
        storage.write_checksummed(self.folder / f"{name}.json", {"checkpoint": path.name})

    def pointed(self, name: str) -> Path | None:
        """The checkpoint that `best` or `last` points to, if it exists."""
        with suppress(OSError, ValueError):
            target = str(storage.read_checksummed(self.folder / f"{name}.json").get("checkpoint"))
            if _NAME.fullmatch(target) and (self.folder / target).is_dir():  # it must not point anywhere else
                return self.folder / target
        return None

    def newest(self, notice: Callable[[str], None]) -> Path | None:
        """The newest undamaged checkpoint. Damaged ones are skipped, with a notice. None if there is no checkpoint.

        Raises AllDamaged, with the reason, if there are checkpoints and all are damaged.
        """
        faults = list[str]()
        for path in map(self.path, reversed(self.steps())):
            try:
                self.verify(path)
            except ValueError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                notice(f"{fault} Using the checkpoint before it.")
            return path
        if faults:
            raise AllDamaged(
                f"The run {self.folder.parent.name} has {len(faults)} checkpoint(s), but none can be read: {faults[0]} "
                f"Restore one from a copy, or delete {self.folder} to start again at step 0."
            )
        return None

    def check_room(self, size: int, settings: TrainingSettings) -> None:
        """Raise OSError with a sentence if the disk has no room for all checkpoints that will exist at the same time,
        of `size` bytes each."""
        count = max(settings.keep_checkpoints, 2) + 2  # the best one, and the one being written
        if not settings.keep_checkpoints:
            count = settings.steps // settings.checkpoint_every + 2  # all, plus those at a new best score
        needed = size * max(count - len(self.steps()), 1)
        home = next(folder for folder in self.folder.absolute().parents if folder.exists())
        elsewhere = "move the run to another disk" if self.steps() else "use another disk with --out"
        if needed > (free := storage.free_bytes(home)):
            raise OSError(
                f"The checkpoints of this run need {storage.in_bytes(needed)} more ({count} of "
                f"{storage.in_bytes(size)}), and the disk of {home} has {storage.in_bytes(free)} free. Delete "
                f"something there, {elsewhere}, or train a smaller model."
            )
