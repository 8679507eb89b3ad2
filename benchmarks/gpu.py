"""Measure groundling on one GPU, in at most nine minutes. benchmarks/gpu.sh installs what is missing and runs this.

    benchmarks/gpu.sh --out gpu.json --text tinyshakespeare.txt --nanogpt DIR
    benchmarks/gpu.sh --dry-run                     # every part, tiny, on the CPU: shows that the script works

Each part runs in its own process with a time limit, the most valuable one first, and its results are written to the
file as soon as they are there. A part that fails costs nothing but itself. Steps are timed after compilation, many at
a time between two synchronizations, with random tokens. The peak is the fastest product of large bfloat16 matrices on
this GPU. Its share counts the matrix products of a step and half of attention's. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = 1.4697  # nanoGPT's published validation loss on the characters of Tiny Shakespeare
CHARACTERS, GPT2_TOKENS = 65, 50_257

Results = Iterator[dict[str, Any]]
"""Rows of the summary. `what` is the label, the other keys are figures."""


def gpt2_settings(options: argparse.Namespace) -> Any:
    from groundling.config import PRESETS

    model = PRESETS["gpt2"].model
    return replace(model, n_layer=1, n_head=2, n_embd=32, block_size=32) if options.dry_run else model


def device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the GPU has done everything."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], options: argparse.Namespace, rounds: int = 3) -> float:
    """Seconds of one call: the median over some rounds of many calls, after a warm-up that compiles."""
    for _ in range(3):
        work()
    wait()
    start = time.perf_counter()
    work()
    wait()
    once = time.perf_counter() - start
    calls = 1 if options.dry_run else max(1, min(200, round(2 / once)))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def peak_gigabytes() -> float:
    from groundling.machine import peak_memory

    return round(peak_memory() / 1e9, 2)


# The parts.


def peak(options: argparse.Namespace) -> Results:
    """The fastest product of two large bfloat16 matrices, and copies in memory."""
    import torch

    device, n = device_name(), 256 if options.dry_run else 8192
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    block = torch.ones(1 << (20 if options.dry_run else 31), dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    yield {
        "what": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "teraflops": round(2 * n**3 / seconds_of(lambda: a @ b, options) / 1e12, 3),
        "gigabytes_per_second": round(2 * block.numel() / seconds_of(lambda: target.copy_(block), options) / 1e9, 1),
        "torch": torch.__version__,
    }


def new_step(model_settings: Any, training: Any, vocab_size: int, windows: int) -> tuple[Callable[[], None], float]:
    """A function that makes an optimizer step as the trainer does on a GPU, and the operations of a step."""
    import torch

    from groundling.config import MachineSettings
    from groundling.machine import choose
    from groundling.model.compiled import compiled_forward
    from groundling.model.describe import flops_per_token
    from groundling.model.gpt import GPT
    from groundling.training.average import WeightAverage
    from groundling.training.optimizer import new_optimizer

    machine = choose(MachineSettings())
    on_gpu = machine.device.type == "cuda"
    model = GPT(model_settings, vocab_size).to(machine.device).train()
    forward = compiled_forward(model, machine, graphs=True) if on_gpu else model
    optimizer, average = new_optimizer(model, training, machine.dtype), WeightAverage(model, training.weight_average)
    tokens = torch.randint(vocab_size, (windows, model_settings.block_size + 1), device=machine.device)
    before = 0

    def step() -> None:
        nonlocal before
        with machine.autocast():
            loss = forward(tokens[:, :-1], targets=tokens[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        found_inf = 1 - (loss.detach() + norm).isfinite().float()  # the device skips a bad step
        optimizer.step(found_inf)
        average.update(before, 1 - found_inf)
        model.zero_grad()
        before += 1

    return step, flops_per_token(model_settings, vocab_size) * windows * model_settings.block_size


def step_row(what: str, seconds: float, tokens: int, flops: float, options: argparse.Namespace) -> dict[str, Any]:
    share = {"share_of_peak": round(flops / seconds / 1e12 / options.peak, 3)} if options.peak else {}
    return {
        "what": what, "milliseconds": round(1000 * seconds, 3), "tokens_per_second": round(tokens / seconds), **share,
        "peak_gigabytes": peak_gigabytes(),
    }  # fmt: skip


def steps(options: argparse.Namespace) -> Results:
    """A step of the presets, with their batch in one pass."""
    from groundling.config import PRESETS

    for name in ("nano",) if options.dry_run else ("workshop", "laptop"):
        preset = PRESETS[name]
        windows = 2 if options.dry_run else preset.training.batch_size * preset.training.accumulate
        step, flops = new_step(preset.model, preset.training, CHARACTERS, windows)
        seconds = seconds_of(step, options)
        yield step_row(name, seconds, windows * preset.model.block_size, flops, options)


def nanogpt_step(options: argparse.Namespace, settings: Any, windows: int) -> Callable[[], None]:
    """A step of nanoGPT's model as its train.py makes it: bfloat16, compiled, fused AdamW."""
    import torch

    sys.path.insert(0, str(options.nanogpt))
    import model as nanogpt

    device = device_name()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config = nanogpt.GPTConfig(
        block_size=settings.block_size, vocab_size=-(-GPT2_TOKENS // 64) * 64, n_layer=settings.n_layer,
        n_head=settings.n_head, n_embd=settings.n_embd, dropout=0.0, bias=False,
    )  # fmt: skip
    model = nanogpt.GPT(config).to(device).train()
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    forward = torch.compile(model) if device == "cuda" else model
    tokens = torch.randint(GPT2_TOKENS, (windows, settings.block_size + 1), device=device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            _, loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gpt2(options: argparse.Namespace) -> Results:
    """GPT-2 with 124M parameters beside nanoGPT's model of the same shape, in the order A B B A."""
    from groundling.config import PRESETS

    settings, windows = gpt2_settings(options), 1 if options.dry_run else 16
    step, flops = new_step(settings, PRESETS["gpt2"].training, GPT2_TOKENS, windows)
    first, tokens = seconds_of(step, options, rounds=1), windows * settings.block_size
    yield step_row("gpt2, first round", first, tokens, flops, options)
    if options.nanogpt is None:
        yield step_row("gpt2", seconds_of(step, options), tokens, flops, options)
        return
    other = nanogpt_step(options, settings, windows)
    between = [seconds_of(other, options) for _ in range(2)]
    ours = statistics.mean([first, seconds_of(step, options)])
    yield step_row("gpt2", ours, tokens, flops, options)
    yield step_row("nanoGPT, same shape", statistics.mean(between), tokens, flops, options)


def tests(options: argparse.Namespace) -> Results:
    """The tests that need a GPU."""
    chosen = ["--collect-only"] if options.dry_run else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", *chosen]
    places = ["tests/model/test_gpt.py", "tests/training"] if options.dry_run else ["tests/model", "tests/training"]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True)
    ending = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    if done.returncode:
        raise RuntimeError(f"{ending}\n{done.stdout[-3000:]}")
    yield {"what": "GPU tests", "result": ending}


def target(options: argparse.Namespace) -> Results:
    """Minutes from the command to the target loss on Tiny Shakespeare, with the preset `laptop`."""
    if options.text is None:
        return
    words = ["--preset", "laptop", "--sample-every", "0"]
    if options.dry_run:
        words = ["--preset", "nano", "--n-layer", "1", "--n-embd", "16", "--steps", "2", "--sample-every", "0"]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "groundling",
            "train",
            str(options.text),
            *words,
            "--name",
            "run",
            "--out",
            out,
        ]
        subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        lines = (Path(out) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line for line in map(json.loads, lines) if line["event"] == "evaluation"]
    reached = next((line for line in found if line["validation_loss"] <= TARGET), None)
    yield {
        "what": f"laptop on {options.text.name}", "seconds_in_all": round(seconds, 1),
        "best_loss": round(min(line["validation_loss"] for line in found), 4),
        "seconds_to_target": None if reached is None else round(reached["elapsed"], 1),
    }  # fmt: skip


def decode(options: argparse.Namespace) -> Results:
    """Generation by the engine in bfloat16, as a share of the rate at which memory could deliver the weights."""
    from groundling.acceleration.model_variants import ModelVariants
    from groundling.config import Sampling
    from groundling.inference.engine import Engine, Request
    from groundling.model.gpt import GPT

    model = GPT(gpt2_settings(options), GPT2_TOKENS).to(device_name()).eval()
    low, new = ModelVariants(model).model("bfloat16"), 8 if options.dry_run else 128
    read = 2 * (sum(p.numel() for p in model.h.parameters()) + model.wte.weight.numel())  # bytes a step
    for batch in (1, 2) if options.dry_run else (1, 64):
        engine = Engine(low, batch)
        for seed in range(batch):
            engine.add(Request([seed], new, Sampling(seed=seed)))
        engine.step()
        wait()
        start, made, passes = time.perf_counter(), 0, 0
        while engine.free_slots < batch:
            made, passes = made + len(engine.step()), passes + 1
        seconds = time.perf_counter() - start
        bandwidth = options.bandwidth
        share = {"share_of_bandwidth": round(read * passes / seconds / 1e9 / bandwidth, 4)} if bandwidth else {}
        yield {"what": f"gpt2, {batch} at once", "tokens_per_second": round(made / seconds), **share,
               "milliseconds": round(1000 * seconds / passes, 3), "peak_gigabytes": peak_gigabytes()}  # fmt: skip


def context(options: argparse.Namespace) -> Results:
    """A step of a model of GPT-2's size in the Qwen3 family, with a context of 16,384 tokens."""
    from groundling.config import PRESETS

    length = 64 if options.dry_run else 16_384
    settings = replace(gpt2_settings(options), block_size=length, norm="rmsnorm", position="rope", mlp="swiglu")
    step, flops = new_step(settings, PRESETS["gpt2"].training, GPT2_TOKENS, 1)
    yield step_row(f"context of {length:,}", seconds_of(step, options), length, flops, options)


def rollouts(options: argparse.Namespace) -> Results:
    """Replies for reinforcement learning, by benchmarks/rollouts.py."""
    words = ["--shapes", "nano-qwen3", "workshop", "--rounds", "3"]
    if options.dry_run:
        words = ["--shapes", "nano", "--rows", "8", "--tokens", "4", "--rounds", "1"]
    script = Path(__file__).with_name("rollouts.py")
    done = subprocess.run([sys.executable, script, *words, "--no-engine"], check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if "rollouts" in cells:
            yield {"what": f"{cells[0]}, {cells[2]} texts", "tokens_per_second": int(cells[5].replace(",", ""))}


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Results], int]] = {
    "peak": (peak, 40), "gpt2": (gpt2, 150), "steps": (steps, 120), "tests": (tests, 120), "target": (target, 120),
    "decode": (decode, 60), "context": (context, 90), "rollouts": (rollouts, 60),
}  # fmt: skip
"""By value. Each with its time limit in seconds."""


# Running them.


def run_part(name: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a part in its own process. Returns its rows, also those it made before it failed or ran out of time."""
    command = [sys.executable, __file__, "--part", name, "--peak", str(options.peak), "--bandwidth",
               str(options.bandwidth)]  # fmt: skip
    command += ["--dry-run"] if options.dry_run else []
    command += [
        word for key in ("text", "nanogpt") if (path := getattr(options, key)) for word in (f"--{key}", str(path))
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if options.dry_run:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            code = subprocess.run(command, stdout=out, stderr=errors, env=environment, timeout=limit).returncode
            problem = f"exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"stopped after {limit:.0f} s"
        out.seek(0)
        errors.seek(0)
        rows = [json.loads(line) for line in out.read().splitlines() if line.startswith('{"what"')]
        found = {"part": name, "seconds": round(time.perf_counter() - start, 1), "rows": rows}
        return found | ({"problem": problem, "error": errors.read()[-4000:]} if problem else {})


def write(path: Path, found: list[dict[str, Any]]) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(found, indent=1), encoding="utf-8")
    new.replace(path)


def summary(found: list[dict[str, Any]]) -> str:
    """A table of all rows."""
    lines = ["| part | what | figures |", "|---|---|---|"]
    for part in found:
        for row in part["rows"]:
            figures = ", ".join(f"{key} {value}" for key, value in row.items() if key != "what")
            lines.append(f"| {part['part']} | {row['what']} | {figures} |")
        if part.get("problem"):
            last = (part["error"].strip().splitlines() or [""])[-1]
            lines.append(f"| {part['part']} | FAILED | {part['problem']}: {last[:200]} |")
        elif not part["rows"]:
            lines.append(f"| {part['part']} | skipped | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OUT", ".")) / "gpu.json"
    parser.add_argument("--out", type=Path, default=default, help="the results (default: $OUT/gpu.json, or ./gpu.json)")
    parser.add_argument("--text", type=Path, help="Tiny Shakespeare, for the time to a loss (default: skipped)")
    parser.add_argument("--nanogpt", metavar="DIR", type=Path, help="a checkout of nanoGPT (default: not compared)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts (default: 9)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all")
    parser.add_argument("--dry-run", action="store_true", help="every part, tiny, on the CPU")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--bandwidth", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for path in filter(None, (options.text, options.nanogpt)):
        if not path.exists():
            parser.error(f"{path} does not exist.")
    if options.part:
        for row in PARTS[options.part][0](options):
            print(json.dumps(row), flush=True)
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    end = time.perf_counter() + 60 * options.minutes
    for name in options.parts:
        limit = min(PARTS[name][1], end - time.perf_counter())
        if limit <= 0:
            print(f"{name}: no time left", file=sys.stderr)
            continue
        part = run_part(name, options, limit)
        found.append(part)
        write(options.out, found)
        print(f"{name}: {part['seconds']} s{', ' + part['problem'] if part.get('problem') else ''}", file=sys.stderr)
        if name == "peak" and part["rows"]:
            options.peak, options.bandwidth = (part["rows"][0][key] for key in ("teraflops", "gigabytes_per_second"))
    print(summary(found))
    return int(any(part.get("problem") for part in found))


if __name__ == "__main__":
    sys.exit(main())
