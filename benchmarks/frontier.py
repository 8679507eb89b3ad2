"""Validation loss by training time, measured from the command to the saved model, as a table and a plot.

    python benchmarks/frontier.py --text tinyshakespeare.txt --minutes 1 3 5 --nanogpt ../nanoGPT

For each number of minutes it runs `groundling train TEXT --minutes M`, as a user would. `--nanogpt` adds the laptop
configuration from nanoGPT's README. All models are scored in the same way: on the whole validation part, in windows of
the model's context that do not overlap. Times are wall-clock times of the whole command. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import nanogpt


def train_groundling(text: Path, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train one run. Returns the seconds that the command took and the loss of the saved model."""
    name = f"m{minutes:g}-s{seed}"
    command = [sys.executable, "-m", "groundling", "train", str(text), "--minutes", str(minutes), "--seed", str(seed),
               "--name", name, "--out", str(folder), "--json"]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    result = json.loads(done.stdout)
    score = subprocess.run(
        [sys.executable, "-m", "groundling", "eval", name, "--out", str(folder), "--max-tokens", "0", "--json"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    loss = json.loads(score.stdout)["loss"]
    return {"name": f"groundling --minutes {minutes:g}", "seconds": seconds, "loss": loss, "steps": result["step"],
            "forecast": result["forecast"]}  # fmt: skip


def train_nanogpt(text: Path, checkout: Path, options: str, folder: Path) -> dict[str, Any]:
    """The same for nanoGPT, with these options of its train.py."""
    dataset, vocab_size = nanogpt.prepare(checkout, text)
    seconds = nanogpt.train(checkout, dataset, vocab_size, options, folder / "nanogpt")
    tokens = np.fromfile(checkout / "data" / dataset / "val.bin", dtype=np.uint16)
    loss = nanogpt.score(checkout, folder / "nanogpt" / "ckpt.pt", tokens)
    return {"name": "nanoGPT, laptop configuration", "seconds": seconds, "loss": loss, "steps": 2000}


def draw(rows: list[dict[str, Any]], text: str, path: Path) -> None:
    """Plot loss over minutes. Lower left is better."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    curve = sorted((r["seconds"] / 60, r["loss"]) for r in rows if r["name"].startswith("groundling"))
    axes.plot(*zip(*curve, strict=True), "o-", color="#1b6ca8", label="groundling train --minutes")
    for minutes, loss in curve:
        axes.annotate(f"{loss:.2f}", (minutes, loss), textcoords="offset points", xytext=(0, -16), ha="center",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    for row in rows:
        if not row["name"].startswith("groundling"):
            axes.plot(row["seconds"] / 60, row["loss"], "s", color="#c0504d", label=row["name"])
            axes.annotate(f"{row['loss']:.2f}", (row["seconds"] / 60, row["loss"]), textcoords="offset points",
                          xytext=(0, 8), ha="center")  # fmt: skip
    axes.axhline(1.4697, color="#999999", linestyle="--", linewidth=1)
    axes.annotate("nanoGPT's published best, 1.4697 (hours on a CPU)", (1, 1.4697), xycoords=("axes fraction", "data"),
                  xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=8, color="#666666")  # fmt: skip
    ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 15, 30, 60) if t <= 1.3 * max(m for m, _ in curve)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.margins(y=0.12)
    axes.set_xlabel("minutes from the command to the saved model")
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title(f"{text}, characters, on a CPU", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text file, such as Tiny Shakespeare")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 5], help="training times (default: 1 3 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337], help="default: 1337")
    parser.add_argument("--nanogpt", metavar="DIR", type=Path, help="a checkout of nanoGPT, to compare with")
    parser.add_argument(
        "--rows", type=Path, help="a file to append the results to; the table and plot also show what is already in it"
    )
    parser.add_argument("--picture", type=Path, default=Path("frontier.png"), help="the plot (default: frontier.png)")
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        parser.error(f"--text: {arguments.text} does not exist.")
    if arguments.nanogpt and not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt: {arguments.nanogpt} has no model.py.")
    rows: list[dict[str, Any]] = []
    if arguments.rows and arguments.rows.exists():
        rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, file=sys.stderr)
        if arguments.rows:
            with arguments.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        if arguments.nanogpt:
            keep(train_nanogpt(arguments.text.resolve(), arguments.nanogpt, nanogpt.LAPTOP, Path(folder)))
        for minutes in arguments.minutes:
            for seed in arguments.seeds:
                keep(train_groundling(arguments.text, minutes, seed, Path(folder)))
    print("| | minutes | steps | validation loss |\n|---|---|---|---|")
    for row in sorted(rows, key=lambda r: r["seconds"]):
        assert math.isfinite(row["loss"])
        print(f"| {row['name']} | {row['seconds'] / 60:.2f} | {row['steps']:,} | {row['loss']:.4f} |")
    draw(rows, arguments.text.stem, arguments.picture)


if __name__ == "__main__":
    main()
