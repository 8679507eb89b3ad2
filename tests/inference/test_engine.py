"""Generation: as the uncached model would, alone and in company, past the context, with drafts and without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundling.config import ModelSettings, Sampling
from groundling.inference.engine import Engine, GeneratedToken, Request, generate, window_start
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.inference.sampling import Sampler, choose
from groundling.model.gpt import GPT

V = 29
N = 16
GREEDY, DRAWN = Sampling(temperature=0.0), Sampling(temperature=1.0, top_k=0, seed=7)
NARROW = Sampling(temperature=0.8, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.3,
                  frequency_penalty=0.1, logit_bias={3: -2.0, 5: 1.5}, seed=8)  # fmt: skip
GPT2 = ModelSettings(block_size=N, n_layer=2, n_head=4, n_embd=32)
MODERN = replace(GPT2, n_kv_head=2, norm="rmsnorm", position="rope", mlp="swiglu")


def model_of(settings: ModelSettings) -> GPT:
    torch.manual_seed(0)
    model = GPT(settings, V).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # an untrained model is indifferent; this one has opinions
    return model


@pytest.fixture(params=["gpt2", "modern"])
def model(request: pytest.FixtureRequest) -> GPT:
    return model_of(GPT2 if request.param == "gpt2" else MODERN)


def prompt_of(length: int) -> list[int]:
    return np.random.default_rng(length).integers(V, size=length).tolist()


def logits_after(model: GPT, tokens: list[int]) -> np.ndarray:
    """What comes after `tokens`, by a full forward pass over their window, written as plainly as can be."""
    newest, stride = len(tokens) - 1, N // 2
    start = next(start for start in range(0, len(tokens), stride) if newest < start + N)
    with torch.no_grad():
        return model(torch.tensor([tokens[start:]]))[0, -1].numpy()


def uncached(model: GPT, request: Request) -> list[int]:
    tokens, sampler = list(request.prompt), Sampler(request.sampling, request.prompt, V)
    for _ in range(request.max_new_tokens):
        tokens += choose(logits_after(model, tokens)[None].copy(), [sampler])
    return tokens[len(request.prompt) :]


def run(engine: Engine, requests: Sequence[Request], slots: int) -> list[list[int]]:
    """Write all of them, each joining as soon as a slot is free."""
    texts: list[list[int]] = [[] for _ in requests]
    waiting, where = list(range(len(requests))), dict[int, int]()
    while waiting or engine.free_slots < slots:
        while waiting and engine.free_slots:
            number = waiting.pop(0)
            where[engine.add(requests[number])] = number
        for written in engine.step():
            texts[where[written.slot]].append(written.token)
    return texts


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, NARROW], ids=["greedy", "drawn", "narrow"])
def test_it_writes_what_the_uncached_model_writes(model: GPT, length: int, sampling: Sampling) -> None:
    prompt = prompt_of(length)
    expected = uncached(model, Request(prompt, 60, sampling))
    assert list(generate(model, prompt, 60, sampling)) == expected
    assert list(generate(model, prompt, 60, sampling, NgramDrafter())) == expected


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_company_changes_nothing(model: GPT, slots: int, drafts: bool) -> None:
    kinds = [GREEDY, DRAWN, NARROW]
    requests = [Request(prompt_of(1 + 7 * i % 23), 5 + 11 * i % 40, replace(kinds[i % 3], seed=i)) for i in range(8)]
    engine = Engine(model, slots, NgramDrafter() if drafts else None)
    assert run(engine, requests, slots) == [uncached(model, request) for request in requests]
    assert engine.free_slots == slots


def test_a_text_that_is_given_up_leaves_the_others_as_they_are(model: GPT) -> None:
    requests = [Request(prompt_of(4 + i), 40, replace(DRAWN, seed=i)) for i in range(4)]
    engine = Engine(model, 3)
    slots = [engine.add(request) for request in requests[:3]]
    texts: dict[int, list[int]] = {slot: [] for slot in slots}
    for step in range(200):
        if step == 11:
            engine.free(slots[0])
            texts[slots[0]] = []
            assert engine.add(requests[3]) == slots[0]
        for written in engine.step():
            texts[written.slot].append(written.token)
    assert [texts[slot] for slot in slots] == [uncached(model, requests[i]) for i in (3, 1, 2)]


def test_a_window_is_never_shorter_than_half_a_context() -> None:
    for block_size in range(1, 12):
        stride = block_size - block_size // 2
        for n in range(60):
            start = window_start(n, block_size)
            assert start % stride == 0 and start <= n < start + block_size
            assert start == 0 or n >= start - stride + block_size  # no older window has room
            assert start == 0 or n + 1 - start > block_size // 2


@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
def test_tiny_contexts_roll_too(block_size: int) -> None:
    model = model_of(replace(GPT2, block_size=block_size))
    tokens = [4]
    for token in generate(model, [4], 20, GREEDY):
        window = tokens[window_start(len(tokens) - 1, block_size) :]
        with torch.no_grad():
            assert token == int(model(torch.tensor([window]))[0, -1].argmax())
        tokens.append(token)


def test_given_and_written_tokens_are_the_same_to_it(model: GPT) -> None:
    written = list(generate(model, prompt_of(3), 50, GREEDY))
    assert list(generate(model, prompt_of(3) + written[:30], 20, GREEDY)) == written[30:]


def test_a_text_ends_with_its_last_token() -> None:
    model = model_of(GPT2)
    free = list(generate(model, [5], 60, DRAWN))
    end = free[20]
    engine = Engine(model)
    engine.add(Request([5], 60, DRAWN, end_ids=(-1, end)))
    written: list[GeneratedToken] = []
    while not engine.free_slots:
        written += engine.step()
    assert [item.token for item in written] == free[: free.index(end) + 1]
    assert [item.finish for item in written] == [""] * free.index(end) + ["end"]
    engine.add(Request([5], 2, DRAWN))
    assert [engine.step()[0].finish for _ in range(2)] == ["", "length"]


def test_log_probabilities_are_the_models_own(model: GPT) -> None:
    engine, tokens = Engine(model, drafter=NgramDrafter()), prompt_of(3)
    engine.add(Request(tokens, 30, NARROW, logprobs=4))
    while not engine.free_slots:
        for written in engine.step():
            expected = torch.from_numpy(logits_after(model, tokens)).double().log_softmax(-1)
            assert written.logprob == pytest.approx(float(expected[written.token]), abs=1e-4)
            top = expected.topk(4)
            assert [token for token, _ in written.top] == top.indices.tolist()
            assert [nats for _, nats in written.top] == pytest.approx(top.values.tolist(), abs=1e-4)
            tokens.append(written.token)


def test_drafts_save_steps_where_the_text_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "groundling.inference.speed_selector.SpeedSelector.takes", lambda self, task: True
    )  # not by the clock
    model = model_of(GPT2)
    engine = Engine(model, drafter=NgramDrafter())
    engine.add(Request([1], 200, GREEDY))  # greedily it runs in circles before long
    steps = 0
    while not engine.free_slots:
        engine.step()
        steps += 1
    assert steps < 120


def test_drawn_texts_have_the_models_distribution_with_drafts() -> None:
    """All texts of three tokens, against their probabilities by the model itself: a chi-square test."""
    torch.manual_seed(1)
    model = GPT(replace(GPT2, n_layer=1), 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    texts = torch.cartesian_prod(*[torch.arange(3)] * 3)
    read = torch.cat([torch.tensor([[1, 2, 0, 1]]).expand(27, -1), texts], dim=1)
    with torch.no_grad():
        p = model(read)[:, 3:-1].double().log_softmax(-1).gather(2, texts[..., None]).sum((1, 2)).exp()
    drafts, n = NgramDrafter(), 2000
    engine, counts, slots = Engine(model, 2, drafts), np.zeros(27), dict[int, list[int]]()
    started = 0
    while started < n or slots:
        while started < n and engine.free_slots:
            sampling = Sampling(temperature=1.0, top_k=0, seed=started)
            slots[engine.add(Request([1, 2, 0, 1], 3, sampling))] = []
            started += 1
        for written in engine.step():
            slots[written.slot].append(written.token)
            if written.finish:
                a, b, c = slots.pop(written.slot)
                counts[9 * a + 3 * b + c] += 1
    chi_square = float(((counts - n * p.numpy()) ** 2 / (n * p.numpy())).sum())
    assert p.sum() == pytest.approx(1) and chi_square < 54.1  # 26 degrees of freedom: one in a thousand lies above


@pytest.mark.slow
def test_no_token_waits_for_the_window_to_roll() -> None:
    model = model_of(ModelSettings(block_size=256, n_layer=6, n_head=6, n_embd=384))
    engine = Engine(model)
    engine.add(Request([1], 1200, GREEDY))
    seconds = []
    while not engine.free_slots:
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    rolls = [256 + 128 * i for i in range(7)]
    assert np.median([max(seconds[roll - 1 : roll + 2]) for roll in rolls]) < 6 * np.median(seconds)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": []}, "at least one token"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"logprobs": -1}, "logprobs must be 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Request(**({"prompt": [1], "max_new_tokens": 5, "sampling": GREEDY} | wrong))  # type: ignore[arg-type]


def test_slots_are_counted() -> None:
    engine = Engine(model_of(GPT2), 2)
    assert engine.step() == []
    for prompt in ([V], [-1]):
        with pytest.raises(ValueError, match="Token ids must lie in"):
            engine.add(Request(prompt, 5, GREEDY))
    slots = [engine.add(Request([1], 5, GREEDY)) for _ in range(2)]
    assert engine.free_slots == 0
    with pytest.raises(ValueError, match="All 2 slots are taken"):
        engine.add(Request([1], 5, GREEDY))
    engine.free(slots[0])
    with pytest.raises(ValueError, match=f"Slot {slots[0]} has no text"):
        engine.free(slots[0])
    with pytest.raises(ValueError, match="slots must be at least 1"):
        Engine(model_of(GPT2), 0)


def test_no_tokens_are_asked_for(model: GPT) -> None:
    assert list(generate(model, [1], 0, GREEDY)) == []
