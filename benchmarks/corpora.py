"""Speed and memory of preparing large corpora, beside the tokenizer library's own speed.

    python benchmarks/corpora.py                              # 1, 3 and 10 GB of text, with bpe
    python benchmarks/corpora.py --sizes 100 300 --kinds bpe char byte --format jsonl

Writes a text of each size (words of Python's documentation, drawn by their frequency), and prepares it with `groundling
prepare` in a process of its own and an empty cache. Memory is that of the process and all below it, sampled ten times a
second; pages that they share count for each. The library's speed is that of one process for each core, which all encode
documents of the same text at the same time and do nothing else: `encode_batch_fast` of the library `tokenizers` for
bpe, groundling's own encoder for char and byte. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def library_speed(tokenizer: Path, processes: int) -> float:
    """Bytes per second of the library in all processes together."""
    command = [sys.executable, __file__, "--library", str(tokenizer)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(processes)]
    return sum(float(process.communicate()[0]) for process in running)


def encode_alone(tokenizer: Tokenizer) -> float:
    """Bytes per second of the library in this process."""
    texts, size = list[str](), 0
    for more in documents():
        texts += more
        size += sum(len(text.encode()) for text in more)
        if size >= LIBRARY_BYTES:
            break
    library = getattr(tokenizer, "_library", None)
    start = time.perf_counter()
    for first in range(0, len(texts), 1000):
        if library is None:
            tokenizer.encode_array("\n".join(texts[first : first + 1000]))
        else:
            library.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
    return size / (time.perf_counter() - start)


def watched(command: list[str], **environment: str) -> tuple[dict[str, Any], float, int]:
    """Run a command. Returns the JSON that it prints, its seconds, and the most memory that it had."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | environment)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        memory = 0
        try:
            for each in (tree, *tree.children(recursive=True)):
                memory += each.memory_info().rss
        except psutil.NoSuchProcess:
            pass  # it ended while it was looked at
        peak = max(peak, memory)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed.")
    assert process.stdout is not None
    return json.loads(process.stdout.read()), seconds, peak


def measure(path: Path, kind: str, tokenizer: Path, processes: int) -> dict[str, Any]:
    """Prepare a text with an empty cache."""
    cache = path.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    chosen = str(tokenizer) if kind == "bpe" else kind  # training one takes as long for 1 GB as for 10
    command = [sys.executable, "-m", "groundling", "prepare", str(path), "--tokenizer", chosen, "--json"]
    made, seconds, peak = watched([*command, "--processes", str(processes)], GROUNDLING_CACHE=str(cache))
    shutil.rmtree(cache)
    return {"bytes": path.stat().st_size, "tokens": made["tokens"], "seconds": seconds, "memory": peak}


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
    speeds = {kind: library_speed(path, processes) for kind, path in tokenizers.items()}
    print(f"{processes} processes, {format}")
    print("| tokenizer | text, MB | seconds | MB/s | tokens/s | library × cores, MB/s | ratio | memory, GB |")
    print("|---|---|---|---|---|---|---|---|")
    text, seconds = folder / f"text.{format}", {kind: list[float]() for kind in tokenizers}
    for size in sizes:
        write(text, size, format)
        for kind, path in tokenizers.items():
            made = measure(text, kind, path, processes)
            seconds[kind].append(made["seconds"])
            rate = made["bytes"] / made["seconds"]
            print(f"| {kind} | {made['bytes'] / 1e6:,.0f} | {made['seconds']:,.1f} | {rate / 1e6:,.1f} | "
                  f"{made['tokens'] / made['seconds']:,.0f} | {speeds[kind] / 1e6:,.1f} | {rate / speeds[kind]:.0%} | "
                  f"{made['memory'] / 1e9:.2f} |", flush=True)  # fmt: skip
        text.unlink()
    for kind, measured in seconds.items():
        if len(sizes) > 2:
            slope, start = np.polyfit(sizes, measured, 1)
            off = np.abs(np.polyval([slope, start], sizes) / measured - 1).max()
            print(f"{kind}: {start:.1f} s and {slope * 1e9:.1f} s per GB; the sizes are within {off:.0%} of that line")


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
        print(encode_alone(Tokenizer.load(arguments.library)))
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
