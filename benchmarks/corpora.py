"""Speed and memory of preparing large corpora, beside the tokenizer library's own speed.

    python benchmarks/corpora.py                              # 1, 3 and 10 GB of text, with bpe
    python benchmarks/corpora.py --sizes 100 300 --kinds bpe char byte --format jsonl

Writes a text of each size (words of Python's documentation, drawn by their frequency), and prepares it with `groundling
prepare` in a process of its own and an empty cache. The library's speed is that of one process for each core, which all
encode documents of the same text at the same time and do nothing else: `encode_batch_fast` of the library `tokenizers`
for bpe, groundling's own encoder for char and byte. It is measured before and after each text.

Times are wall seconds, and CPU seconds (user and system) of all processes together. Compare the CPU seconds if the
machine is not idle. With several sizes, a line through them tells what the start costs, and each GB after it. Memory is
that of all processes together, sampled ten times a second; pages that they share count for each.

At last, it trains 20 steps of the preset `nano` on the last text: how long it takes until the first step, and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from groundling.data.shards.pool import processes_for
from groundling.data.tokenizers.base import Tokenizer

WORDS_PER_DOCUMENT = 400
DOCUMENTS_AT_ONCE = 200
VOCABULARY = 16_384
LIBRARY_BYTES = 16_000_000  # of text that each process encodes to measure the library


def documents(seed: int = 0) -> Iterator[list[str]]:
    """Texts without end, some at a time."""
    from pydoc_data.topics import topics

    words, random = " ".join(topics[name] for name in sorted(topics)).split(" "), np.random.default_rng(seed)
    while True:
        drawn = random.integers(len(words), size=(DOCUMENTS_AT_ONCE, WORDS_PER_DOCUMENT))
        yield [" ".join(map(words.__getitem__, row)) for row in drawn.tolist()]


def write(path: Path, n_bytes: int, format: str) -> None:
    """Write documents to `path`, up to a size."""
    with path.open("wb") as file:
        for texts in documents():
            if format == "jsonl":
                file.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
            else:
                file.write("".join(text + "\n<|endoftext|>\n" for text in texts).encode())
            if file.tell() >= n_bytes:
                return


def library_cost(tokenizer: Path, processes: int) -> tuple[float, float]:
    """Wall and CPU seconds of the library for each GB of text: wall seconds of all processes together."""
    command = [sys.executable, __file__, "--library", str(tokenizer)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(processes)]
    wall, cpu = zip(*(json.loads(process.communicate()[0]) for process in running), strict=True)
    return 1 / sum(1 / each for each in wall), statistics.mean(cpu)


def encode_alone(tokenizer: Tokenizer) -> tuple[float, float]:
    """Wall and CPU seconds of the library in this process for each GB of text."""
    texts, size = list[str](), 0
    for more in documents():
        texts += more
        size += sum(len(text.encode()) for text in more)
        if size >= LIBRARY_BYTES:
            break
    library = getattr(tokenizer, "_library", None)
    rounds = 1 if library else 20
    start, cpu = time.perf_counter(), time.process_time()
    for first in [*range(0, len(texts), 1000)] * rounds:
        if library is None:
            tokenizer.encode_array("\n".join(texts[first : first + 1000]))
        else:
            library.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
    gigabytes = size * rounds / 1e9
    return (time.perf_counter() - start) / gigabytes, (time.process_time() - cpu) / gigabytes


@dataclass(frozen=True)
class Cost:
    """What a command took. Memory in bytes."""

    seconds: float
    cpu_seconds: float
    memory: int
    output: str
    seconds_until: float | None
    """When the file to wait for had its first line."""


def cost_of(command: list[str], cache: Path, wait_for: str = "") -> Cost:
    """Run a command. `wait_for` is a pattern of a file."""
    start, cpu, peak, until = time.perf_counter(), os.times(), 0, None
    environment = os.environ | {"GROUNDLING_CACHE": str(cache)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        memory = 0
        try:
            for each in (tree, *tree.children(recursive=True)):
                memory += each.memory_info().rss
        except psutil.NoSuchProcess:
            pass  # it ended while it was looked at
        peak = max(peak, memory)
        if wait_for and until is None and any(path.stat().st_size for path in cache.parent.glob(wait_for)):
            until = time.perf_counter() - start
        time.sleep(0.1)
    seconds, after = time.perf_counter() - start, os.times()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed.")
    assert process.stdout is not None
    used = after.children_user + after.children_system - cpu.children_user - cpu.children_system
    return Cost(seconds, used, peak, process.stdout.read().decode(), until)


def measure(path: Path, kind: str, tokenizer: Path, processes: int) -> Cost:
    """Prepare a text with an empty cache, which stays."""
    cache = path.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    return cost_of([*groundling("prepare", path, kind, tokenizer), "--json", "--processes", str(processes)], cache)


def groundling(verb: str, path: Path, kind: str, tokenizer: Path) -> list[str]:
    # Training a bpe tokenizer takes as long for 1 GB as for 10, so it is trained before.
    chosen = str(tokenizer) if kind == "bpe" else kind
    return [sys.executable, "-m", "groundling", verb, str(path), "--tokenizer", chosen]


def train(path: Path, kind: str, tokenizer: Path) -> None:
    """Train a few steps on the prepared text."""
    runs = path.with_name("runs")
    shutil.rmtree(runs, ignore_errors=True)
    options = ["--preset", "nano", "--steps", "20", "--compile", "off", "--eval-tokens", "10000", "--out"]
    command = [*groundling("train", path, kind, tokenizer), *options, str(runs)]
    cost = cost_of(command, path.with_name("cache"), "runs/*/metrics.jsonl")
    print(
        f"train: {cost.seconds_until:,.1f} s until the first step, {cost.seconds:,.1f} s in all, "
        f"{cost.memory / 1e9:.2f} GB of memory"
    )


def made_tokenizers(kinds: list[str], folder: Path) -> dict[str, Path]:
    """A tokenizer of each kind, learned from a small text of the same words."""
    sample, made = folder / "sample.txt", {kind: folder / f"{kind}.json" for kind in kinds}
    write(sample, LIBRARY_BYTES, "text")
    for kind, path in made.items():
        command = [sys.executable, "-m", "groundling", "tokenizer", "train", str(sample), "--kind", kind]
        subprocess.run([*command, "--vocab-size", str(VOCABULARY), "--out", str(path)], check=True, stdout=sys.stderr)
    return made


def compare(sizes: list[int], tokenizers: dict[str, Path], format: str, folder: Path, processes: int) -> None:
    """Print a row for each size and tokenizer, and how straight a line the sizes give."""
    print(f"{processes} processes, {format}")
    print("| tokenizer | text, MB | s | CPU s | Mtokens | library, s | library, CPU s | share, s | share, CPU s | GB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    text, found = folder / f"text.{format}", {kind: list[tuple[float, float, float]]() for kind in tokenizers}
    for size in sizes:
        write(text, size, format)
        gigabytes = text.stat().st_size / 1e9
        for kind, path in tokenizers.items():
            before = library_cost(path, processes)
            made = measure(text, kind, path, processes)
            after = library_cost(path, processes)
            wall, cpu = (gigabytes * statistics.mean(both) for both in zip(before, after, strict=True))
            found[kind].append((gigabytes, made.cpu_seconds, cpu))
            print(
                f"| {kind} | {gigabytes * 1000:,.0f} | {made.seconds:,.1f} | {made.cpu_seconds:,.1f} | "
                f"{json.loads(made.output)['tokens'] / 1e6:,.1f} | {wall:,.1f} | {cpu:,.1f} | "
                f"{wall / made.seconds:.0%} | {cpu / made.cpu_seconds:.0%} | {made.memory / 1e9:.2f} |",
                flush=True,
            )
    for kind, rows in found.items():
        if len(sizes) > 1:
            gigabytes, ours, library = map(np.array, zip(*rows, strict=True))
            slope, start = np.polyfit(gigabytes, ours, 1)
            off = np.abs(np.polyval([slope, start], gigabytes) / ours - 1).max()
            print(
                f"{kind}: {start:.1f} CPU s to start, and {slope:.1f} for each GB, within {off:.0%}; the library's "
                f"are {100 * library.sum() / gigabytes.sum() / slope:.0f} % of that"
            )
    train(text, kind, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 3000, 10_000], help="MB")
    parser.add_argument("--kinds", nargs="+", default=["bpe"], choices=["bpe", "char", "byte"], help="default: bpe")
    parser.add_argument("--format", default="txt", choices=["txt", "jsonl"], help="default: txt")
    parser.add_argument("--folder", type=Path, default=Path("corpora"), help="for texts and caches; default: corpora")
    parser.add_argument("--processes", type=int, default=processes_for(sys.maxsize), help="default: one for each core")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.library:
        print(json.dumps(encode_alone(Tokenizer.load(arguments.library))))
        return
    folder, sizes = arguments.folder, [size * 1_000_000 for size in arguments.sizes]
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * max(sizes), shutil.disk_usage(folder).free
    if free < needed:
        parser.error(f"{folder} has {free / 1e9:.0f} GB free. This needs {needed / 1e9:.0f} GB. Use another --folder.")
    tokenizers = made_tokenizers(arguments.kinds, folder)
    compare(sizes, tokenizers, arguments.format, folder, arguments.processes)


if __name__ == "__main__":
    main()
