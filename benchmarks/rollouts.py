"""Speed of rollouts in tokens per second, compared with the serving engine, and the error of log p.

    python benchmarks/rollouts.py                       # the shapes of nano, nano-qwen3 and workshop, random weights
    python benchmarks/rollouts.py --shapes nano --dtype float32 --rounds 9

Each prompt of 24 random tokens gets 8 samples of 48 new tokens, as a step of reinforcement learning does. Rollouts and
engine take turns in one process. Times include reading the prompts. The best round is given beside the median, because
other programs only ever slow a round down. The error of log p compares the log probability of each drawn token with the
model's own forward pass over the whole text in float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from groundling.acceleration.model_variants import ModelVariants
from groundling.config import PRESETS, MachineSettings, ModelSettings, Sampling
from groundling.inference.engine import Engine, Request
from groundling.inference.rollouts import Rollout, sample_rollouts
from groundling.machine import Machine, choose, processor
from groundling.model.gpt import GPT

VOCAB_SIZE = 70
PROMPT, SAMPLES = 24, 8
NANO = PRESETS["nano"].model
SHAPES: dict[str, tuple[ModelSettings, int]] = {
    "nano": (NANO, 256),
    "nano-qwen3": (replace(NANO, norm="rmsnorm", position="rope", mlp="swiglu"), 256),
    "workshop": (PRESETS["workshop"].model, 64),
}
"""Model, and texts at once."""


def prompts(rows: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randint(VOCAB_SIZE, (-(-rows // SAMPLES), PROMPT), generator=generator).tolist()
    return [prompt for prompt in distinct for _ in range(SAMPLES)][:rows]


def rollouts(model: GPT, machine: Machine, rows: int, tokens: int) -> list[Rollout]:
    with machine.autocast():
        return sample_rollouts(model, prompts(rows), range(rows), tokens, end_ids=())


def serve(model: GPT, rows: int, tokens: int) -> int:
    """The same with the engine. Returns how many tokens it generated."""
    engine = Engine(model, rows)
    for seed, prompt in enumerate(prompts(rows)):
        engine.add(Request(prompt, tokens, Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed)))
    generated = 0
    while engine.free_slots < rows:
        generated += len(engine.step())
    return generated


@torch.no_grad()
def log_probability_errors(model: GPT, texts: list[Rollout]) -> torch.Tensor:
    """|Δ log p| of each new token against the float32 forward pass, (texts, new tokens)."""
    tokens = torch.tensor([text.prompt + text.tokens for text in texts], device=model.device)
    start = len(texts[0].prompt)
    nats = model.eval()(tokens)[:, start - 1 : -1].float().log_softmax(-1)
    own = nats.gather(2, tokens[:, start:, None])[..., 0]
    return (torch.tensor([text.logprobs for text in texts], device=model.device) - own).abs()


def rates(work: Callable[[], object], generated: int) -> Iterator[float]:
    """Tokens per second of one round after the other."""
    while True:
        began = time.perf_counter()
        work()
        yield generated / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="default: all")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="default: auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: one per core)")
    parser.add_argument("--rows", type=int, default=0, help="texts at once (default: 256, or 64 for workshop)")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per text (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--no-engine", action="store_true", help="do not compare with the engine, which is slow")
    arguments = parser.parse_args()
    machine = choose(MachineSettings(dtype=arguments.dtype, threads=arguments.threads))
    print(f"{processor()}, {machine.threads} threads, {machine.dtype}, {arguments.rounds} rounds after one to warm up")
    print("| shape | parameters | texts | program | best, tokens/s | median | mean error of log p | max |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in arguments.shapes:
        settings, rows = SHAPES[shape]
        rows = arguments.rows or rows
        torch.manual_seed(0)
        model = GPT(replace(settings, dropout=0.0), VOCAB_SIZE).to(machine.device)
        served = ModelVariants(model).model("bfloat16" if machine.dtype == torch.bfloat16 else "float32")
        programs: dict[str, Callable[[], object]] = {
            "rollouts": lambda model=model, rows=rows: rollouts(model, machine, rows, arguments.tokens)
        }
        if not arguments.no_engine:
            programs["engine"] = lambda served=served, rows=rows: serve(served, rows, arguments.tokens)
        clocks = {name: rates(work, rows * arguments.tokens) for name, work in programs.items()}
        rounds = [{name: next(clock) for name, clock in clocks.items()} for _ in range(arguments.rounds + 1)][1:]
        errors = log_probability_errors(model, rollouts(model, machine, rows, arguments.tokens))
        for name in programs:
            measured = [one[name] for one in rounds]
            near = f"{errors.mean():.5f} | {errors.max():.4f}" if name == "rollouts" else " | "
            print(f"| {shape} | {sum(p.numel() for p in model.parameters()):,} | {rows} | {name} | "
                  f"{max(measured):,.0f} | {statistics.median(measured):,.0f} | {near} |")  # fmt: skip
            sys.stdout.flush()


if __name__ == "__main__":
    main()
