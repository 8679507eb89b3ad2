"""Verbs that use a model: sample, eval."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, Text, app, note, print_json, print_lines
from groundling.cli.copies import indexing, show_originality
from groundling.escape import printable


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
    top_p: Annotated[float, Parameter(allow_leading_hyphen=True)] = 1.0,
    min_p: Annotated[float, Parameter(allow_leading_hyphen=True)] = 0.0,
    repetition_penalty: Annotated[float, Parameter(allow_leading_hyphen=True)] = 1.0,
    presence_penalty: Annotated[float, Parameter(allow_leading_hyphen=True)] = 0.0,
    frequency_penalty: Annotated[float, Parameter(allow_leading_hyphen=True)] = 0.0,
    stop: Annotated[tuple[str, ...], Text] = (),
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    originality: Annotated[bool, Parameter(negative="")] = False,
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
    top_p
        Draw among the likeliest tokens that together have this probability; 1 for no limit.
    min_p
        Draw among tokens at least this share as likely as the likeliest; 0 for no limit.
    repetition_penalty
        Above 1: tokens that stand in the prompt or were written become less likely.
    presence_penalty
        Above 0: tokens that were written become less likely.
    frequency_penalty
        Above 0: tokens become less likely each time that they are written.
    stop
        End where this text appears; may be given several times.
    precision
        Of the weights: fewer bits are read faster, and round the model.
    originality
        Tell what of it stands verbatim in the training text, and show the copied spans.
    unknown
        What to do with characters that the model never saw.
    """
    from groundling.inference.sampling import Sampling
    from groundling.inference.stream import PromptTruncated
    from groundling.run.store import load

    if num_samples < 1:
        raise ValueError(f"--num-samples must be 1 or more, and it is {num_samples}.")
    if prompt_file is not None:
        if prompt:
            raise ValueError("--prompt and --prompt-file exclude each other.")
        prompt = _read(prompt_file)
    first = Sampling(
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
    )
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
    elif seed is None and first.temperature > 0:
        note(f"--seed {first.seed} gives this again.")


def _printed(prompt: str, pieces: Iterable[str]) -> Iterator[str]:
    # A terminal obeys control characters, and a stranger's model may write any; a file gets what was written.
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
    """Score a model: loss, perplexity, bits per character and per byte.

    Parameters
    ----------
    text
        A file, folder or corpus to score it on; the run's own validation part if not given.
    max_tokens
        Read at most so many tokens, evenly spread; 0 for all; as in training if not given.
    sliding
        Let windows overlap by half: every token is predicted with at least half a context before it. Figures are
        lower than without, and do not compare with the training log.
    html
        Write a page on which each token is painted by its loss.
    html_tokens
        How many tokens that page shows, from the text's beginning; 0 for all.
    unknown
        What to do with characters that the model never saw.
    """
    from groundling.run.store import load

    result = load(run, out=out).evaluate(
        text, max_tokens=max_tokens, sliding=sliding, html=html, html_tokens=html_tokens, unknown=unknown
    )
    if json:
        return print_json(result)
    lines = [
        ("loss", f"{result['loss']:.4f} nats a token"),
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
