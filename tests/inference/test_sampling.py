"""How the next token is drawn: as transformers' processors would have it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.config import Sampling
from groundling.inference.sampling import Sampler, choose, log_probabilities, probabilities

V = 40
LOGITS = np.random.default_rng(0).normal(size=(6, V)).astype(np.float32) * 3
WRITTEN = [3, 7, 7, 7, 12, 39]
PROMPT = [1, 3, 20]


def ours(sampling: Sampling, logits: np.ndarray = LOGITS) -> torch.Tensor:
    """What is drawn from after PROMPT and WRITTEN."""
    sampler, logits = Sampler(sampling, PROMPT, logits.shape[1]), logits.copy()
    for token in WRITTEN:
        sampler.note(token)
    for row in logits:
        sampler.adjust(row)
    return torch.from_numpy(probabilities(logits, [sampling] * len(logits)))


def theirs(*processors: Callable[..., torch.Tensor]) -> torch.Tensor:
    logits = torch.from_numpy(LOGITS.copy())
    ids = torch.tensor([PROMPT + WRITTEN] * len(logits))
    for processor in processors:
        logits = processor(ids, logits)
    return logits.double().softmax(-1)


def penalties(presence: float, frequency: float) -> Callable[..., torch.Tensor]:
    """As OpenAI's interface defines them; transformers has none."""

    def apply(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        for token in range(V):
            count = WRITTEN.count(token)
            logits[:, token] -= presence * (count > 0) + frequency * count
        return logits

    return apply


@pytest.mark.parametrize(
    ("knobs", "processors"),
    [
        ({"temperature": 0.3}, [hf.TemperatureLogitsWarper(0.3)]),
        ({"top_k": 5}, [hf.TopKLogitsWarper(5)]),
        ({"top_k": 1}, [hf.TopKLogitsWarper(1)]),
        ({"top_k": V + 1}, []),
        ({"top_p": 0.7}, [hf.TopPLogitsWarper(0.7)]),
        ({"top_p": 1e-6}, [hf.TopPLogitsWarper(1e-6)]),
        ({"min_p": 0.1}, [hf.MinPLogitsWarper(0.1)]),
        ({"min_p": 1.0}, [hf.MinPLogitsWarper(1.0)]),
        ({"repetition_penalty": 1.5}, [hf.RepetitionPenaltyLogitsProcessor(1.5)]),
        ({"repetition_penalty": 0.7}, [hf.RepetitionPenaltyLogitsProcessor(0.7)]),
        ({"logit_bias": {2: 4.0, 9: -100.0}}, [hf.SequenceBiasLogitsProcessor([[[2], 4.0], [[9], -100.0]])]),
        ({"presence_penalty": 0.8, "frequency_penalty": -0.5}, [penalties(0.8, -0.5)]),
        (
            {"logit_bias": {2: 4.0}, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2,
             "temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
            [hf.SequenceBiasLogitsProcessor([[[2], 4.0]]), hf.RepetitionPenaltyLogitsProcessor(1.3),
             penalties(0.5, 0.2), hf.TemperatureLogitsWarper(0.8), hf.TopKLogitsWarper(12), hf.TopPLogitsWarper(0.9),
             hf.MinPLogitsWarper(0.05)],
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_each_knob_does_what_it_does_in_transformers(knobs: dict, processors: list) -> None:
    sampling = Sampling(**({"temperature": 1.0, "top_k": 0} | knobs))
    torch.testing.assert_close(ours(sampling), theirs(*processors), atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 3), st.integers(0, V + 5), st.floats(0.01, 1), st.floats(0, 0.99))
def test_knobs_together_do_what_they_do_in_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, V)).astype(np.float32) * 4
    kept = torch.from_numpy(logits.copy()) / temperature
    for processor in ([hf.TopKLogitsWarper(top_k)] if top_k else []) + [
        hf.TopPLogitsWarper(top_p),
        hf.MinPLogitsWarper(min_p),
    ]:
        kept = processor(torch.zeros(2, 0), kept)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    mine = torch.from_numpy(probabilities(logits, [sampling] * 2))
    # At a limit the two may round to different sides: by one token at the edge, or by what float32's sums do not feel.
    felt = torch.from_numpy(logits / temperature).softmax(-1) > 1e-6
    assert (felt & ((mine > 0) != (kept > -math.inf))).sum() <= 1
    torch.testing.assert_close(mine, kept.double().softmax(-1), atol=0.02, rtol=0)


def test_rows_with_different_knobs_share_a_batch() -> None:
    kinds = [
        Sampling(temperature=0.0), Sampling(top_k=3, seed=1), Sampling(top_p=0.5, top_k=0, seed=2), Sampling(seed=3),
        Sampling(min_p=0.3, temperature=2.0, seed=4), Sampling(repetition_penalty=2.0, seed=5),
    ]  # fmt: skip
    together = [Sampler(kind, PROMPT, V) for kind in kinds]
    alone = [Sampler(kind, PROMPT, V) for kind in kinds]
    for _ in range(50):
        separately = [choose(LOGITS[i : i + 1].copy(), [sampler])[0] for i, sampler in enumerate(alone)]
        assert choose(LOGITS.copy(), together) == separately


def draw(logits: list[float], sampling: Sampling, n: int) -> np.ndarray:
    """The share of each token in n draws."""
    sampler, row = Sampler(sampling), np.array([logits], dtype=np.float32)
    tokens = [choose(row.copy(), [sampler])[0] for _ in range(n)]
    return np.bincount(tokens, minlength=len(logits)) / n


def test_temperature_0_takes_the_likeliest() -> None:
    sampler = Sampler(Sampling(temperature=0.0))
    assert choose(LOGITS.copy(), [sampler] * 6) == LOGITS.argmax(-1).tolist()


def test_a_temperature_next_to_0_does_too() -> None:
    assert draw([1.0, 3.0, 2.0], Sampling(temperature=1e-300), 20).tolist() == [0, 1, 0]


def test_frequencies_are_the_probabilities() -> None:
    sampling = Sampling(temperature=1.7, top_k=3, seed=3)
    drawn = draw([2.0, 1.0, 0.0, -1.0], sampling, 20_000)
    expected = probabilities(np.array([[2.0, 1.0, 0.0, -1.0]], dtype=np.float32), [sampling])[0]
    np.testing.assert_allclose(drawn, expected, atol=0.015)
    assert drawn[3] == 0


def test_a_seed_repeats_and_another_does_not() -> None:
    def text(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(top_k=0, seed=seed))
        return [choose(np.zeros((1, 50), dtype=np.float32), [sampler])[0] for _ in range(50)]

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)


def test_without_a_seed_one_is_drawn_and_known() -> None:
    assert Sampling().seed is not None
    assert len({Sampling().seed for _ in range(5)}) > 1


def test_log_probabilities_are_those_of_torch() -> None:
    expected = torch.from_numpy(LOGITS).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(log_probabilities(LOGITS), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -0.1}, "--temperature must be at least 0, not -0.1."),
        ({"temperature": math.nan}, "--temperature .* nan"),
        ({"temperature": math.inf}, "--temperature"),
        ({"top_k": -1}, "--top-k must be at least 0"),
        ({"top_p": 0.0}, "--top-p must be above 0"),
        ({"top_p": 1.1}, "--top-p"),
        ({"min_p": math.nan}, "--min-p must be at least 0, not nan."),
        ({"repetition_penalty": 0.0}, "--repetition-penalty must be at least 0.01"),
        ({"presence_penalty": math.inf}, "--presence-penalty must be at most 100"),
        ({"frequency_penalty": math.nan}, "--frequency-penalty must be at least -100, not nan"),
        ({"logit_bias": {3: 101.0}}, "Token 3 has 101"),
        ({"logit_bias": {-3: 1.0}}, "a token id of 0 or more"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_nonsense_is_refused_naming_the_flag(wrong: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sampling(**wrong)  # type: ignore[arg-type]
