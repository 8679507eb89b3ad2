"""Verbs that use a model: sample, eval."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, Text, app, note, print_json, print_lines


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
                note(str(warning.message))
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
        print_json(results)
    elif seed is None and first.temperature > 0:
        note(f"--seed {first.seed} gives this again.")


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
        return print_json(result)
    lines = [
        ("loss", f"{result['loss']:.4f} nats a token"),
        ("perplexity", f"{result['perplexity']:.3f}"),
        ("bits per character", f"{result['bits_per_character']:.4f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("scored", f"{result['tokens']:,} tokens, {result['characters']:,} characters"),
        ("checkpoint", f"{os.path.relpath(result['checkpoint'])} (step {result['step']:,})"),
    ]
    print_lines(lines)
    return None


def _read(path: Path) -> str:
    from groundling.corpus.sources import find_source, read_text

    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file.")
    return "".join(piece for document in find_source(path).documents for piece in read_text(document, note))
