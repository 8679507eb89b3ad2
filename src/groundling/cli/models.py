"""Commands that use a model: sample, eval."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, Text, app, note, print_json, print_lines
from groundling.cli.copies import indexing, show_originality
from groundling.cli.flags import given, with_settings
from groundling.config import Sampling
from groundling.escape import printable


@app.command(sort_key=2)
@partial(with_settings, groups=("sampling",))
def sample(
    run: RunReference,
    /,
    *,
    prompt: Annotated[str, Text] = "",
    prompt_file: Annotated[Path | None, Parameter(show_default=False)] = None,
    max_new_tokens: int = 300,
    greedy: Annotated[bool, Parameter(negative="")] = False,
    num_samples: int = 1,
    stop: Annotated[tuple[str, ...], Text] = (),
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    originality: Annotated[bool, Parameter(negative="")] = False,
    unknown: Literal["error", "skip"] = "error",
    out: Out = None,
    json: Json = False,
    **settings: Any,
) -> None:
    """Generate text.

    Parameters
    ----------
    prompt
        The text to continue. Default: the beginning of a document.
    prompt_file
        Read the prompt from a UTF-8 file.
    max_new_tokens
        How many tokens to generate.
    greedy
        The same as --temperature 0.
    num_samples
        How many samples. Each uses the next seed.
    stop
        End where this text appears. Repeat the flag for several.
    precision
        Weight precision. bfloat16 and int8 generate faster but are slightly less accurate.
    originality
        Show what the sample copied verbatim from the training text.
    unknown
        What to do with characters that the model has never seen.
    """
    from groundling.inference.stream import PromptTruncated
    from groundling.run.store import load

    if num_samples < 1:
        raise ValueError(f"--num-samples must be 1 or more, and it is {num_samples}.")
    if prompt_file is not None:
        if prompt:
            raise ValueError("Use --prompt or --prompt-file, not both.")
        prompt = _read(prompt_file)
    first = Sampling(**given(settings) | ({"temperature": 0.0} if greedy else {}))
    assert first.seed is not None
    loaded = load(run, out=out)
    training_text = loaded.training_text(indexing()) if originality else None
    results = []
    for i in range(num_samples):
        sampling = dataclasses.replace(first, seed=first.seed + i)
        with warnings.catch_warnings(record=True, category=PromptTruncated) as caught:
            warnings.simplefilter("always", PromptTruncated)
            pieces = loaded.stream(prompt, sampling, max_new_tokens, stop=stop, precision=precision, unknown=unknown)
        if i == 0:
            for warning in caught:
                note(str(warning.message))
        if num_samples > 1 and not json:
            print(f"--- sample {i + 1}, seed {sampling.seed}")
        text = "".join(pieces if json else _printed(prompt, pieces))
        found = training_text.report(text) if training_text else None
        if json:
            copies = {"originality": dataclasses.asdict(found)} if found else {}
            results.append({"prompt": prompt, "text": text, "seed": sampling.seed, **copies})
        elif found:
            show_originality(prompt, text, found)
    if json:
        print_json(results)
    elif settings.get("seed") is None and first.temperature > 0:
        note(f"Use --seed {first.seed} to get this sample again.")


def _printed(prompt: str, pieces: Iterable[str]) -> Iterator[str]:
    # A terminal obeys control characters, and a stranger's model may generate any. A file gets them as they are.
    shown = printable if sys.stdout.isatty() else str
    print(shown(prompt), end="", flush=True)
    for piece in pieces:
        print(shown(piece), end="", flush=True)
        yield piece
    print()


@app.command(name="eval", sort_key=3)
def evaluate(
    run: RunReference,
    /,
    *,
    text: Annotated[str | None, Parameter(show_default=False)] = None,
    max_tokens: Annotated[int | None, Parameter(show_default=False)] = None,
    sliding: Annotated[bool, Parameter(negative="")] = False,
    html: Annotated[Path | None, Parameter(show_default=False)] = None,
    html_tokens: int = 4000,
    unknown: Literal["error", "skip"] = "error",
    out: Out = None,
    json: Json = False,
) -> None:
    """Evaluate a model: loss, perplexity, bits per character and per byte.

    Parameters
    ----------
    text
        A file, folder or corpus to evaluate on. Default: the run's validation part.
    max_tokens
        Read at most this many tokens, evenly spread. 0: all. Default: as during training.
    sliding
        Overlap windows by half, so that every token has at least half a context before it. Losses are lower than
        without it, and not comparable with the training log.
    html
        Write an HTML page that colors each token by its loss.
    html_tokens
        How many tokens that page shows, from the start of the text. 0: all.
    unknown
        What to do with characters that the model has never seen.
    """
    from groundling.run.store import load

    result = load(run, out=out).evaluate(
        text, max_tokens=max_tokens, sliding=sliding, html=html, html_tokens=html_tokens, unknown=unknown
    )
    if json:
        return print_json(result)
    lines = [
        ("loss", f"{result['loss']:.4f} nats per token"),
        ("perplexity", f"{result['perplexity']:.3f}"),
        ("bits per character", f"{result['bits_per_character']:.4f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("windows", result["protocol"]),
        ("scored", f"{result['tokens']:,} tokens, {result['characters']:,} characters"),
        ("checkpoint", f"{os.path.relpath(result['checkpoint'])} (step {result['step']:,})"),
    ]
    print_lines(lines)
    return None


def _read(path: Path) -> str:
    from groundling.data.sources import find_source, read_text

    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file.")
    return "".join(piece for document in find_source(path).documents for piece in read_text(document, note))
