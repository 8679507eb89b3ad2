"""The command line: one thin function a verb. No logic lives here, and no torch is imported before a verb runs."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from groundling import __version__
from groundling import config as cfg
from groundling.flags import with_settings

app = App(
    name="groundling",
    help="Train a language model from scratch, on the machine you have.",
    version=f"groundling {__version__}",
    help_format="plaintext",  # rendering Markdown would cost a fifth of the time to answer
    help_epilogue="Every command takes --debug, which shows a traceback where something fails.",
)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print figures as JSON on standard output.")]
Out = Annotated[
    Path | None,
    Parameter(help="The folder of runs; GROUNDLING_RUNS, or runs/ here, if not given.", show_default=False),
]
RunReference = Annotated[
    str, Parameter(name="RUN", help="A run's name in the folder of runs, or a path to a run or a checkpoint.")
]
Text = Parameter(allow_leading_hyphen=True, show_default=False)


_PRESETS = "; ".join(f"{name}: {preset.description}" for name, preset in cfg.PRESETS.items())


@app.command(sort_key=0)
@with_settings
def train(
    corpus: Annotated[str | None, Text] = None,
    /,
    *,
    preset: Annotated[
        Literal[tuple(cfg.PRESETS)] | None,  # type: ignore[valid-type]
        Parameter(help=f"Where the settings start from; {cfg.DEFAULT_PRESET} if not given. {_PRESETS}."),
    ] = None,
    name: Annotated[str | None, Parameter(show_default=False)] = None,
    out: Out = None,
    json: Json = False,
    **settings: Any,
) -> int:
    """Train a model on a text: for --minutes, which plans everything that is not given; for 5 minutes if no more is
    said; or for --steps, or as a --preset has it.

    The same command continues a run that was stopped before its end.

    Parameters
    ----------
    corpus
        A text file (.gz too), a folder of them, - for standard input, shakespeare (if none is given), or
        python-docs.
    name
        The run's name; made from the corpus if not given.
    """
    from groundling.launch import train

    given = {key: value for key, value in settings.items() if value is not None}
    return _train(
        json, lambda tell, age: train(corpus, preset=preset, name=name, out=out, on_event=tell, elapsed=age, **given)
    )


@app.command(sort_key=1)
def resume(
    run: RunReference,
    /,
    *,
    steps: Annotated[int | None, Parameter(help="A new end, in steps.", show_default=False)] = None,
    minutes: Annotated[float | None, Parameter(help="A new end, in minutes in all.", show_default=False)] = None,
    out: Out = None,
    json: Json = False,
) -> int:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped."""
    from groundling.launch import resume

    return _train(
        json, lambda tell, age: resume(run, steps=steps, minutes=minutes, out=out, on_event=tell, elapsed=age)
    )


def _train(json: bool, start: Callable[[Callable[[Any], None], float], Any]) -> int:
    from groundling.machine import process_age
    from groundling.training.console import Console
    from groundling.training.events import Event, Finished, Paused

    ending: list[Event] = []
    with Console(sys.stderr if json else None) as console:

        def tell(event: Event) -> None:
            console(event)
            if isinstance(event, Finished | Paused):
                ending.append(event)

        run = start(tell, process_age())
    if json:
        _print_json(ending[-1].to_dict() | {"folder": str(run.folder)})
    return 0 if run.stopped_by is None else 128 + run.stopped_by


@app.command(sort_key=2)
def sample(
    run: RunReference,
    /,
    *,
    prompt: Annotated[str, Text] = "",
    prompt_file: Annotated[Path | None, Parameter(show_default=False)] = None,
    max_new_tokens: int = 300,
    temperature: Annotated[float, Parameter(allow_leading_hyphen=True)] = 0.7,
    top_k: Annotated[int, Parameter(allow_leading_hyphen=True)] = 50,
    greedy: Annotated[bool, Parameter(negative="")] = False,
    seed: Annotated[int | None, Parameter(show_default=False)] = None,
    num_samples: int = 1,
    stop: Annotated[str, Text] = "",
    unknown: Literal["error", "skip"] = "error",
    out: Out = None,
    json: Json = False,
) -> None:
    """Let a model write.

    Parameters
    ----------
    prompt
        What it continues; the beginning of a document if not given.
    prompt_file
        Read the prompt from a UTF-8 file.
    max_new_tokens
        How much it writes, in tokens.
    temperature
        How daring it is: 0 always takes the likeliest token, 1 draws as it learned.
    top_k
        Draw among the k likeliest tokens only; 0 for no limit.
    greedy
        The same as --temperature 0.
    seed
        Repeats a sample; drawn and shown if not given.
    num_samples
        How many; each with the next seed.
    stop
        End where this text appears.
    unknown
        What to do with characters that the model never saw.
    """
    from groundling.inference.engine import PromptTruncated
    from groundling.inference.sampling import Sampling
    from groundling.run import load

    if num_samples < 1:
        raise ValueError(f"--num-samples must be 1 or more, and it is {num_samples}.")
    if prompt_file is not None:
        if prompt:
            raise ValueError("--prompt and --prompt-file exclude each other.")
        prompt = _read(prompt_file)
    first = Sampling(0.0 if greedy else temperature, top_k, seed)
    assert first.seed is not None
    loaded = load(run, out=out)
    results = []
    for i in range(num_samples):
        sampling = dataclasses.replace(first, seed=first.seed + i)
        with warnings.catch_warnings(record=True, category=PromptTruncated) as caught:
            warnings.simplefilter("always", PromptTruncated)
            pieces = loaded.stream(prompt, sampling, max_new_tokens, stop=stop, unknown=unknown)
        if i == 0:
            for warning in caught:
                _note(str(warning.message))
        if json:
            results.append({"prompt": prompt, "text": "".join(pieces), "seed": sampling.seed})
            continue
        if num_samples > 1:
            print(f"--- sample {i + 1}, seed {sampling.seed}")
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    if json:
        _print_json(results)
    elif seed is None and first.temperature > 0:
        _note(f"--seed {first.seed} gives this again.")


@app.command(name="eval", sort_key=3)
def evaluate(
    run: RunReference,
    /,
    *,
    text: Annotated[str | None, Parameter(show_default=False)] = None,
    max_tokens: Annotated[int | None, Parameter(show_default=False)] = None,
    unknown: Literal["error", "skip"] = "error",
    out: Out = None,
    json: Json = False,
) -> None:
    """Score a model: loss, perplexity, bits per character and per byte.

    Parameters
    ----------
    text
        A file, folder or corpus to score it on; the run's own validation part if not given.
    max_tokens
        Read at most so many tokens, evenly spread; 0 for all; as in training if not given.
    unknown
        What to do with characters that the model never saw.
    """
    from groundling.run import load

    result = load(run, out=out).evaluate(text, max_tokens=max_tokens, unknown=unknown)
    if json:
        return _print_json(result)
    lines = [
        ("loss", f"{result['loss']:.4f} nats a token"),
        ("perplexity", f"{result['perplexity']:.3f}"),
        ("bits per character", f"{result['bits_per_character']:.4f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("scored", f"{result['tokens']:,} tokens, {result['characters']:,} characters"),
        ("checkpoint", f"{os.path.relpath(result['checkpoint'])} (step {result['step']:,})"),
    ]
    _print_lines(lines)
    return None


@app.command(sort_key=4)
def runs(*, out: Out = None, json: Json = False) -> None:
    """List the runs."""
    from groundling.run import runs, runs_folder

    rows = runs(out)
    if json:
        return _print_json(rows)
    if not rows:
        print(f"There are no runs in {runs_folder(out)} yet: `groundling train` makes one.")
        return None
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("run", "corpus", "preset", "step", "best validation loss", "status"):
        table.add_column(title, justify="right" if title in ("step", "best validation loss") else "left")
    for row in rows:
        best = row["best_validation_loss"]
        steps = "?" if row["steps"] is None else f"{row['steps']:,}"
        table.add_row(
            row["name"], row["corpus"] or "?", row["preset"] or "?", f"{row['step']:,}/{steps}",
            "-" if best is None else f"{best:.4f} at {row['best_step']:,}", row["status"],
        )  # fmt: skip
    Console(highlight=False).print(table)
    return None


@app.command(sort_key=5)
def plot(
    run: Annotated[list[str], Parameter(name="RUN", help="One or more runs, by name or path.", negative="")],
    /,
    *,
    to: Annotated[Path | None, Parameter(show_default=False)] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Draw the loss curve of a run, or of several runs together.

    Parameters
    ----------
    to
        The PNG file to write; loss.png in the run's folder, or comparison.png here for several, if not given.
    """
    from groundling.run import load
    from groundling.training.plot import plot_curves

    loaded = [load(reference, out=out) for reference in run]
    if len(loaded) == 1:
        path = loaded[0].plot(to)
    else:
        path = to or Path("comparison.png")
        plot_curves({each.name: each.metrics() for each in loaded}, path)
    if json:
        return _print_json({"file": str(path)})
    print(os.path.relpath(path))
    return None


@app.command(sort_key=6)
def doctor(*, json: Json = False) -> None:
    """Tell what this machine offers and what groundling will use."""
    from groundling.machine import survey

    found = survey()
    if json:
        return _print_json(found)
    cpu, memory = found["cpu"], found["memory"]
    speeds = ", ".join(f"{speed:,} GFLOP/s in {name}" for name, speed in cpu["matmul_gflops"].items())
    lines = [
        ("device", found["device"]),
        ("dtype", found["dtype"]),
        (
            "compile",
            "a compiler is here, and tried where a run is long enough to gain by it"
            if found["compiler_found"]
            else "no compiler is here",
        ),
        ("threads", found["threads"]),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores; matrix products: {speeds}"),
        (
            "speed",
            f"{found['speed']['gflops']:,} GFLOP/s for a small model's products in {found['dtype']}, "
            f"{found['speed']['gbytes']:,} GB/s copied",
        ),
        *(("GPU", f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB") for gpu in found["gpus"]),
        ("memory", f"{memory['total'] / 1e9:.1f} GB, {memory['available'] / 1e9:.1f} GB of it free"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        ("system", found["system"]),
        *(("because", reason) for reason in found["reasons"]),
    ]
    _print_lines(lines)
    return None


def _read(path: Path) -> str:
    from groundling.corpus.sources import find_source, read_text

    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file.")
    return "".join(piece for document in find_source(path).documents for piece in read_text(document, _note))


def _print_lines(lines: list[tuple[str, Any]]) -> None:
    width = max(len(label) for label, _ in lines) + 2
    for label, text in lines:
        print(f"{label:{width}}{text}")


def _print_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=1, ensure_ascii=False))


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)
