"""Training time to reach nanoGPT's published validation loss, 1.4697, on the characters of Tiny Shakespeare.

    python benchmarks/time_to_loss.py --text tinyshakespeare.txt --nanogpt ../nanoGPT

It increases the budget of `groundling train --minutes` until the saved model reaches the target, scored on the whole
validation part in windows of 256 characters that do not overlap. The result is the time of the training steps only:
evaluations and samples are left out on both sides, and the time before the first step has its own column. nanoGPT's
time is extrapolated, and labelled so: its measured step time, times the 2,000 steps after which its log shows its best
loss. The speed of a matrix product between the runs shows whether the machine was steady. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from groundling.machine import matmul_gflops

TARGET = 1.4697
NANOGPT_STEPS = 2000


def command(*arguments: str) -> Any:
    """Run Python with these arguments. Returns the JSON at the end of its output; nanoGPT prints lines before it."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout[done.stdout.index("{") :])


def train(text: Path, minutes: float, seed: int, out: Path) -> dict[str, Any]:
    """Train for some minutes. Returns the loss of the saved model, and how long the steps took."""
    name = f"m{minutes:g}-s{seed}"
    common = ["--out", str(out), "--json"]
    result = command("-m", "groundling", "train", str(text), "--minutes", str(minutes), "--seed", str(seed),
                     "--name", name, *common)  # fmt: skip
    loss = command("-m", "groundling", "eval", name, "--max-tokens", "0", *common)["loss"]
    events = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    tokens = steps[0]["tokens"]
    seconds = statistics.median(tokens / event["tokens_per_second"] for event in steps)
    return {"minutes": minutes, "seed": seed, "loss": loss, "steps": result["step"], "step_seconds": seconds,
            "training_minutes": result["step"] * seconds / 60, "cold": steps[0]["elapsed"] - seconds}  # fmt: skip


def nanogpt_step(folder: Path, kind: str) -> float:
    """Seconds per training step of nanoGPT's full configuration, which has the same shape as the preset `workshop`."""
    variant = json.dumps({"kind": kind, "preset": "workshop", "folder": str(folder)})
    script = str(Path(__file__).with_name("throughput.py"))
    return statistics.median(command(script, "--steps", "3", "--variant", variant)["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="Tiny Shakespeare")
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[2, 3, 4, 5, 7, 10], help="budgets to try, in ascending order"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337], help="default: 1337")
    parser.add_argument("--nanogpt", metavar="DIR", type=Path, help="a checkout of nanoGPT, to compare with")
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        parser.error(f"--text: {arguments.text} does not exist.")
    probes, rows, reached = [matmul_gflops("float32")], [], None
    nanogpt_seconds = {}
    if arguments.nanogpt:
        for kind in ("shipped", "optimized"):
            nanogpt_seconds[kind] = nanogpt_step(arguments.nanogpt, kind)
            probes.append(matmul_gflops.__wrapped__("float32"))
    print("| budget, min | seed | training, min | cold start, s | steps | step, s | validation loss |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as out:
        for minutes in arguments.minutes:
            found = [train(arguments.text, minutes, seed, Path(out)) for seed in arguments.seeds]
            rows += found
            probes.append(matmul_gflops.__wrapped__("float32"))
            for row in found:
                print(f"| {row['minutes']:g} | {row['seed']} | {row['training_minutes']:.2f} | {row['cold']:.1f} | "
                      f"{row['steps']:,} | {row['step_seconds']:.3f} | {row['loss']:.4f} |", flush=True)  # fmt: skip
            if statistics.median(row["loss"] for row in found) <= TARGET:
                reached = statistics.median(row["training_minutes"] for row in found)
                break
    print(f"\nSpeed of a matrix product between the runs, GFLOP/s: {', '.join(f'{p:.0f}' for p in probes)}")
    if reached is None:
        print(f"{TARGET} was not reached in {arguments.minutes[-1]:g} minutes.")
        return
    print(f"{TARGET} was reached in {reached:.2f} minutes of training.")
    for kind, seconds in nanogpt_seconds.items():
        minutes = seconds * NANOGPT_STEPS / 60
        print(
            f"nanoGPT {kind}: {seconds:.2f} s per step, so {minutes:.0f} min for {NANOGPT_STEPS:,} steps "
            f"(extrapolated): {minutes / reached:.0f} times as long."
        )


if __name__ == "__main__":
    main()
