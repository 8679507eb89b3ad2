"""The runs that a run starts from or uses: what is recorded of them, and copies of their weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from groundling import storage
from groundling.config import ModelSettings
from groundling.model.initial import InitialModel
from groundling.model.tensor_file import files_of
from groundling.model.weights_file import read_shapes, read_tensors, weights_hash, write_tensors
from groundling.run.longer_context import resized_positions
from groundling.run.record import ModelFacts
from groundling.run.run import Run

_BY_TOKEN = ("wte.weight", "lm_head.weight")
"""The weights with a row for each token."""
_BY_POSITION = "wpe.weight"


def facts_of(run: Run) -> ModelFacts:
    """What a descendant records of a run."""
    checkpoint = run.checkpoint
    return ModelFacts(
        run=run.name, folder=str(run.folder), task=run.config.task, step=run.step,
        weights=weights_hash(checkpoint), corpus=run.record.corpus.name,
    )  # fmt: skip


def copy_weights(parent: Run, folder: Path, model: ModelSettings, vocab_size: int, is_reward: bool = False) -> None:
    """Copy the weights of a run's checkpoint for a model with these settings, whose context may be another, with a row
    for each token that its tokenizer gained.

    New rows are the mean of the old ones, so no new token is likely at first, and the logits of the others stay what
    they were (Hewitt, "Initializing new word embeddings for pretrained language models", 2021). With `is_reward`, the
    last row, which is the head of a reward model, is 0.
    """
    weights = parent.checkpoint / "model.safetensors"
    storage.remove_folder(folder)
    about = {"from": str(parent.checkpoint), "vocab_size": parent.tokenizer.vocab_size}
    with storage.new_folder(folder, about) as new:
        same_positions = model.position == "rope" or model.block_size == parent.config.model.block_size
        if vocab_size == parent.tokenizer.vocab_size and same_positions and not is_reward:
            _copy(files_of(weights), new)
            return
        tensors = read_tensors(weights, read_shapes(weights))
        heads = [name for name in _BY_TOKEN if name in tensors]
        for name in heads:
            rows = tensors[name]
            mean = rows.mean(0, keepdim=True).expand(vocab_size - len(rows), -1)
            tensors[name] = torch.cat((rows, mean))
        if not same_positions:
            tensors[_BY_POSITION] = resized_positions(tensors[_BY_POSITION], model.block_size)
        if is_reward:
            tensors[heads[-1]][-1] = 0.0
        write_tensors(new / weights.name, tensors)


def n_new_rows(copy: Path, vocab_size: int) -> int:
    """How many of a model's token rows its parent did not have, or had not trained."""
    return vocab_size - int(storage.read_manifest(copy).get("vocab_size", vocab_size))


def copy_model(run: Run, folder: Path) -> None:
    """Copy the weights and settings of a run's checkpoint, as `model_at` reads them."""
    storage.remove_folder(folder)
    with storage.new_folder(folder, {"from": str(run.checkpoint)}) as new:
        files = files_of(run.checkpoint / "model.safetensors")
        _copy([*files, *(run.checkpoint / name for name in ("config.json", "tokenizer.json"))], new)


def _copy(files: Sequence[Path], folder: Path) -> None:
    for file in files:
        storage.disk.fill(folder / file.name, partial(shutil.copyfile, file))


def model_at(folder: Path) -> InitialModel:
    """A copy that `copy_model` made. Raises ValueError if it is damaged."""
    storage.verify(folder)
    return model_of(Run(folder.parent, folder))


def model_of(run: Run) -> InitialModel:
    """The model of the run's checkpoint in use."""
    return InitialModel(run.config.model, run.tokenizer.vocab_size, run.config.training.seed, run.checkpoint)
