"""Compare settings by validation loss, without using the validation part that published losses are measured on.

    python benchmarks/choices.py --text tinyshakespeare.txt "--weight-decay 0.5" "--weight-decay 0.1 --dropout 0.05" \\
        --steps 2600 --seeds 1 2

The last tenth of the text is cut off and never read. The last tenth of the rest is the validation part. Each argument
is a set of options for `groundling train`, which override those of a run planned for some minutes (6 layers × 128,
batch size 16, Muon, no dropout, weight decay 0.5, averaged weights). All runs have the same number of steps. Nothing is
timed, so you can run several at once. The defaults of `--minutes` were chosen in this way.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BASE_OPTIONS = shlex.split(
    "--n-layer 6 --n-head 2 --n-embd 128 --block-size 256 --batch-size 16 --norm rmsnorm --position rope --mlp swiglu"
    " --optimizer muon --learning-rate 0.003 --matrix-learning-rate 0.02 --beta2 0.95 --schedule linear"
    " --final-lr-fraction 0 --dropout 0 --weight-decay 0.5 --weight-average 0.06 --sample-tokens 0"
)


def training_part(text: Path, folder: Path) -> Path:
    """Write the first nine tenths of the text to a file in `folder`."""
    content = text.read_text(encoding="utf-8")
    path = folder / f"{text.stem}-slice.txt"
    path.write_text(content[: len(content) * 9 // 10], encoding="utf-8", newline="")
    return path


def train_and_score(text: Path, options: list[str], steps: int, seed: int, name: str, folder: Path) -> float:
    """Train, and return the loss on the whole validation part in nats per token."""
    python = [sys.executable, "-m", "groundling"]
    base = [*BASE_OPTIONS, "--warmup-steps", str(max(1, steps // 30))]
    pairs = zip(base[::2], base[1::2], strict=True)
    settings = [part for pair in pairs if pair[0] not in options for part in pair] + options
    settings += ["--steps", str(steps), "--eval-every", str(steps), "--seed", str(seed)]
    train = [*python, "train", str(text), *settings, "--name", name, "--out", str(folder), "--json"]
    if subprocess.run(train, check=False, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"Training with {shlex.join(options)} failed; the error is above.")
    score = [*python, "eval", name, "--out", str(folder), "--max-tokens", "0", "--json"]
    done = subprocess.run(score, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="+", help="options for `groundling train`; put each set in quotes")
    parser.add_argument("--text", type=Path, required=True, help="a text file, such as Tiny Shakespeare")
    parser.add_argument("--steps", type=int, default=1300, help="steps per run (default: 1300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337], help="default: 1337")
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        parser.error(f"--text: {arguments.text} does not exist.")
    print("| options | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " | mean |")
    print("|" + "---|" * (len(arguments.seeds) + 2), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        text = training_part(arguments.text, Path(folder))
        for i, options in enumerate(arguments.options):
            losses = []
            for seed in arguments.seeds:
                name = f"{i}-{seed}"
                losses.append(train_and_score(text, shlex.split(options), arguments.steps, seed, name, Path(folder)))
            cells = [f"`{options}`", *(f"{loss:.4f}" for loss in losses), f"{statistics.mean(losses):.4f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
