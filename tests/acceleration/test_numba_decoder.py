"""The compiled pass computes what the model does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groundling.acceleration.model_variants import ModelVariants
from groundling.acceleration.precision import Precision, with_precision
from groundling.config import ModelSettings, Sampling
from groundling.inference.engine import Engine, Request, generate
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.inference.speed_selector import SpeedSelector
from groundling.model.gpt import GPT
from untrained import untrained

NumbaDecoder = pytest.importorskip("groundling.acceleration.numba_decoder", reason="needs the extra fast").NumbaDecoder

N, V = 16, 30
GPT2 = ModelSettings(block_size=N, n_layer=2, n_head=4, n_embd=32)
MODERN = replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu")
FAMILIES = {
    "gpt2": GPT2, "gpt2-untied": replace(GPT2, tie_head=False), "modern": MODERN,
    "modern-shared": replace(MODERN, n_kv_head=2), "rmsnorm-only": replace(GPT2, norm="rmsnorm"),
    "large-heads": replace(MODERN, head_size=24, mlp_size=40),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> GPT:
    return untrained(FAMILIES[request.param], V, spread=0.2)


def logits_of(model: GPT, precision: Precision, tokens: list[list[int]], at_once: int) -> np.ndarray:
    """Of several rows, (B, T, V), read a few tokens at a time."""
    few, cache = NumbaDecoder(model, precision), model.new_cache(len(tokens))
    places = [(row, t) for t in range(len(tokens[0])) for row in range(len(tokens))]
    logits = np.zeros((len(tokens), len(tokens[0]), V), np.float32)
    for i in range(0, len(places), at_once):
        rows, positions = zip(*places[i : i + at_once], strict=True)
        read = few.read([tokens[r][t] for r, t in places[i : i + at_once]], rows, positions, cache)
        logits[list(rows), list(positions)] = read
    return logits


TOKENS = torch.randint(V, (3, N), generator=torch.Generator().manual_seed(0))


def test_it_computes_what_the_model_does(model: GPT) -> None:
    ours = logits_of(model, "float32", TOKENS.tolist(), 5)
    with torch.inference_mode():
        np.testing.assert_allclose(ours, model(TOKENS).numpy(), atol=1e-4, rtol=1e-4)
    for at_once in (1, 2, 8):  # to the bit: drafts must not change a text
        assert np.array_equal(ours, logits_of(model, "float32", TOKENS.tolist(), at_once))


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Always three, not only where they were faster."""
    import numba

    if numba.config.NUMBA_NUM_THREADS < 3:
        pytest.skip("fewer than three cores are here")
    monkeypatch.setattr(SpeedSelector, "takes", lambda self, task: True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_threads_change_nothing(
    model: GPT, precision: Precision, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at_once in (1, 5):
        spread = logits_of(model, precision, TOKENS.tolist(), at_once)
        with monkeypatch.context() as alone:
            alone.setattr(SpeedSelector, "takes", lambda self, task: False)
            assert np.array_equal(spread, logits_of(model, precision, TOKENS.tolist(), at_once))


@pytest.mark.slow
def test_the_first_process_computes_what_later_ones_do(tmp_path: Path) -> None:
    """The first one compiles, the second one loads from Numba's cache. Neither changes PyTorch's number of threads."""
    program = """
import numpy, torch
from groundling.config import PRESETS
from groundling.acceleration.numba_decoder import NumbaDecoder
from groundling.model.gpt import GPT
torch.set_num_threads(1)
torch.manual_seed(0)
model = GPT(PRESETS["nano"].model, 30).eval()
decoder, cache = NumbaDecoder(model, "float32"), model.new_cache(1)
logits = numpy.concatenate([decoder.read([i], [0], [i], cache) for i in range(30)])
print(torch.get_num_threads(), logits.tobytes().hex())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    first, second = (
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout for _ in range(2)
    )
    assert first == second
    assert first.startswith("1 ")
    assert list(tmp_path.rglob("*.nbc"))


def test_several_may_read_at_once(model: GPT, three_threads: None) -> None:
    few, prompt = NumbaDecoder(model, "float32"), [1, 2, 3]
    expected = list(generate(model, prompt, 100, Sampling(seed=1), None, few))
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda _: list(generate(model, prompt, 100, Sampling(seed=1), None, few)), range(8))
    assert list(texts) == [expected] * 8


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "share"), [("bfloat16", 0.02), ("int8", 0.03)])
def test_it_computes_nearly_that_in_fewer_bits(model: GPT, precision: Precision, share: float) -> None:
    ours = logits_of(model, precision, TOKENS.tolist(), 4)
    assert np.array_equal(ours, logits_of(model, precision, TOKENS.tolist(), 1))
    with torch.inference_mode():
        for theirs in (model(TOKENS).numpy(), with_precision(model, precision)(TOKENS).numpy()):
            assert 0 < np.linalg.norm(ours - theirs) < share * np.linalg.norm(theirs)


@pytest.mark.parametrize("length", [1, 16, 40])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_the_same(model: GPT, length: int, temperature: float) -> None:
    prompt = np.random.default_rng(length).integers(V, size=length).tolist()
    sampling, few = Sampling(temperature=temperature, seed=1), NumbaDecoder(model, "float32")
    text = list(generate(model, prompt, 50, sampling))
    assert list(generate(model, prompt, 50, sampling, None, few)) == text
    assert list(generate(model, prompt, 50, sampling, NgramDrafter(), few)) == text


def test_rows_join_and_leave(model: GPT) -> None:
    few = NumbaDecoder(model, "float32")
    few.most = 3  # with more rows the model itself reads
    engine, texts = Engine(model, 5, NgramDrafter(), few), dict[int, list[int]]()
    requests = [Request([i + 1] * (1 + 5 * i), 20 + 3 * i, Sampling(temperature=1.0, seed=i)) for i in range(5)]
    for _ in range(200):
        if len(texts) < 5:
            texts[engine.add(requests[len(texts)])] = []
        for written in engine.step():
            texts[written.slot].append(written.token)
    assert engine.free_slots == 5
    for slot, request in enumerate(requests):
        assert texts[slot] == list(generate(model, request.prompt, request.max_new_tokens, request.sampling))


def test_each_is_made_once(model: GPT) -> None:
    variants = ModelVariants(model)
    assert variants.decoder("float32") is variants.decoder("float32") is not None
    assert variants.model("int8") is variants.model("int8")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_text_does_not_depend_on_what_was_generated_before_it(
    precision: Any, text_file: Path, tiny: dict[str, Any]
) -> None:
    import groundling

    run = groundling.train(text_file, name="run", on_event=lambda event: None, **tiny)
    before = run.generate("The ", max_new_tokens=300, seed=1, precision=precision)
    longer = run.generate("The ", max_new_tokens=1200, seed=1, precision=precision)
    assert longer.startswith(before)
    assert run.generate("The ", max_new_tokens=300, seed=1, precision=precision) == before
