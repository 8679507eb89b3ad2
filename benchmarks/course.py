"""Runs every chapter of the course as a class does, over several seeds, and measures what the chapters say.

    python benchmarks/course.py                       # all chapters, three seeds
    python benchmarks/course.py --chapters 4 5 --seeds 1 2 --text tinyshakespeare.txt

Writes `measured.json` of the course: the lowest and highest value of each figure over the seeds, and the median seconds
of each chapter. Chapters that are not measured keep their entries. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import groundling.course
from groundling.course import progress
from groundling.course.chapter import chapter, chapters
from groundling.course.program import program
from groundling.machine import matmul_gflops

RESULT = Path(groundling.course.__file__).parent / "measured.json"


def run(number: int, seed: int, text: str) -> tuple[float, dict[str, Any]]:
    """Seconds and figures of a chapter, in a new folder and a new process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress.write(progress.Progress(text=text), folder)
        file = folder / f"chapter_{number}.py"
        file.write_text(program(chapter(number), "class", seed), encoding="utf-8")
        started = time.monotonic()
        subprocess.run([sys.executable, file.name], cwd=folder, check=True, stdin=subprocess.DEVNULL)
        return time.monotonic() - started, progress.read(folder).figures


def measure(number: int, seeds: list[int], text: str, result: dict[str, Any]) -> None:
    """Run a chapter with each seed, and put its figures into `result`."""
    ended = [run(number, seed, text) for seed in seeds]
    result["seconds"][str(number)] = round(statistics.median(seconds for seconds, _ in ended), 1)
    for name in ended[0][1]:
        values = [figures[name] for _, figures in ended]
        if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            result["figures"][name] = [min(values), max(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chapters", type=int, nargs="+", default=list(chapters()), metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--text", default="shakespeare", help="Tiny Shakespeare, if it is not in the cache")
    arguments = parser.parse_args()
    text = str(Path(arguments.text).resolve()) if Path(arguments.text).is_file() else arguments.text
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    result |= {"seeds": len(arguments.seeds), "gflops": round(matmul_gflops("float32"), 1)}
    for number in arguments.chapters:
        measure(number, arguments.seeds, text, result)
        print(f"chapter {number}: {result['seconds'][str(number)]} s", flush=True)
        RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
