"""Commands that exchange models with other engines: export, import; and eject, for people."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, app, note, print_json, print_rows
from groundling.escape import command, quoted


@app.command(sort_key=8)
def export(
    run: RunReference,
    /,
    *,
    to: Literal["huggingface", "gguf", "onnx", "peft"],
    out: Path | None = None,
    quantize: Literal["f16", "bf16", "q8_0", "q5_0", "q4_0", "int8"] | None = None,
    average: int = 1,
    json: Json = False,
) -> None:
    """Export a model to transformers, llama.cpp and Ollama, or ONNX Runtime, and check that it computes the same there.

    Args:
        to: The format. peft: the adapter of a run that was tuned with --adapter, and the model that it belongs to.
        out: The folder to create. Default: exports/ and the format's name in the run's folder.
        quantize: Weights in fewer bits: f16 or bf16 (huggingface); f16, q8_0, q5_0 or q4_0 (gguf); int8 (onnx).
        average: Average the weights of this many newest checkpoints, and compare its loss with the best checkpoint's.
    """
    from groundling.interchange.export import export

    made = export(run, to=to, out=out, quantize=quantize, average=average, notice=note)
    if json:
        return print_json(made)
    if "average" in made:
        mean, best = (made["average"][key] for key in ("validation_loss", "best_checkpoint_loss"))
        print(f"Validation loss: average {mean:.4f}, best checkpoint {best:.4f}")
    print(*made["sentences"], "", sep="\n")
    print_rows([(name, f"{size:,} bytes") for name, size in made["files"].items()])
    print(f"Saved to {made['folder']}")
    return None


@app.command(name="import", sort_key=9)
def import_(
    folder: Annotated[
        Path, Parameter(help="A model's folder, or its name in Hugging Face's cache, such as Qwen/Qwen3-0.6B.")
    ],
    /,
    *,
    name: str | None = None,
    block_size: int | None = None,
    base: str | None = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Import a GPT-2, Llama, Mistral, Qwen2 or Qwen3 in Hugging Face format as a run, or an adapter (PEFT) of one.

    You can sample it, evaluate it (eval --text), export it, and train it further (train TEXT --init-from RUN).

    Args:
        name: The run's name. Default: the folder's name.
        block_size: The context length. Default: the model's own, at most 2,048.
        base: The run of the model that an adapter belongs to. The new run has the weights of both, merged.
    """
    from groundling.interchange.import_model import import_model

    run = import_model(folder, name=name, block_size=block_size, base=base, out=out, notice=note)
    facts = {
        "folder": str(run.folder), "parameters": sum(p.numel() for p in run.model.parameters()),
        "vocab_size": run.tokenizer.vocab_size, **(run.record.imported or {}),
    }  # fmt: skip
    if json:
        return print_json(facts)
    print_rows(list(facts.items()))
    further = command("train", "my.txt", "--init-from", run.reference)
    print(f"Next: `{command('sample', run.reference)}`, or train it further on a text, such as my.txt: `{further}`")
    return None


@app.command(sort_key=8)
def eject(run: RunReference, /, *, out: Path | None = None) -> None:
    """Write a run as plain PyTorch: model.py, train.py and generate.py, to read, change and own.

    They do not need groundling. They compute the same logits, losses and texts, with the run's settings as constants.

    Args:
        out: The folder to create. Default: ejected in the run's folder.
    """
    from groundling.run.store import load

    loaded = load(run)
    folder = loaded.eject(out, notice=note)
    files = sorted(folder.iterdir(), key=lambda file: (file.suffix != ".py", file.name))
    print_rows([(file.name, _size(file)) for file in files])
    print(f"Saved to {folder}")
    prompt = loaded.example_prompt(loaded.config.model.block_size // 2)
    words = {"generate.py": ["--prompt", prompt] if prompt else [], "train.py": []}
    print("Next:")
    for file in files:
        if file.name in words:
            print(" ", _python(), *map(quoted, [os.path.relpath(file), *words[file.name]]))


def _size(file: Path) -> str:
    if file.suffix == ".py":
        return f"{len(file.read_text(encoding='utf-8').splitlines())} lines"
    return f"{file.stat().st_size:,} bytes"


def _python() -> str:
    """What to type for this Python, which has torch."""
    found = shutil.which("python")
    here = os.path.realpath(os.path.dirname(sys.executable))
    return "python" if found and os.path.realpath(os.path.dirname(found)) == here else quoted(sys.executable)
