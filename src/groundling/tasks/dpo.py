"""Direct preference optimization and its relatives: make chosen replies likelier than rejected ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from groundling import storage
from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.examples import Dataset, Examples
from groundling.machine import Machine, bits
from groundling.model.compiled import Forward
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.model.weights_file import read_tensors, weights_hash, write_tensors
from groundling.tasks.losses.logprobs import masked_sum, token_logprobs
from groundling.tasks.losses.preference import Replies, kto_baseline, preference_figures, preference_losses
from groundling.tasks.pairs import Pairs
from groundling.training.task import Loss

_WITHOUT_REFERENCE = ("orpo", "simpo")
_ROWS = 64  # read at once for the reference


class Dpo(Pairs):
    """Trains on pairs of replies to the same prompt. The reference is the model before the first step: it reads all
    pairs once, before training."""

    metric = "preference loss"

    def __init__(
        self, data: Dataset, config: Config, initial: InitialModel, others: Mapping[str, InitialModel]
    ) -> None:
        super().__init__(data, config)
        self.method, self.initial = config.method, initial
        self.references: dict[int, torch.Tensor] = {}
        self._machine: Machine | None = None
        self._mismatched: dict[int, Examples] = {}
        if self.method.loss_type == "kto":
            self._mismatched = {id(part): mismatched(part) for part in (self.train, self.validation)}

    def place(self, machine: Machine) -> None:
        self._machine = machine
        if self.method.loss_type not in _WITHOUT_REFERENCE and not self.references:
            parts = (self.train, self.validation, *self._mismatched.values())
            self.references = dict(zip(map(id, parts), self._reference(parts, machine), strict=True))

    def rows(self, examples: Examples, pairs: npt.NDArray[np.int64], baseline: float) -> Batch:
        batch = super().rows(examples, pairs, baseline)
        if not self.references:
            return batch
        reference = self.references[id(examples)].view(-1, 2)[torch.from_numpy(pairs)].flatten()
        extras = {"reference": reference, "kl": torch.full_like(reference, baseline)}
        return Batch(batch.tokens, batch.targets, batch.weights, extras)

    def baseline(self, model: GPT, examples: Examples, pairs: npt.NDArray[np.int64]) -> float:
        """The baseline of kto, from replies to other prompts. It is that of the whole step, so that micro-batches of
        any size have the same gradient."""
        if not self._mismatched:
            return 0.0
        assert self._machine is not None
        others = self._mismatched[id(examples)]
        logprobs = _logprobs(model.eval(), others, pairs, self._machine)
        reference = self.references[id(others)][torch.from_numpy(pairs)]
        return float(kto_baseline(Replies(logprobs, torch.ones_like(logprobs), reference)))

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        """The mean over the pairs, with the figures of `preference_figures`."""
        assert batch.weights is not None
        logprobs = masked_sum(token_logprobs(forward(batch.tokens), batch.targets), batch.weights)
        lengths, reference = batch.weights.sum(1), batch.extras.get("reference")
        chosen, rejected = (
            Replies(*(None if x is None else x[i::2] for x in (logprobs, lengths, reference)))  # type: ignore[arg-type]
            for i in range(2)
        )
        kl = batch.extras["kl"][0] if "kl" in batch.extras else None
        losses = preference_losses(chosen, rejected, self.method, kl)
        return Loss(losses.mean(), preference_figures(chosen, rejected, self.method.beta))

    def _reference(self, parts: Sequence[Examples], machine: Machine) -> list[torch.Tensor]:
        """log p of each reply under the initial weights, (rows,) for each part; from the cache if they are there."""
        if self.initial.checkpoint is None:  # random weights, with which planning times a step
            return [torch.zeros(len(part)) for part in parts]
        key = hashlib.sha256(f"{weights_hash(self.initial.checkpoint)} {bits(machine)}".encode())
        for part in parts:
            for content in (part.tokens, part.learned, part.ends):
                key.update(hashlib.sha256(np.ascontiguousarray(content).data).digest())
        folder = storage.cache_folder() / "reference" / key.hexdigest()[:24]
        shapes = {str(i): (len(part),) for i, part in enumerate(parts)}
        try:
            storage.verify(folder)
            return [read_tensors(folder / "logprobs.safetensors", shapes)[name] for name in shapes]
        except (ValueError, OSError):
            model = self.initial.build().to(machine.device).eval()
            found = [_logprobs(model, part, np.arange(len(part)), machine) for part in parts]
            with suppress(OSError):  # another process may write the same now, and a full disk only costs time
                _keep(folder, dict(zip(shapes, found, strict=True)))
            return found


def _keep(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    storage.make_folder(folder.parent)
    storage.remove_folder(folder)
    with storage.new_folder(folder) as new:
        write_tensors(new / "logprobs.safetensors", tensors)


@torch.inference_mode()
def _logprobs(model: GPT, examples: Examples, rows: npt.NDArray[np.int64], machine: Machine) -> torch.Tensor:
    """log p of the learned tokens of some examples, (len(rows),)."""
    found = torch.zeros(len(rows))
    order = np.argsort(examples.lengths[rows], kind="stable")
    for start in range(0, len(order), _ROWS):
        here = order[start : start + _ROWS]
        batch = examples.batch(rows[here]).to(machine.device)
        assert batch.weights is not None
        with machine.autocast():
            logprobs = token_logprobs(model(batch.tokens), batch.targets)
        found[here] = masked_sum(logprobs, batch.weights).cpu()
    return found


def mismatched(pairs: Examples) -> Examples:
    """The prompt of each pair with the chosen reply of the next pair."""
    rows, n = list[tuple[npt.ArrayLike, npt.ArrayLike]](), len(pairs) // 2
    for i in range(n):
        (ids, learned), (other, replied) = pairs[2 * i], pairs[2 * ((i + 1) % n)]
        prompt, reply = slice(int(learned.argmax())), slice(int(replied.argmax()), None)
        rows.append((np.concatenate((ids[prompt], other[reply])), np.concatenate((learned[prompt], replied[reply]))))
    return Examples.of(rows, pairs.block_size)
