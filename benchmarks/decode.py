"""How many tokens a second a model writes, beside the limit of the machine's memory and beside other programs.

    python benchmarks/decode.py                                  # the preset workshop, random weights
    python benchmarks/decode.py --nanogpt ../nanoGPT             # beside nanoGPT's own generate
    python benchmarks/decode.py --run runs/my --gguf my.gguf     # a trained model, with drafts, beside llama.cpp

Two tasks: `start` writes a context less 16 tokens after one, `past` writes on after a full context, where nanoGPT
reads all of it again for each token and transformers' GPT-2 has no positions left. All programs hold the same weights
and draw at temperature 0.7 from the 50 likeliest. They take turns, round after round, in one process; figures are
medians over the rounds. Tokens a second are of all texts in the batch together. The limit is what reading all weights
once a step allows, at the speed at which this machine reads a block of their size. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import groundling
from groundling.acceleration.model_variants import ModelVariants
from groundling.acceleration.ngram_drafter import NgramDrafter
from groundling.config import PRESETS, Sampling
from groundling.inference.engine import Engine, Request
from groundling.model.gpt import GPT

if TYPE_CHECKING:
    from groundling.acceleration.numba_decoder import NumbaDecoder

VOCAB_SIZE = 65
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}

Steps = Iterator[int]
"""Yields how many tokens were written, after each step; 0 where the clock is to start only then."""


@dataclass
class Variant:
    label: str
    task: str
    batch: int
    precision: str
    begin: Callable[[], Steps]
    rates: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def prompts(model: GPT, task: str, batch: int) -> list[list[int]]:
    """Random tokens. Texts in a batch are of unequal length where there is room for it."""
    generator = torch.Generator().manual_seed(0)
    length = 1 if task == "start" else model.config.block_size
    return [torch.randint(model.vocab_size, (length + i % 7,), generator=generator).tolist() for i in range(batch)]


def ours(
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
    begun = set[int]()
    while len(begun) < batch:  # prompts are read before the clock starts
        begun |= {written.slot for written in engine.step()}
    yield 0
    while engine.free_slots < batch:
        yield len(engine.step())


def nanogpt(folder: Path, model: GPT) -> Any:
    """nanoGPT's model with the same weights."""
    sys.path.insert(0, str(folder))
    import model as theirs

    c = model.config
    config = theirs.GPTConfig(
        block_size=c.block_size, vocab_size=model.vocab_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
        dropout=0.0, bias=True,
    )  # fmt: skip
    copy = theirs.GPT(config).eval()
    weights = {f"transformer.{name}": value for name, value in model.state_dict().items()}
    copy.load_state_dict(weights | {"lm_head.weight": model.wte.weight})
    return copy


def nanogpt_steps(copy: Any, model: GPT, task: str, batch: int, tokens: int) -> Steps:
    ids = torch.tensor([prompt[: len(prompt) - i % 7] for i, prompt in enumerate(prompts(model, task, batch))])
    for _ in range(tokens):
        ids = copy.generate(ids, 1, temperature=0.7, top_k=50)
        yield batch


def huggingface(model: GPT) -> Any:
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


def huggingface_steps(copy: Any, batch: int, tokens: int) -> Steps:
    ids = torch.zeros(batch, 1, dtype=torch.int64)
    copy.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True, temperature=0.7,
                  top_k=50, use_cache=True, pad_token_id=0)  # fmt: skip
    yield batch * tokens


def llama_steps(copy: Any, tokens: int) -> Steps:
    copy.reset()
    written = copy.generate([0], temp=0.7, top_k=50, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    for _ in range(tokens):
        next(written)
        yield 1


def model_of(arguments: argparse.Namespace) -> GPT:
    """The run's, or an untrained one of the preset."""
    if arguments.run:
        return groundling.load(arguments.run).model.cpu()
    torch.manual_seed(0)
    return GPT(PRESETS[arguments.preset].model, VOCAB_SIZE).eval()


def variants(arguments: argparse.Namespace, model: GPT) -> Iterator[Variant]:
    """All that is to be measured, and on standard error what is not, and why."""
    ready = ModelVariants(model)
    if ready.decoder("float32") is None:
        print("Numba is not installed (pip install 'groundling[fast]'): PyTorch alone is measured.", file=sys.stderr)
    is_gpt2 = model.config.position == "learned" and model.config.tie_head
    nano = nanogpt(Path(arguments.nanogpt), model) if arguments.nanogpt and is_gpt2 else None
    hugging = huggingface(model) if is_gpt2 else None
    llama = llama_of(arguments.gguf, arguments.threads)
    if not is_gpt2:
        print("nanoGPT and transformers are left out: this model is not of GPT-2's family.", file=sys.stderr)
    start = model.config.block_size - 16
    for batch in arguments.batches:
        for task in ("start", "past"):
            for name in arguments.precisions:
                n, copy, few = start if task == "start" else arguments.tokens, ready.model(name), None
                if (decoder := ready.decoder(name)) and batch <= decoder.most:
                    few = decoder
                    yield Variant("groundling, PyTorch alone", task, batch, name,
                                  lambda c=copy, t=task, b=batch, n=n: ours(c, t, b, n))  # fmt: skip
                yield Variant("groundling", task, batch, name,
                              lambda c=copy, t=task, b=batch, n=n, f=few: ours(c, t, b, n, None, f))  # fmt: skip
                if arguments.run and few and batch < few.most:  # random weights write nothing that can be guessed
                    yield Variant(
                        "groundling, drafts", task, batch, name,
                        lambda c=copy, t=task, b=batch, n=n, f=few: ours(c, t, b, n, NgramDrafter(), f),
                    )  # fmt: skip
            if nano and (task == "past" or batch == 1):  # elsewhere it takes minutes
                n = start if task == "start" else max(2, 24 // batch)
                yield Variant("nanoGPT", task, batch, "float32",
                              lambda t=task, b=batch, n=n: nanogpt_steps(nano, model, t, b, n))  # fmt: skip
            if hugging and task == "start":
                yield Variant("transformers", task, batch, "float32",
                              lambda b=batch: huggingface_steps(hugging, b, start))  # fmt: skip
            if llama and batch == 1 and task == "start":
                yield Variant("llama.cpp", task, 1, arguments.gguf_precision, lambda: llama_steps(llama, start))


def llama_of(gguf: str | None, threads: int) -> Any:
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama.cpp is left out: llama-cpp-python is not installed.", file=sys.stderr)
        return None
    if not gguf:
        print("llama.cpp is left out: --gguf names no model for it.", file=sys.stderr)
        return None
    return Llama(gguf, n_ctx=0, n_threads=threads, verbose=False)


def bandwidth(size: int) -> float:
    """Bytes read a second from a block of `size` bytes, over and over."""
    block = torch.ones(size // 4)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="workshop", choices=list(PRESETS))
    parser.add_argument("--run", help="a trained run in place of random weights")
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--gguf", metavar="FILE", help="the same model for llama.cpp")
    parser.add_argument("--gguf-precision", default="float32", choices=list(BYTES), help="that of the file")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--precisions", nargs="+", default=list(BYTES), choices=list(BYTES))
    parser.add_argument("--threads", type=int, default=0, help="as PyTorch has it if not given")
    parser.add_argument("--tokens", type=int, default=300, help="of each text in the task past")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.nanogpt and not (Path(arguments.nanogpt) / "model.py").is_file():
        parser.error(f"--nanogpt {arguments.nanogpt}: there is no model.py in it.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.threads = torch.get_num_threads()
    warnings.simplefilter("ignore")
    model = model_of(arguments)
    torch.set_num_threads(arguments.threads)  # loading a run sets them as it was trained
    chosen, began = list(variants(arguments, model)), time.perf_counter()
    weights = sum(p.numel() for p in model.h.parameters()) + model.wte.weight.numel()  # read in a step: blocks and head
    for number in range(arguments.rounds):
        for i, variant in enumerate(chosen):
            measure(variant)
            done = number * len(chosen) + i + 1
            left = (time.perf_counter() - began) / done * (arguments.rounds * len(chosen) - done)
            print(f"\r{done}/{arguments.rounds * len(chosen)}, {left:.0f} s left   ", end="", file=sys.stderr)
    print(file=sys.stderr)
    limits = {name: bandwidth(weights * size) / (weights * size) for name, size in BYTES.items()}
    print(f"{arguments.threads} threads, {weights:,} weights read a step, {arguments.rounds} rounds")
    print("| batch | task | program | precision | tokens/s | of the limit | step, ms | slowest step, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in chosen:
        rate, limit = statistics.median(variant.rates), limits[variant.precision] * variant.batch
        steps = [f"{1000 * s:.2f}" for s in (statistics.median(variant.steps), max(variant.steps))]
        if variant.label == "transformers":
            steps = ["", ""]  # its steps are not seen from outside
        print(f"| {variant.batch} | {variant.task} | {variant.label} | {variant.precision} | {rate:,.0f} | "
              f"{rate / limit:.0%} of {limit:,.0f} | {' | '.join(steps)} |")  # fmt: skip


def measure(variant: Variant) -> None:
    written, steps = 0, []
    start = last = time.perf_counter()
    for tokens in variant.begin():
        now = time.perf_counter()
        if tokens:
            steps.append(now - last)
        else:
            start = now
        last, written = now, written + tokens
    variant.rates.append(written / (last - start))
    variant.steps += steps


if __name__ == "__main__":
    main()
