"""Rollouts: what the model itself says, drawn with the row's own random numbers, in any company."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundling.config import ModelSettings, Sampling
from groundling.inference.engine import generate
from groundling.inference.rollouts import Rollout, sample_rollouts
from groundling.model.gpt import GPT
from untrained import untrained

V, N = 29, 64
GPT2 = ModelSettings(block_size=N, n_layer=2, n_head=4, n_embd=32)
QWEN3 = replace(GPT2, n_kv_head=2, norm="rmsnorm", position="rope", mlp="swiglu", tie_head=False)
END = 3


@pytest.fixture(scope="module", params=[GPT2, QWEN3], ids=["gpt2", "qwen3"])
def model(request: pytest.FixtureRequest) -> GPT:
    return untrained(request.param, V, 0.2)


def prompts_of(*lengths: int) -> list[list[int]]:
    return [np.random.default_rng(i).integers(V, size=length).tolist() for i, length in enumerate(lengths)]


def nats_of(model: GPT, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """The log probabilities of all tokens before each new one, by one plain forward pass, (new tokens, V)."""
    with torch.no_grad():
        logits = model(torch.tensor([rollout.prompt + rollout.tokens]))[0, len(rollout.prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


def splitmix(seed: int, count: int) -> list[float]:
    """SplitMix64 as published, with the hash of the seed as its first state."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    state = mix((seed + gamma) % 2**64)
    return [(mix((state + gamma * k) % 2**64) >> 11) / 2**53 for k in range(1, count + 1)]


def check(model: GPT, rollouts: Sequence[Rollout], seeds: Sequence[int], temperature: float = 1.0) -> None:
    """Each token is where the row's random number falls in the model's distribution, and logprobs are its own."""
    for rollout, seed in zip(rollouts, seeds, strict=True):
        nats = nats_of(model, rollout, temperature)
        sums = nats.exp().cumsum(-1)
        for t, u in enumerate(splitmix(seed, len(rollout.tokens))):
            if not rollout.sampled[t]:
                assert rollout.logprobs[t] == 0
                continue
            token = rollout.tokens[t]
            assert sums[t, token] - nats[t, token].exp() - 1e-5 <= u <= sums[t, token] + 1e-5
            assert rollout.logprobs[t] == pytest.approx(float(nats[t, token]), abs=1e-4)


@pytest.mark.parametrize("lengths", [(5, 5, 5), (1, 1), (1, 9, 4, 9, 20)], ids=["level", "single", "ragged"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_follow_the_models_distribution(model: GPT, lengths: tuple[int, ...], temperature: float) -> None:
    prompts = [prompt for prompt in prompts_of(*lengths) for _ in range(3)]
    seeds = [2**70 + 7 * i for i in range(len(prompts))]
    rollouts = sample_rollouts(model, prompts, seeds, 40, [], temperature)
    check(model, rollouts, seeds, temperature)
    assert [r.prompt for r in rollouts] == prompts
    assert {(len(r.tokens), r.finish, all(r.sampled)) for r in rollouts} == {(40, "length", True)}
    assert len({tuple(r.tokens) for r in rollouts}) == len(rollouts)


def test_frequencies_over_seeds_are_the_probabilities(model: GPT) -> None:
    prompt, n = prompts_of(6)[0], 4000
    rollouts = sample_rollouts(model, [prompt] * n, range(n), 2, [])
    p = nats_of(model, rollouts[0])[0].exp().numpy()
    counts = np.bincount([r.tokens[0] for r in rollouts], minlength=V)
    expected = n * p
    big = expected > 5
    assert ((counts - expected)[big] ** 2 / expected[big]).sum() < big.sum() + 4 * np.sqrt(2 * big.sum())
    pairs = np.corrcoef([splitmix(seed, 2) for seed in range(n)], rowvar=False)
    assert abs(pairs[0, 1]) < 4 / np.sqrt(n)


def test_the_same_call_gives_the_same_and_company_changes_nothing(model: GPT) -> None:
    prompts, seeds = prompts_of(7, 3, 7, 12), [4, 5, 6, 7]
    together = sample_rollouts(model, prompts, seeds, 30, [END])
    assert sample_rollouts(model, prompts, seeds, 30, [END]) == together
    alone = [sample_rollouts(model, [p], [s], 30, [END])[0] for p, s in zip(prompts, seeds, strict=True)]
    other = sample_rollouts(model, prompts, [4, 50, 6, 70], 30, [END])
    for row, rollout in enumerate(together):
        assert rollout.tokens == alone[row].tokens
        assert rollout.logprobs == pytest.approx(alone[row].logprobs, abs=1e-5)
        assert (rollout.tokens == other[row].tokens) == (row in (0, 2))


def test_without_temperature_it_writes_what_the_engine_writes(model: GPT) -> None:
    prompts = prompts_of(5, 1, 14)
    rollouts = sample_rollouts(model, prompts, [0, 0, 0], 40, [], temperature=0)
    for rollout in rollouts:
        assert rollout.tokens == list(generate(model, rollout.prompt, 40, Sampling(temperature=0.0)))
        nats = nats_of(model, rollout)
        assert rollout.logprobs == pytest.approx(nats.max(-1).values.tolist(), abs=1e-4)


def test_rows_end_with_an_end_token_and_the_others_go_on(model: GPT) -> None:
    """Most rows end early, so that rows are dropped many times, while the prompts have several lengths."""
    prompts = prompts_of(*[1 + i % 7 for i in range(40)])
    ends = [END, 8, 15]
    rollouts = sample_rollouts(model, prompts, range(40), 50, ends)
    check(model, rollouts, range(40))
    for rollout in rollouts:
        ended = [t for t, token in enumerate(rollout.tokens) if token in ends]
        assert ended == ([len(rollout.tokens) - 1] if rollout.finish == "end" else [])
        assert rollout.finish == "end" or len(rollout.tokens) == 50
    assert len({len(r.tokens) for r in rollouts}) > 8


def test_given_tokens_are_read_and_not_drawn(model: GPT) -> None:
    """The first end token brings three tokens, end tokens among them; the second none; the third ends the text."""
    asked: list[list[int]] = []

    def respond(tokens: list[int]) -> list[int] | None:
        asked.append(tokens)
        calls = tokens.count(END) - 2 * (len(tokens) > tokens.index(END) + 1)  # END, 11 and END were given
        return {1: [END, 11, END], 2: []}.get(calls)

    seeds = range(100, 130)
    rollouts = sample_rollouts(model, prompts_of(*[4, 6] * 15), seeds, 58, [END], 2.0, respond)
    check(model, rollouts, seeds, 2.0)
    kinds = set()
    for rollout in rollouts:
        if END not in rollout.tokens:
            assert all(rollout.sampled) and rollout.finish == "length"
            continue
        first = rollout.tokens.index(END)
        given = rollout.tokens[first + 1 : first + 4]
        assert given == [END, 11, END][: len(given)]
        assert [t for t, own in enumerate(rollout.sampled) if not own] == [first + 1 + k for k in range(len(given))]
        drawn = [t for t, own in zip(rollout.tokens, rollout.sampled, strict=True) if own]
        assert (rollout.finish == "end") == (drawn.count(END) == 3)
        assert rollout.finish == "length" or rollout.tokens in asked
        kinds.add((drawn.count(END), rollout.finish))
    assert {(3, "end"), (2, "length")} <= kinds
    assert all(tokens[-1] == END for tokens in asked)


def test_what_is_given_is_cut_at_the_length() -> None:
    model = untrained(GPT2, V, 0.2)
    everything = range(V)
    rollouts = sample_rollouts(model, prompts_of(2, 2), [1, 2], 4, everything, respond=lambda tokens: [5] * 9)
    assert [(r.tokens[1:], r.sampled, r.finish) for r in rollouts] == [([5] * 3, [True] + [False] * 3, "length")] * 2
    rollouts = sample_rollouts(model, prompts_of(2, 2), [1, 2], 1, everything, respond=lambda tokens: None)
    assert [(len(r.tokens), r.finish) for r in rollouts] == [(1, "end")] * 2


@pytest.mark.parametrize("tied", [True, False])
def test_autocast_multiplies_as_in_training_and_leaves_the_model_alone(model: GPT, tied: bool) -> None:
    config = replace(model.config, tie_head=tied, dropout=0.5)
    trained = untrained(config, V, 0.1).train()
    before = copy.deepcopy(trained.state_dict())
    prompts = [prompt for prompt in prompts_of(9, 4) for _ in range(8)]
    with torch.autocast("cpu", torch.bfloat16):
        rollouts = sample_rollouts(trained, prompts, range(16), 50, [])
    assert trained.training
    for name, value in trained.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in trained.parameters())
    trained.eval()
    differences = [
        abs(float(nats_of(trained, r)[t, token]) - r.logprobs[t]) for r in rollouts for t, token in enumerate(r.tokens)
    ]
    assert 1e-5 < np.mean(differences) < 0.02
    assert max(differences) < 0.2


def test_what_does_not_fit_is_refused(model: GPT) -> None:
    assert len(sample_rollouts(model, prompts_of(4), [0], N - 4, [])[0].tokens) == N - 4
    with pytest.raises(ValueError, match=r"A prompt of 5 tokens and 60 new ones .* context of 64 \(block_size\)\."):
        sample_rollouts(model, prompts_of(2, 5), [0, 0], 60, [])
    with pytest.raises(ValueError, match="A prompt is empty"):
        sample_rollouts(model, [[1], []], [0, 0], 5, [])
    with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
        sample_rollouts(model, [[1], [2]], [0], 5, [])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
        sample_rollouts(model, [[1]], [0], 0, [])
    with pytest.raises(ValueError, match="temperature must be 0 or more, not -1"):
        sample_rollouts(model, [[1]], [0], 5, [], temperature=-1)
    assert sample_rollouts(model, [], [], 5, []) == []
