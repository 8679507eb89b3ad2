"""Generation speed in tokens per second, compared with the limit of the machine's memory and with other programs.

    python benchmarks/decode.py                                  # the preset workshop, random weights
    python benchmarks/decode.py --nanogpt ../nanoGPT             # compared with nanoGPT's own generate
    python benchmarks/decode.py --run runs/my --gguf my.gguf     # a trained model, with drafts, compared with llama.cpp

There are two tasks. `start` generates from one token until the context is nearly full (16 tokens less). `past`
continues after a full context, where nanoGPT reads the whole context again for each token, and transformers' GPT-2 has
no positions left. All programs have the same weights and sample with temperature 0.7 and top-k 50. They take turns in
one process, and figures are medians over the rounds. Tokens per second are summed over the texts of a batch. The limit
is the rate at which this machine could read all weights once per step, from a block of memory of their size. Run
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import groundling
from groundling.acceleration.model_variants import ModelVariants
from groundling.config import PRESETS, Sampling
from groundling.inference.engine import Engine, Request
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.model.gpt import GPT

if TYPE_CHECKING:
    from groundling.acceleration.numba_decoder import NumbaDecoder

VOCAB_SIZE = 65
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}

Steps = Iterator[int]
"""Yields the number of generated tokens after each step. A 0 starts the clock again: what came before is not timed."""


@dataclass
class Variant:
    """What to measure, and the results: tokens per second of each round, and seconds of each step."""

    label: str
    task: str
    batch: int
    precision: str
    begin: Callable[[], Steps]
    rates: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)


def prompts(model: GPT, task: str, batch: int) -> list[list[int]]:
    """Prompts of random tokens. In a batch they have different lengths."""
    generator = torch.Generator().manual_seed(0)
    length = 1 if task == "start" else model.config.block_size
    return [torch.randint(model.vocab_size, (length + i % 7,), generator=generator).tolist() for i in range(batch)]


def groundling_steps(
    model: GPT,
    task: str,
    batch: int,
    tokens: int,
    drafter: NgramDrafter | None = None,
    decoder: NumbaDecoder | None = None,
) -> Steps:
    engine = Engine(model, batch, drafter, decoder)
    for i, prompt in enumerate(prompts(model, task, batch)):
        engine.add(Request(prompt, tokens, Sampling(seed=i)))
    started = set[int]()
    while len(started) < batch:  # prompts are read before the clock starts
        started |= {token.slot for token in engine.step()}
    yield 0
    while engine.free_slots < batch:
        yield len(engine.step())


def nanogpt_model(folder: Path, model: GPT) -> Any:
    """nanoGPT's model with the same weights."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    c = model.config
    config = nanogpt.GPTConfig(
        block_size=c.block_size, vocab_size=model.vocab_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
        dropout=0.0, bias=True,
    )  # fmt: skip
    copy = nanogpt.GPT(config).eval()
    weights = {f"transformer.{name}": value for name, value in model.state_dict().items()}
    copy.load_state_dict(weights | {"lm_head.weight": model.wte.weight})
    return copy


def nanogpt_steps(copy: Any, model: GPT, task: str, batch: int, tokens: int) -> Steps:
    ids = torch.tensor([prompt[: len(prompt) - i % 7] for i, prompt in enumerate(prompts(model, task, batch))])
    for _ in range(tokens):
        ids = copy.generate(ids, 1, temperature=0.7, top_k=50)
        yield batch


def transformers_model(model: GPT) -> Any:
    """transformers' GPT-2 with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    c = model.config
    config = GPT2Config(
        vocab_size=model.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        layer_norm_epsilon=1e-5, activation_function="gelu_new", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    copy = GPT2LMHeadModel(config).eval()
    weights = {"lm_head.weight": model.wte.weight}
    for name, value in model.state_dict().items():
        matrix = name.startswith("h.") and name.endswith("weight") and value.dim() == 2
        weights[f"transformer.{name}"] = value.T.contiguous() if matrix else value
    copy.load_state_dict(weights, strict=False)
    return copy


def transformers_steps(copy: Any, batch: int, tokens: int) -> Steps:
    ids = torch.zeros(batch, 1, dtype=torch.int64)
    copy.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True, temperature=0.7,
                  top_k=50, use_cache=True, pad_token_id=0)  # fmt: skip
    yield batch * tokens


def llama_steps(copy: Any, tokens: int) -> Steps:
    copy.reset()
    generator = copy.generate([0], temp=0.7, top_k=50, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    for _ in range(tokens):
        next(generator)
        yield 1


def load_model(arguments: argparse.Namespace) -> GPT:
    """The model of the run, or an untrained one of the preset."""
    if arguments.run:
        return groundling.load(arguments.run).model.cpu()
    torch.manual_seed(0)
    return GPT(PRESETS[arguments.preset].model, VOCAB_SIZE).eval()


def variants(arguments: argparse.Namespace, model: GPT) -> Iterator[Variant]:
    """Everything to measure. Prints to standard error what is left out, and why."""
    ready = ModelVariants(model)
    if ready.decoder("float32") is None:
        print("Only PyTorch is measured: Numba is not installed (pip install 'groundling[fast]').", file=sys.stderr)
    is_gpt2 = model.config.position == "learned" and model.config.tie_head
    nano = nanogpt_model(Path(arguments.nanogpt), model) if arguments.nanogpt and is_gpt2 else None
    gpt2 = transformers_model(model) if is_gpt2 else None
    llama = load_llama(arguments.gguf, arguments.threads)
    if not is_gpt2:
        print("nanoGPT and transformers are left out: this model does not have GPT-2's architecture.", file=sys.stderr)
    start = model.config.block_size - 16
    for batch in arguments.batches:
        for task in ("start", "past"):
            n_tokens = start if task == "start" else arguments.tokens
            for name in arguments.precisions:
                steps = partial(groundling_steps, ready.model(name), task, batch, n_tokens)
                decoder = ready.decoder(name)
                if decoder is not None and batch > decoder.most:
                    decoder = None
                if decoder is not None:
                    yield Variant("groundling, PyTorch alone", task, batch, name, steps)
                yield Variant("groundling", task, batch, name, partial(steps, decoder=decoder))
                # Drafts cannot guess what random weights generate.
                if arguments.run and decoder is not None and batch < decoder.most:
                    yield Variant(
                        "groundling, drafts", task, batch, name,
                        lambda steps=steps, decoder=decoder: steps(drafter=NgramDrafter(), decoder=decoder),
                    )  # fmt: skip
            if nano and (task == "past" or batch == 1):  # otherwise it takes minutes
                n_tokens = start if task == "start" else max(2, 24 // batch)
                steps = partial(nanogpt_steps, nano, model, task, batch, n_tokens)
                yield Variant("nanoGPT", task, batch, "float32", steps)
            if gpt2 and task == "start":
                yield Variant("transformers", task, batch, "float32", partial(transformers_steps, gpt2, batch, start))
            if llama and batch == 1 and task == "start":
                yield Variant("llama.cpp", task, 1, arguments.gguf_precision, partial(llama_steps, llama, start))


def load_llama(gguf: str | None, threads: int) -> Any:
    """The model in llama.cpp. None if it cannot be measured, with the reason on standard error."""
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama.cpp is left out: llama-cpp-python is not installed.", file=sys.stderr)
        return None
    if not gguf:
        print("llama.cpp is left out: it needs a model, --gguf.", file=sys.stderr)
        return None
    return Llama(gguf, n_ctx=0, n_threads=threads, verbose=False)


def bandwidth(size: int) -> float:
    """Bytes per second when reading a block of `size` bytes repeatedly."""
    block = torch.ones(size // 4)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="workshop", choices=list(PRESETS), help="default: workshop")
    parser.add_argument("--run", help="a trained run, instead of random weights")
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT, to compare with")
    parser.add_argument("--gguf", metavar="FILE", help="the same model for llama.cpp, to compare with")
    parser.add_argument(
        "--gguf-precision", default="float32", choices=list(BYTES), help="the precision of that file (default: float32)"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64], help="texts at once (default: 1 8 64)")
    parser.add_argument("--precisions", nargs="+", default=list(BYTES), choices=list(BYTES), help="default: all")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's number)")
    parser.add_argument("--tokens", type=int, default=300, help="tokens per text in the task past (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    arguments = parser.parse_args()
    if arguments.nanogpt and not (Path(arguments.nanogpt) / "model.py").is_file():
        parser.error(f"--nanogpt: {arguments.nanogpt} has no model.py.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.threads = torch.get_num_threads()
    warnings.simplefilter("ignore")
    model = load_model(arguments)
    torch.set_num_threads(arguments.threads)  # loading a run sets the number that it was trained with
    chosen, started = list(variants(arguments, model)), time.perf_counter()
    weights = sum(p.numel() for p in model.h.parameters()) + model.wte.weight.numel()  # a step reads blocks and head
    for number in range(arguments.rounds):
        for i, variant in enumerate(chosen):
            measure(variant)
            done = number * len(chosen) + i + 1
            left = (time.perf_counter() - started) / done * (arguments.rounds * len(chosen) - done)
            print(f"\r{done}/{arguments.rounds * len(chosen)}, {left:.0f} s left   ", end="", file=sys.stderr)
    print(file=sys.stderr)
    limits = {name: bandwidth(weights * size) / (weights * size) for name, size in BYTES.items()}
    print(f"{arguments.threads} threads, {weights:,} weights read per step, {arguments.rounds} rounds")
    print("| batch | task | program | precision | tokens/s | share of limit | step, ms | slowest step, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in chosen:
        rate, limit = statistics.median(variant.rates), limits[variant.precision] * variant.batch
        steps = [f"{1000 * s:.2f}" for s in (statistics.median(variant.step_seconds), max(variant.step_seconds))]
        if variant.label == "transformers":
            steps = ["", ""]  # its steps cannot be timed from outside
        print(f"| {variant.batch} | {variant.task} | {variant.label} | {variant.precision} | {rate:,.0f} | "
              f"{rate / limit:.0%} of {limit:,.0f} | {' | '.join(steps)} |")  # fmt: skip


def measure(variant: Variant) -> None:
    """One round. Adds its results to the variant."""
    generated, seconds = 0, []
    start = last = time.perf_counter()
    for tokens in variant.begin():
        now = time.perf_counter()
        if tokens:
            seconds.append(now - last)
        else:
            start = now
        last, generated = now, generated + tokens
    variant.rates.append(generated / (last - start))
    variant.step_seconds += seconds


if __name__ == "__main__":
    main()
