"""How the next token is drawn."""

from __future__ import annotations

import math

import pytest
import torch

from groundling.inference.sampling import Sampling, pick


def draw(logits: torch.Tensor, sampling: Sampling, n: int) -> torch.Tensor:
    """n draws from one row of logits."""
    return pick(logits.expand(n, -1), sampling, sampling.generator())


def test_temperature_0_takes_the_likeliest() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(logits[0], Sampling(0.0), 10), logits[0].argmax().expand(10))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_follow_the_tempered_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = draw(logits, Sampling(temperature, top_k=0, seed=3), 40_000).bincount(minlength=4) / 40_000
    torch.testing.assert_close(drawn, (logits / temperature).softmax(-1), atol=0.01, rtol=0)


def test_top_k_draws_among_k_only() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])
    drawn = draw(logits, Sampling(1.0, top_k=2, seed=0), 20_000).bincount(minlength=5) / 20_000
    expected = torch.zeros(5)
    expected[[1, 3]] = logits[[1, 3]].softmax(-1)
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)


def test_top_k_0_and_beyond_the_vocabulary_keep_everything() -> None:
    logits = torch.zeros(6)
    everything = draw(logits, Sampling(1.0, top_k=0, seed=5), 1000)
    assert set(everything.tolist()) == set(range(6))
    assert torch.equal(everything, draw(logits, Sampling(1.0, top_k=600, seed=5), 1000))


def test_a_seed_repeats_and_another_does_not() -> None:
    logits = torch.zeros(50)
    assert torch.equal(draw(logits, Sampling(seed=1), 100), draw(logits, Sampling(seed=1), 100))
    assert not torch.equal(draw(logits, Sampling(seed=1), 100), draw(logits, Sampling(seed=2), 100))


def test_without_a_seed_one_is_drawn_and_known() -> None:
    sampling = Sampling()
    assert sampling.seed is not None
    logits = torch.zeros(50)
    assert torch.equal(draw(logits, sampling, 100), draw(logits, Sampling(seed=sampling.seed), 100))
    assert len({Sampling().seed for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -0.1}, "--temperature must be 0"),
        ({"temperature": math.nan}, "--temperature .* nan"),
        ({"temperature": math.inf}, "--temperature"),
        ({"top_k": -1}, "--top-k must be 1 or more, or 0"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_nonsense_is_refused_naming_the_flag(wrong: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sampling(**wrong)  # type: ignore[arg-type]
