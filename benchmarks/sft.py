"""Examples per second of supervised fine-tuning, beside TRL's SFTTrainer on the same exported model and examples.

    python benchmarks/sft.py                       # needs trl: pip install "groundling[test,parity]"
    python benchmarks/sft.py --preset laptop --steps 30

Both train a model of random weights on the same token ids, with batches of the same size and AdamW, in processes of
their own that take turns, in float32 and in bfloat16. The rate is that of the median step, after some to warm up.
Examples are counted and not tokens, because the two pad differently.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import groundling
from groundling.data.conversations import Message
from groundling.environments import find_environment
from groundling.run.run import Run
from groundling.training.events import Event, Step

N, WARM = 2_000, 5


def prepare(folder: Path, preset: str) -> None:
    """A pretrained run, its first fine-tuning step, the export of that, and the examples for both."""
    task = find_environment("sums")
    items = [task.item(i) for i in range(N)]
    text = "".join(f"{item.prompt}\n{item.working};#{item.answer}\n" for item in items)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    rows = [{"prompt": item.prompt, "completion": f"{item.working};#{item.answer}"} for item in items]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    quiet: Any = {"out": folder / "runs", "on_event": lambda event: None}
    base = groundling.train(folder / "text.txt", preset=preset, steps=2, name="base", compile="off", **quiet)
    tuned = groundling.sft(base, folder / "chats.jsonl", steps=1, name="first", **quiet)
    groundling.export(tuned, to="huggingface", out=folder / "exported")
    chats = [[Message("user", row["prompt"]), Message("assistant", row["completion"])] for row in rows]
    rendered = [tuned.tokenizer.render(chat) for chat in chats]  # type: ignore[attr-defined]
    examples = [{"input_ids": each.ids, "completion_mask": [int(x) for x in each.learned]} for each in rendered]
    (folder / "examples.json").write_text(json.dumps(examples), encoding="utf-8")


def ours(folder: Path, dtype: str, steps: int, batch_size: int) -> list[float]:
    """Seconds of each step."""
    times: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Step):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        groundling.sft(
            Run(folder / "runs" / "base"), folder / "chats.jsonl", steps=steps, batch_size=batch_size, dtype=dtype,
            eval_every=steps, sample_every=0, out=out, on_event=note,
        )  # fmt: skip
    return [after - before for before, after in pairwise(times)]


def trls(folder: Path, dtype: str, steps: int, batch_size: int) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out, max_steps=steps, per_device_train_batch_size=batch_size, use_cpu=True,
            bf16=dtype == "bfloat16", gradient_checkpointing=False, report_to="none", save_strategy="no",
            learning_rate=1e-3, max_length=None, logging_steps=steps, disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder / "exported"), settings,
            train_dataset=Dataset.from_list(json.loads((folder / "examples.json").read_text())),
            processing_class=AutoTokenizer.from_pretrained(folder / "exported"), callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return [after - before for before, after in pairwise(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="shape of the model (default: nano)")
    parser.add_argument("--steps", type=int, default=40, help="of each measurement (default: 40)")
    parser.add_argument("--batch-size", type=int, default=32, help="examples a step (default: 32)")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each (default: 2)")
    parser.add_argument("--measure", nargs=3, metavar=("PROGRAM", "DTYPE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        program, dtype, folder = arguments.measure
        seconds = {"groundling": ours, "TRL": trls}[program](Path(folder), dtype, arguments.steps, arguments.batch_size)
        print(json.dumps(seconds[WARM:]))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.preset)
        kinds = [(program, dtype) for dtype in ("float32", "bfloat16") for program in ("groundling", "TRL")]
        found: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind in kinds:
                command = [sys.executable, __file__, "--measure", *kind, folder, "--steps", str(arguments.steps)]
                command += ["--batch-size", str(arguments.batch_size)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[kind] += json.loads(done.stdout.splitlines()[-1])
    print("| program | dtype | step, ms | examples/s | TRL's step, in ours |")
    print("|---|---|---|---|---|")
    for program, dtype in kinds:
        step = statistics.median(found[program, dtype])
        ratio = step / statistics.median(found["groundling", dtype])
        print(f"| {program} | {dtype} | {1000 * step:.1f} | {arguments.batch_size / step:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
