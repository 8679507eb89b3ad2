"""Faults are planted in small runs, and each is named; healthy runs of several texts are told nothing."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import groundling
from groundling.analysis.diagnosis import diagnose, standing, verdict
from groundling.analysis.history import History
from groundling.data.batches import Batch
from groundling.data.progress import silent
from groundling.model import gpt
from groundling.tasks.pretraining import Pretraining
from groundling.training import trainer
from groundling.training.task import Task

SMALL: dict[str, Any] = {
    "preset": "nano", "n_layer": 1, "n_head": 2, "n_embd": 48, "block_size": 32, "batch_size": 16, "steps": 150,
    "eval_every": 30, "checkpoint_every": 1000, "sample_every": 0, "learning_rate": 8e-3, "warmup_steps": 10,
    "norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "optimizer": "muon",
    "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip


def greek(text: str) -> str:
    """The same in another alphabet."""
    return "".join(chr(0x3B1 + (ord(c) - 97) % 24) if "a" <= c <= "z" else c for c in text.lower())


def sentences() -> str:
    """A small made-up language."""
    draw = random.Random(0)
    who, does = ["Anna", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina"], ["sees", "likes", "helps", "calls", "follows"]
    what = ["the red ball", "a small dog", "the old house", "two green apples", "a very long road"]

    def one() -> str:
        return f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)}"

    return "\n".join(f"{one()}, and {one()}." for _ in range(700))


TEXTS: dict[str, Callable[[str], str]] = {"english": str, "another alphabet": greek, "made up": lambda _: sentences()}


def kinds(path: Path, **settings: Any) -> list[str]:
    """What is found wrong with a run of these settings."""
    try:
        groundling.train(path, name="run", on_event=silent, **SMALL | settings)
    except FloatingPointError:
        pass  # the run and its history are there
    return [finding["kind"] for finding in groundling.load("run").explain()["findings"]]


@pytest.mark.parametrize("text", list(TEXTS))
def test_a_healthy_run_is_told_nothing(write: Callable[..., Path], prose: str, text: str) -> None:
    assert kinds(write("text.txt", TEXTS[text](prose))) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "norm": "layernorm", "position": "learned", "mlp": "gelu", "steps": 200},
        {"n_layer": 3, "learning_rate": 3e-3, "dropout": 0.1},
        {"steps": 20, "eval_every": 5},
    ],
)
def test_other_healthy_runs_are_told_nothing(text_file: Path, settings: dict[str, Any]) -> None:
    assert kinds(text_file, **settings) == []


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("rate too high", {"learning_rate": 0.1, "matrix_learning_rate": 0.3}),
        ("rate too low", {"learning_rate": 3e-4, "matrix_learning_rate": 1e-3}),
        ("rate too low", {"learning_rate": 1e-5, "matrix_learning_rate": 1e-5}),
        ("diverged", {"learning_rate": 1e18, "grad_clip": 0.0}),
        ("small validation", {"val_fraction": 0.02}),
        pytest.param(
            "too large for its time",
            {"n_embd": 192, "n_layer": 6, "batch_size": 4, "steps": 100, "learning_rate": 2e-3},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_setting_is_named(text_file: Path, kind: str, settings: dict[str, Any]) -> None:
    assert kinds(text_file, **settings) == [kind]


def test_overfitting_is_named(write: Callable[..., Path], prose: str) -> None:
    path = write("text.txt", prose[:9_000])
    assert kinds(path, steps=250, n_embd=96, val_fraction=0.3) == ["overfitting"]


def test_a_validation_part_of_another_kind_is_named(write: Callable[..., Path], prose: str) -> None:
    text = prose[:27_000] + greek(prose[:3_000])
    assert "unlike validation" in kinds(write("text.txt", text), steps=60, eval_every=10, batch_size=8)


def test_a_validation_part_that_is_in_the_training_part_is_named(write: Callable[..., Path], prose: str) -> None:
    assert kinds(write("text.txt", prose[:27_000] + prose[12_000:15_000])) == ["leaking validation"]


def test_noise_is_not_learned(write: Callable[..., Path]) -> None:
    draw = random.Random(1)
    assert kinds(write("text.txt", "".join(draw.choice("abcdefgh") for _ in range(30_000)))) == ["not learning"]


def test_a_broken_mask_is_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "causal_attention", lambda q, k, v, *_: F.scaled_dot_product_attention(q, k, v))
    assert "seeing the future" in kinds(text_file)


def test_targets_that_are_not_shifted_are_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Task.loss
    monkeypatch.setattr(Pretraining, "loss", lambda self, f, b: loss(self, f, Batch(b.tokens, b.tokens)))
    assert "too good to be true" in kinds(text_file, batch_size=8)


def test_targets_in_disorder_are_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Task.loss

    def disordered(self: Task, model: Any, batch: Batch) -> Any:
        targets = batch.targets.flatten()[torch.randperm(batch.targets.numel())].view_as(batch.targets)
        return loss(self, model, Batch(batch.tokens, targets))

    monkeypatch.setattr(Pretraining, "loss", disordered)
    assert kinds(text_file) == ["not learning"]


def test_a_rate_that_is_gone_too_early_is_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = trainer.rate_factor
    monkeypatch.setattr(trainer, "rate_factor", lambda progress, s: schedule(0.3, s) if progress < 0.4 else 0.001)
    assert kinds(text_file) == ["decayed too early"]


def history(losses: Any, validation: Any, training: Any, **facts: Any) -> History:
    """A history with curves of a known kind: 20 steps between evaluations."""
    losses = np.asarray(losses, dtype=np.float64)
    known: dict[str, Any] = {
        "tokens_per_step": 1000, "training_tokens": 20_000, "validation_tokens": 100_000, "parameters": 10_000,
        "width": 100, "one_gram": 3.3, "milestones": (4.2, 3.3, 2.5, 2.0, 1.8, 1.7, 1.75),
    }  # fmt: skip
    return History(
        steps=np.arange(1, len(losses) + 1), losses=losses, rates=np.full(len(losses), 5e-3),
        evaluated=np.arange(1, len(validation) + 1) * 20, validation=np.array(validation, dtype=np.float64),
        training=training, **known | facts,
    )  # fmt: skip


FALLING = 1.2 + 3 * np.exp(-np.arange(200) / 30)


def test_a_text_that_is_exhausted_is_named() -> None:
    validation = [2.6, 2.0, 1.7, 1.6, 1.551, 1.55, 1.549, 1.549, 1.55, 1.549]
    found = diagnose(history(FALLING, validation, [None, 2.2, 1.8, 1.65, 1.5, 1.45, 1.4, 1.35, 1.31, 1.27]))
    assert [finding.kind for finding in found] == ["exhausted text"]
    assert "10 epochs" in found[0].evidence


def test_a_spike_is_named_with_its_step() -> None:
    losses = FALLING.copy()
    losses[120:125] += [2.5, 2.0, 1.0, 0.5, 0.2]
    found = diagnose(history(losses, [2.0, 1.5, 1.4], [2.1, 1.6, 1.5]))
    assert [finding.kind for finding in found] == ["rate too high"]
    assert "jumped from" in found[0].evidence
    assert "at step 121" in found[0].evidence


@pytest.mark.parametrize(
    ("validation", "training", "words"),
    [
        ([2.5, 2.0, 1.7], [2.6, 2.1, 1.8], "Still learning"),
        ([1.9, 1.603, 1.60], [2.0, 1.75, 1.7], "levelled off"),
        ([1.9, 1.6, 1.75], [2.0, 1.5, 1.2], "since step 40"),
        ([3.0], [3.1], "Too few evaluations"),
    ],
)
def test_the_verdict_is_a_sentence(validation: list[float], training: list[float], words: str) -> None:
    assert words in verdict(history(FALLING[:80], validation, training))


def test_an_evaluation_right_after_another_does_not_make_it_level() -> None:
    curves = history(FALLING[:80], [2.5, 2.0, 1.7, 1.699], [2.6, 2.1, 1.8, 1.8])
    assert "levelled off" in verdict(curves)
    assert "Still learning" in verdict(dataclasses.replace(curves, evaluated=np.array([20, 40, 60, 61])))


def test_words_for_where_a_loss_stands() -> None:
    known = (4.2, 3.3, 2.5, 2.0, 1.8, 1.7, 1.75)
    assert standing(4.5, known) == "no better than random guessing"
    assert standing(2.2, known) == "better than the 2-gram model (token pairs), not yet as good as the 3-gram model"
    assert standing(1.75, known) == "better than the 4-gram model, not yet as good as the 5-gram model"
    assert standing(1.4, known) == "better than every n-gram model of this text (best: 5-gram)"
    assert standing(1.4, ()) == ""


def test_patience_ends_a_run(write: Callable[..., Path], prose: str) -> None:
    path = write("text.txt", prose[:6_000])
    settings = SMALL | {"steps": 1000, "n_embd": 96, "eval_every": 10, "learning_rate": 5e-3}
    run = groundling.train(path, name="run", on_event=silent, patience=3, **settings)
    points = [line for line in run.metrics() if line["event"] == "evaluation"]
    assert run.finished
    assert points[-1]["step"] < 1000
    assert [point["best"] for point in points[-4:]] == [True, False, False, False]
    assert run.step == points[-4]["step"]
