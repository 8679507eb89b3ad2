"""Verbs that carry models to other engines and from them: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, app, note, print_json, print_lines


@app.command(sort_key=8)
def export(
    run: RunReference,
    /,
    *,
    to: Literal["huggingface", "gguf", "onnx"],
    out: Annotated[Path | None, Parameter(show_default=False)] = None,
    quantize: Annotated[
        Literal["f16", "bf16", "q8_0", "q5_0", "q4_0", "int8"] | None, Parameter(show_default=False)
    ] = None,
    average: int = 1,
    json: Json = False,
) -> None:
    """Write a model for transformers, llama.cpp and Ollama, or ONNX Runtime, and prove that it computes the same there.

    Parameters
    ----------
    to
        The format.
    out
        The folder to make; exports/ in the run's own if not given.
    quantize
        Weights in fewer bits: f16 or bf16 (huggingface); f16, q8_0, q5_0 or q4_0 (gguf); int8 (onnx).
    average
        Take the mean of so many newest checkpoints, and print its validation loss beside the best one's.
    """
    from groundling.interchange.export import export

    made = export(run, to=to, out=out, quantize=quantize, average=average, notice=note)
    if json:
        return print_json(made)
    if "average" in made:
        mean, best = (made["average"][key] for key in ("validation_loss", "best_checkpoint_loss"))
        print(f"validation loss of the mean {mean:.4f}, of the best checkpoint {best:.4f}")
    for sentence in made["sentences"]:
        print(sentence)
    print()
    print_lines([(name, f"{size:,} bytes") for name, size in made["files"].items()])
    print(f"in {made['folder']}")
    return None


@app.command(name="import", sort_key=9)
def import_(
    folder: Annotated[Path, Parameter(help="A folder with config.json, safetensors and a tokenizer.")],
    /,
    *,
    name: Annotated[str | None, Parameter(show_default=False)] = None,
    block_size: Annotated[int | None, Parameter(show_default=False)] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Make a run of a model of GPT-2's or Qwen3's kind in Hugging Face's format.

    It can be sampled, evaluated (eval --text), exported, and trained further (train TEXT --init-from).

    Parameters
    ----------
    name
        The run's name; the folder's if not given.
    block_size
        Its context; the model's own, at most 2,048, if not given.
    """
    from groundling.interchange.import_model import import_model

    run = import_model(folder, name=name, block_size=block_size, out=out, notice=note)
    facts = {
        "folder": str(run.folder), "parameters": sum(p.numel() for p in run.model.parameters()),
        "vocab_size": run.tokenizer.vocab_size, **(run.record.imported or {}),
    }  # fmt: skip
    if json:
        return print_json(facts)
    print_lines(list(facts.items()))
    print(f"groundling sample {run.reference}; groundling train my.txt --init-from {run.reference}")
    return None
