"""Time of a training step, and the share of the machine's peak speed that it reaches.

    python benchmarks/throughput.py                                   # groundling's preset workshop
    python benchmarks/throughput.py --nanogpt ../nanoGPT              # compared with nanoGPT, same shape

Each variant runs in its own process, in the order A B C C B A, so that all are affected alike if the machine slows
down. The speed of a matrix product is measured before each. Figures are medians over all steps of both rounds except
the first three, which include setup and compilation. The tokens are random, since the time does not depend on them. Run
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from groundling.config import PRESETS, MachineSettings, Preset
from groundling.machine import choose, matmul_gflops, peak_memory
from groundling.model.compiled import compiled_parts
from groundling.model.describe import flops_per_token
from groundling.model.gpt import GPT
from groundling.training.optimizer import new_optimizer

VOCAB_SIZE = 65
WARMUP_STEPS = 3  # not timed

Step = Callable[[torch.Tensor], None]


def groundling_step(preset: Preset, dtype: str, compile: str) -> Step:
    """A function that makes one step as the trainer does, without logging."""
    machine = choose(MachineSettings(dtype=dtype, compile=compile))  # type: ignore[arg-type]
    model = GPT(preset.model, VOCAB_SIZE).to(machine.device).train()
    optimizer = new_optimizer(model, preset.training, machine.dtype)
    forward = functools.partial(model, run=compiled_parts()) if compile == "on" else model

    def step(tokens: torch.Tensor) -> None:
        for part in tokens.chunk(preset.training.accumulate):
            with machine.autocast():
                loss = F.cross_entropy(forward(part[:, :-1]).float().flatten(0, 1), part[:, 1:].flatten())
            (loss / preset.training.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), preset.training.grad_clip)
        optimizer.step()
        model.zero_grad()

    return step


def gpu_or_cpu() -> torch.device:
    """The GPU if there is one. `choose` would also make the C library keep freed memory, which nanoGPT does not do."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nanogpt_step(folder: Path, preset: Preset, optimized: bool) -> Step:
    """A function that makes one step as nanoGPT's train.py does: as shipped (on CPUs in float32, whatever its dtype
    setting), or `optimized` with bfloat16, torch.compile and fused AdamW."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    m, t = preset.model, preset.training
    device = gpu_or_cpu().type
    config = nanogpt.GPTConfig(
        block_size=m.block_size, vocab_size=VOCAB_SIZE, n_layer=m.n_layer, n_head=m.n_head, n_embd=m.n_embd,
        dropout=m.dropout, bias=False,
    )  # fmt: skip
    model = nanogpt.GPT(config).to(device).train()
    if optimized:
        optimizer = torch.optim.AdamW(model.parameters(), t.learning_rate, betas=(0.9, 0.99), fused=True)
    else:
        optimizer = model.configure_optimizers(t.weight_decay, t.learning_rate, (0.9, 0.99), device)
    forward = torch.compile(model) if optimized else model

    def step(tokens: torch.Tensor) -> None:
        fast = torch.autocast(device, dtype=torch.bfloat16) if optimized else nullcontext()
        with fast:
            _, loss = forward(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def flops_per_step(preset: Preset) -> float:
    """Floating-point operations of a step's matrix products, forward and backward. Attention counts its causal half."""
    tokens = preset.training.batch_size * preset.training.accumulate * preset.model.block_size
    return flops_per_token(preset.model, VOCAB_SIZE) * tokens


def measure(variant: dict[str, Any], steps: int) -> dict[str, Any]:
    """Run one variant in this process. Returns the seconds of its first step and of each timed one, and peak memory."""
    preset = PRESETS[variant["preset"]]
    if variant["kind"] == "groundling":
        step = groundling_step(preset, variant["dtype"], variant["compile"])
    else:
        step = nanogpt_step(Path(variant["folder"]), preset, variant["kind"] == "optimized")
    device = gpu_or_cpu()
    windows = preset.training.batch_size * preset.training.accumulate
    tokens = torch.randint(VOCAB_SIZE, (windows, preset.model.block_size + 1), device=device)
    seconds = []
    for _ in range(WARMUP_STEPS + steps):
        start = time.perf_counter()
        step(tokens)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"cold": seconds[0], "seconds": seconds[WARMUP_STEPS:], "memory": peak_memory()}


def variants(presets: list[str], folder: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and variant of everything to measure. bfloat16 only if the machine chooses it: emulated, it is slow."""
    kinds = [("float32", "off"), ("float32", "on")]
    if choose(MachineSettings()).dtype == torch.bfloat16:
        kinds = [("float32", "off"), ("bfloat16", "off"), ("bfloat16", "on")]
    for name in presets:
        if folder:
            yield f"nanoGPT as shipped, {name}", {"kind": "shipped", "preset": name, "folder": folder}
            yield f"nanoGPT optimized, {name}", {"kind": "optimized", "preset": name, "folder": folder}
        for dtype, compile in kinds:
            label = f"groundling {name}, {dtype}{', compiled' if compile == 'on' else ''}"
            yield label, {"kind": "groundling", "preset": name, "dtype": dtype, "compile": compile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["workshop"], choices=list(PRESETS), help="default: workshop")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round (default: 5)")
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT, to compare with")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(json.loads(arguments.variant), arguments.steps)))
        return
    if arguments.nanogpt and not (Path(arguments.nanogpt) / "model.py").is_file():
        parser.error(f"--nanogpt: {arguments.nanogpt} has no model.py.")
    chosen = dict(variants(arguments.presets, arguments.nanogpt))
    dtypes = sorted({variant.get("dtype", "float32") for variant in chosen.values()})
    results: dict[str, list[dict[str, Any]]] = {label: [] for label in chosen}
    for number, label in enumerate([*chosen, *reversed(chosen)], 1):
        probe = {name: matmul_gflops.__wrapped__(name, 2048) for name in dtypes}
        speeds = ", ".join(f"{speed:,.0f} GFLOP/s in {name}" for name, speed in probe.items())
        print(f"{number}/{2 * len(chosen)}  {label}  (matrix product: {speeds})", file=sys.stderr)
        command = [sys.executable, __file__, "--steps", str(arguments.steps), "--variant", json.dumps(chosen[label])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[label].append(json.loads(done.stdout.splitlines()[-1]) | {"probe": probe})
    print("| variant | step, s | tokens/s | share of peak | first step, s | memory, GB |\n|---|---|---|---|---|---|")
    for label, rounds in results.items():
        preset = PRESETS[chosen[label]["preset"]]
        step = statistics.median(second for r in rounds for second in r["seconds"])
        low = chosen[label].get("dtype") == "bfloat16" or chosen[label]["kind"] == "optimized"
        dtype = "bfloat16" if low and "bfloat16" in dtypes else "float32"
        peak = statistics.median(r["probe"][dtype] for rs in results.values() for r in rs)
        t = preset.training
        tokens = t.batch_size * t.accumulate * preset.model.block_size
        share = flops_per_step(preset) / step / peak / 1e9
        print(f"| {label} | {step:.3f} | {tokens / step:,.0f} | {share:.0%} | "
              f"{max(r['cold'] for r in rounds):.1f} | {max(r['memory'] for r in rounds) / 1e9:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
