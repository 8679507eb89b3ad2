"""The command plan: what a large run costs on many GPUs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from groundling import config as cfg
from groundling.cli.app import Corpus, Json, app, note, print_json, print_rows, print_table
from groundling.cli.flags import with_settings
from groundling.escape import printable

if TYPE_CHECKING:
    from groundling.planning.scaling import Estimate, Job

_SHOWN = 8
_GPT2_VOCABULARY = 50_257


@app.command(sort_key=7)
@with_settings("reading")
def plan(
    *corpus: Corpus,
    preset: Annotated[
        Literal[tuple(cfg.PRESETS)],  # type: ignore[valid-type]
        Parameter(help="The model, and the tokens of a step."),
    ] = "gpt2-xl",
    gpus: int = 8,
    gpu: Literal["a100", "h100", "h200", "b200", "rtx4090", "cpu"] = "h100",
    tokens: int = 0,
    context: int = 0,
    optimizer_bits: Literal[32, 8] = 32,
    json: Json = False,
    **settings: Any,
) -> None:
    """Estimate what a large run costs: memory, time and traffic of each way to divide a step over many GPUs, the
    fastest first.

    This is arithmetic on data sheets. It does not train, and needs no GPU.

    Args:
        gpus: How many, in nodes of eight.
        gpu: Their kind. cpu: this machine, measured.
        tokens: To train on in all. Default: an epoch of the corpus, or as many as the preset's steps read.
        context: Tokens of a window. Default: the preset's.
        optimizer_bits: Bits of each number in the optimizer's state.
    """
    cfg.Limits(1, 1 << 16).check("--gpus", gpus)
    cfg.limits.TOKENS.check("--tokens", tokens)
    cfg.limits.BLOCK_SIZE_OR_0.check("--context", context)
    from groundling.planning import scaling
    from groundling.planning.devices import DEVICES, this_machine

    chosen = cfg.PRESETS[preset]
    model = dataclasses.replace(chosen.model, block_size=context or chosen.model.block_size)
    per_step = chosen.training.batch_size * chosen.training.accumulate * chosen.model.block_size
    vocab_size, epoch = _read(corpus, settings) if corpus else (_GPT2_VOCABULARY, chosen.training.steps * per_step)
    job = scaling.Job(model, vocab_size, max(1, per_step // model.block_size), optimizer_bits)
    job = scaling.divisible(job, gpus)
    device = this_machine() if gpu == "cpu" else DEVICES[gpu]
    found = scaling.best(job, gpus, device)
    if not found:
        raise ValueError(
            f"{preset} does not fit into {gpus:,} × {device.gigabytes:.0f} GB in any way. Use more --gpus, another "
            "--gpu, a shorter --context or --optimizer-bits 8."
        )
    if json:
        return print_json({
            "device": dataclasses.asdict(device), "tokens_per_step": job.tokens, "vocab_size": vocab_size,
            "tokens": tokens or epoch, "assumptions": scaling.ASSUMPTIONS,
            "layouts": [each.to_dict() | {"days": _days(each, tokens or epoch)} for each in found],
        })  # fmt: skip
    _show(preset, job, device, found, tokens or epoch)
    return None


def _read(corpus: tuple[str, ...], settings: dict[str, Any]) -> tuple[int, int]:
    """Vocabulary size and training tokens of a text."""
    from groundling.data.corpus import prepare
    from groundling.data.sources import find_source

    reading = cfg.CorpusSettings(**settings)
    text = prepare(find_source(corpus, reading), reading, notice=note)
    return text.tokenizer.vocab_size, len(text.train)


def _days(found: Estimate, tokens: int) -> float:
    return tokens / found.tokens_per_second / 86_400


def _show(preset: str, job: Job, device: Any, found: list[Estimate], tokens: int) -> None:
    from rich.table import Table

    from groundling.model.describe import matrix_parameters
    from groundling.planning.scaling import ASSUMPTIONS

    count = found[0].layout.devices
    print_rows([
        ("model", f"{preset}: {matrix_parameters(job.model, job.vocab_size) / 1e6:,.0f}M parameters, context "
                  f"{job.model.block_size:,}, {job.vocab_size:,} tokens"),
        ("step", f"{job.windows:,} windows, {job.tokens:,} tokens"),
        ("devices", f"{count:,} × {device.name}: {device.teraflops:,.4g} TFLOP/s, {device.gigabytes:,.0f} GB, "
                    f"{device.link:,.4g} GB/s within a node, {device.network:,.4g} GB/s between nodes"),
        ("source", device.source),
        ("budget", f"{tokens:,} tokens"),
    ])  # fmt: skip
    print()
    names = ("data", "tensor", "pipeline", "context", "micro-batch", "recompute", "memory, GB", "step, s", "waiting",
             "of peak", "tokens/s", "days")  # fmt: skip
    table = Table(*names, box=None, pad_edge=False)
    for each in found[:_SHOWN]:
        at = each.layout
        table.add_row(
            f"{at.kind} {at.data}", str(at.tensor), str(at.pipeline), str(at.context), str(at.micro_batch),
            "blocks" if at.recompute else "none", f"{each.memory / 1e9:.1f}", f"{each.seconds:.3g}",
            f"{each.waiting / each.seconds:.0%}", f"{each.share_of_peak:.0%}", f"{each.tokens_per_second:,.0f}",
            f"{_days(each, tokens):,.2f}",
        )  # fmt: skip
    print_table(table, width=120)
    print("\nAn estimate, not a measurement. What is assumed:")
    for sentence in ASSUMPTIONS:
        print(printable(f"- {sentence}"))
