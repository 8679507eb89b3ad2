"""Commands that use a model: sample, eval."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import warnings
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundling.cli.app import Json, Out, Precision, RunReference, Text, Unknown, app, note, print_json, print_rows, tee
from groundling.cli.copies import indexing, show_originality
from groundling.cli.flags import with_settings
from groundling.cli.task_score import show_task_score
from groundling.config import Limits, Sampling, limits, user_path


@app.command(sort_key=2)
@with_settings("sampling")
def sample(
    run: RunReference,
    /,
    *,
    prompt: Annotated[str, Text] = "",
    prompt_file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,  # "-" is one
    max_new_tokens: int = 300,
    greedy: bool = False,
    num_samples: int = 1,
    stop: Annotated[tuple[str, ...], Text] = (),
    precision: Precision = "float32",
    originality: bool = False,
    unknown: Unknown = "error",
    out: Out = None,
    json: Json = False,
    **settings: Any,
) -> None:
    """Generate text.

    Args:
        prompt: The text to continue. Default: the beginning of a document. \\n means a line break, \\t a tab, and
            \\\\ a backslash, here and in --stop.
        prompt_file: Read the prompt from a UTF-8 file exactly as it is. - reads standard input.
        max_new_tokens: How many tokens to generate.
        greedy: The same as --temperature 0.
        num_samples: How many samples. Each uses the next seed.
        stop: End where this text appears. Repeat the flag for several.
        originality: Show what the sample copied verbatim from the training text.
    """
    from groundling.data.tokenizers.base import PromptWarning
    from groundling.run.store import load

    Limits(1).check("--num-samples", num_samples)
    if prompt_file is not None:
        if prompt:
            raise ValueError("Use --prompt or --prompt-file, not both.")
        prompt = _read(prompt_file)
    if greedy:
        settings["temperature"] = 0.0
    first = Sampling(**settings)
    assert first.seed is not None
    loaded = load(run, out=out)
    training_text = loaded.training_text(indexing()) if originality else None
    results = []
    for i in range(num_samples):
        sampling = dataclasses.replace(first, seed=(first.seed + i) % 2**63)
        with warnings.catch_warnings(record=True, action="always", category=PromptWarning) as caught:
            pieces = loaded.stream(prompt, sampling, max_new_tokens, stop=stop, precision=precision, unknown=unknown)
        if i == 0:
            for warning in caught:
                note(str(warning.message))
        if num_samples > 1 and not json:
            print(f"--- sample {i + 1}, seed {sampling.seed}")
        if json:
            text = "".join(pieces)
        else:
            text = "".join(tee(chain([prompt], pieces))).removeprefix(prompt)
            print()
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


@app.command(name="eval", sort_key=3)
def evaluate(
    run: RunReference,
    /,
    *,
    text: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, help="Files, folders or corpora. Default: the run's validation part."),
    ] = (),
    max_tokens: int | None = None,
    sliding: bool = False,
    html: Path | None = None,
    html_tokens: int = 4000,
    by_position: bool = False,
    unknown: Unknown = "error",
    task: Annotated[str | None, Parameter(help="Score it on this task instead. `groundling tasks` lists them.")] = None,
    level: int | None = None,
    items: int | None = None,
    attempts: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    tool: bool = False,
    against: str | None = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Evaluate a model: loss, perplexity, bits per character and per byte. Or with --task: its share of right answers.

    Args:
        max_tokens: Read at most this many tokens, evenly spread. 0: all. Default: as during training.
        sliding: Overlap windows by half for more context. Losses are lower, and not comparable with the training log.
        html: Write an HTML page that colors each token by its loss.
        html_tokens: How many tokens that page shows, from the start of the text. 0: all.
        by_position: Also measure the loss by how many tokens came before. `groundling report` draws it.
        level: Level of the task. Default: the task's.
        items: How many questions of the task's test part. Default: 256.
        attempts: How many replies to sample for each question, for pass@k. 0: none. Default: 8.
        temperature: Of the reply that is judged. 0: the most likely reply. Default: 0.
        seed: Seed of the sampled replies. Default: 0.
        tool: Let the model call the calculator.
        against: Another run to ask the same questions, such as the parent.
    """
    from groundling.run.store import load

    numbers = (("level", level), ("items", items), ("attempts", attempts), ("temperature", temperature), ("seed", seed))
    given = {name: number for name, number in numbers if number is not None}
    for name, number in given.items():
        limits.TASK[name].check(f"--{name}", number)
    if task is not None:
        if text or sliding or by_position or html is not None or max_tokens is not None:
            raise ValueError(
                "--task asks questions. --text, --max-tokens, --sliding, --by-position and --html are for a loss."
            )
        other = None if against is None else load(against, out=out)
        return show_task_score(load(run, out=out), task, other, json, tool=tool, **given)
    if given or tool or against is not None:
        raise ValueError("--level, --items, --attempts, --temperature, --seed, --tool and --against need a --task.")
    result = load(run, out=out).evaluate(
        text or None, max_tokens=max_tokens, sliding=sliding, html=html, html_tokens=html_tokens,
        by_position=by_position, unknown=unknown,
    )  # fmt: skip
    if json:
        return print_json(result)
    for sentence in result["notes"]:
        note(sentence)
    print_rows([
        ("loss", f"{result['loss']:.4f} nats per token"),
        ("perplexity", f"{result['perplexity']:.3f}"),
        ("bits per character", f"{result['bits_per_character']:.4f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("windows", result["protocol"]),
        ("scored", f"{result['tokens']:,} tokens, {result['characters']:,} characters"),
        ("checkpoint", f"{os.path.relpath(result['checkpoint'])} (step {result['step']:,})"),
        *((f"loss on {text['name']}", f"{text['loss']:.4f} ({text['share']:.1%})") for text in result.get("texts", [])),
        *(
            (f"after {group['first']:,} to {group['last']:,} tokens", f"{group['loss']:.4f} nats per token")
            for group in result.get("positions", [])
        ),
    ])  # fmt: skip
    return None


def _read(path: Path) -> str:
    from groundling.data.files import TextFile, file_at, read_text

    if path == Path("-"):
        content, name = sys.stdin.buffer.read(), "standard input"
    else:
        path, name = user_path("--prompt-file", path), f"--prompt-file {path}"
        if path.is_file():
            return "".join(read_text(file_at(path, str(path), path.name), note))
        if path.is_dir() or not path.exists():
            raise ValueError(f"{name} {'is a folder' if path.is_dir() else 'does not exist'}. Give a text file.")
        content = path.read_bytes()  # a pipe, as in `--prompt-file <(command)`
    return "".join(read_text(TextFile(name, name, lambda: io.BytesIO(content), len(content)), note))
