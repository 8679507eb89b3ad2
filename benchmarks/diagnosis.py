"""Train healthy runs and runs with a planted fault, and print what `groundling explain` finds in each, as a table.

    python benchmarks/diagnosis.py --text tinyshakespeare.txt

The runs have two layers of width 64 and 400 steps, unless a case says otherwise, and are made in a temporary folder.
The texts are the given one, the same in another alphabet, source code that comes with Python, and sentences of a small
made-up language.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import groundling
from groundling.data.batches import Batch
from groundling.model import gpt
from groundling.tasks.pretraining import Pretraining
from groundling.training import trainer
from groundling.training.task import Task

SETTINGS: dict[str, Any] = {
    "preset": "nano", "n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "batch_size": 16, "steps": 400,
    "eval_every": 50, "eval_tokens": 8192, "checkpoint_every": 1000, "sample_every": 0, "learning_rate": 6e-3,
    "warmup_steps": 20, "norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "optimizer": "muon", "device": "cpu",
    "dtype": "float32", "compile": "off",
}  # fmt: skip
GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "optimizer": "adamw"}


def other_alphabet(text: str) -> str:
    return "".join(chr(0x3B1 + (ord(c) - 97) % 24) if "a" <= c <= "z" else c for c in text.lower())


def program() -> str:
    """The source code of Python's decimal arithmetic: the longest module that every Python has as source."""
    import _pydecimal

    return Path(_pydecimal.__file__).read_text(encoding="utf-8")


def shuffled(text: str) -> str:
    """The paragraphs in random order, so that the end is the same kind of text as the rest."""
    paragraphs = text.split("\n\n")
    random.Random(0).shuffle(paragraphs)
    return "\n\n".join(paragraphs)


def made_up(n: int) -> str:
    """`n` sentences."""
    draw = random.Random(0)
    who, does = ["Anna", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina"], ["sees", "likes", "helps", "calls", "follows"]
    what = ["the red ball", "a small dog", "the old house", "two green apples", "a very long road"]
    return "".join(f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)}.\n" for _ in range(n))


def noise(n: int) -> str:
    """`n` random letters."""
    draw = random.Random(0)
    return "".join(draw.choice("abcdefghijklmnop") for _ in range(n))


@contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which `place.name` is `value`, to plant a fault."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def unmasked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None = None) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


_loss = Task.loss


def unshifted(task: Task, model: Any, batch: Batch) -> Any:
    return _loss(task, model, Batch(batch.tokens, batch.tokens))


def disordered(task: Task, model: Any, batch: Batch) -> Any:
    targets = batch.targets.flatten()[torch.randperm(batch.targets.numel())].view_as(batch.targets)
    return _loss(task, model, Batch(batch.tokens, targets))


def gone_early(progress: float, settings: Any) -> float:
    return 1.0 if progress < 0.4 else 0.001


def cases(text: str) -> Iterator[tuple[str, str, dict[str, Any], tuple[Any, str, Callable[..., Any]] | None]]:
    """Name, text and settings of each case, and the fault to plant, as arguments of `replaced`."""
    large = {"n_layer": 4, "n_head": 4, "n_embd": 128}
    yield "healthy", text[:300_000], {}, None
    yield "healthy, another alphabet", other_alphabet(text[:300_000]), {}, None
    yield "healthy, source code in shuffled pieces", shuffled(program()), {}, None
    yield "healthy, made-up sentences", made_up(8000), {}, None
    yield "healthy, GPT-2's family and AdamW", text[:300_000], GPT2, None
    yield "healthy, larger, with dropout", text[:300_000], large | {"dropout": 0.1}, None
    yield "causal mask broken", text[:300_000], {}, (gpt, "causal_attention", unmasked)
    yield "targets not shifted", text[:300_000], {}, (Pretraining, "loss", unshifted)
    yield "targets in disorder", text[:300_000], {}, (Pretraining, "loss", disordered)
    yield "learning rates × 10", text[:300_000], {"learning_rate": 6e-2, "matrix_learning_rate": 0.2}, None
    yield "learning rate × 10, AdamW", text[:300_000], GPT2 | {"learning_rate": 6e-2}, None
    yield "learning rate beyond all measure", text[:300_000], {"learning_rate": 1e18, "grad_clip": 0.0}, None
    yield "learning rates / 30", text[:300_000], {"learning_rate": 2e-4, "matrix_learning_rate": 7e-4}, None
    yield "rate gone after 40 %", text[:300_000], {}, (trainer, "rate_factor", gone_early)
    yield "validation text also in training", text[:100_000] + text[50_000:61_000], {}, None
    yield "validation text of another kind", text[:270_000] + other_alphabet(text[:30_000]), {}, None
    yield "source code as it stands: it ends with arithmetic", program(), {}, None
    yield "validation part of 600 characters", text[:60_000], {"val_fraction": 0.01, "steps": 200}, None
    yield "model far too large for the text", text[:30_000], large, None
    yield "model far too large for the time", text[:300_000], {"n_layer": 6, "n_head": 4, "n_embd": 256, "steps": 120,
                                                              "batch_size": 4, "learning_rate": 2e-3}, None  # fmt: skip
    yield "noise in place of text", noise(100_000), {}, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text file of 300,000 characters or more")
    parser.add_argument("--only", default="", help="run only the cases that have this in their name")
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        parser.error(f"--text: {arguments.text} does not exist.")
    text = arguments.text.read_text(encoding="utf-8")
    print("| planted | validation loss | found | evidence |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GROUNDLING_CACHE"] = f"{folder}/cache"
        chosen = [case for case in cases(text) if arguments.only in case[0]]
        for number, (name, content, settings, fault) in enumerate(chosen):
            path = Path(folder) / f"{number}.txt"
            path.write_text(content, encoding="utf-8", newline="")
            with replaced(*fault) if fault else nullcontext():
                try:
                    groundling.train(path, out=folder, on_event=lambda event: None, **SETTINGS | settings)
                except FloatingPointError:
                    pass  # it diverged; explain what there is of it
                found = groundling.load(str(number), out=folder).explain()
            loss = "-" if found["best_validation_loss"] is None else f"{found['best_validation_loss']:.3f}"
            kinds = ", ".join(finding["kind"] for finding in found["findings"]) or "nothing"
            evidence = " ".join(finding["evidence"] for finding in found["findings"])
            print(f"| {name} | {loss} | {kinds} | {evidence} |", flush=True)


if __name__ == "__main__":
    main()
