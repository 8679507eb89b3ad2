"""Write a run as plain PyTorch: model.py, train.py and generate.py, which do not import groundling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from groundling import storage
from groundling.config import user_path
from groundling.data.corpus import Corpus
from groundling.data.progress import Notice, silent
from groundling.data.tokens import Tokens
from groundling.model.weights_file import read_shapes, read_tensors, write_tensors
from groundling.run.eject.facts import NotTrainable, check_model, model_facts, open_corpus, training_facts
from groundling.run.eject.tokenizer import tokenizer_facts, write_tokenizer
from groundling.run.folder import RunFolder

_PIECE = 2**22  # tokens copied at a time


def eject_run(run: RunFolder, folder: str | os.PathLike[str] | None = None, *, notice: Notice = silent) -> Path:
    """Write the run to `folder` as three files of plain PyTorch, with weights, tokenizer and token ids.

    `model.py` computes the same logits, `generate.py` writes the same text for the same seed, and `train.py` trains on
    the same batches with the same settings. What is different or missing is in README.md, and `notice` gets it too.
    The weights are those of the run's best checkpoint, or of the one that was loaded. Default folder: `ejected` in the
    run's. Returns the folder.

    Raises FileExistsError if the folder is not empty, and ValueError if the model has a part that the files lack.
    """
    run.check_writes()
    check_model(run.config.model)
    target = run.folder / "ejected" if folder is None else user_path("--out", folder).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder. Choose another folder with --out.")
    storage.check_writable(target.parent, "--out", notice)
    values, notes, corpus = model_facts(run) | tokenizer_facts(run), list[str](), None
    try:
        corpus = open_corpus(run)
        values |= training_facts(run, corpus, notes)
    except NotTrainable as reason:
        values |= {"trains": False, "initial": False}
        notes.append(f"train.py is not included: {reason}")
    storage.remove_temporary(target.parent, target.name)
    if target.exists():  # and is empty; Windows cannot replace it
        storage.disk.delete(target)
    with storage.new_folder(target) as made:
        _write(made, run, values | {"notes": notes}, corpus)
    storage.remove_file(target / storage.MANIFEST)  # from now on, the files are to be changed
    for sentence in notes:
        notice(sentence)
    return target


def _write(folder: Path, run: RunFolder, values: dict[str, Any], corpus: Corpus | None) -> None:
    for name in ("model.py", *(["train.py"] if corpus else []), "generate.py", "requirements.txt", "README.md"):
        storage.write_file(folder / name, _environment().get_template(f"{name}.jinja").render(values))
    write_tokenizer(folder, run.tokenizer)
    write_tensors(folder / "model.safetensors", _renamed(run.model.state_dict()))
    if values["initial"]:
        initial = run.folder / "initial" / "model.safetensors"
        write_tensors(folder / "initial.safetensors", _renamed(read_tensors(initial, read_shapes(initial))))
    if corpus and values["copied"]:
        for part in (corpus.train, corpus.validation):
            _append(part, folder / "tokens.bin")


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("groundling.run.eject", ""), undefined=jinja2.StrictUndefined,
        block_start_string="#%", block_end_string="%#", trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _renamed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors named as in model.py, where the norms of queries and keys belong to the attention."""
    return {name.replace(".attn.rope.", ".attn."): tensor for name, tensor in tensors.items()}


def _append(tokens: Tokens, path: Path) -> None:
    for start in range(0, len(tokens), _PIECE):
        piece = tokens.read(start, min(start + _PIECE, len(tokens)))
        storage.disk.write(path, piece.astype(tokens.dtype).tobytes())
