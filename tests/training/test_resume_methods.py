"""Each post-training method resumes to the bit: tensors, logs, replies, and every batch."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from planted_faults import TASK_MUTATIONS
from resumptions import FAILED, MUTATED_STEP, run_all

from groundling import storage
from methods import METHODS, STEPS, job

Results = dict[str, str | None]

_LATE = (5, 11, 31, 18, 23, 15, 29, 8, 26, 20, 9, 28, 13)
STEPS_OF: dict[str, tuple[int, ...]] = {
    method: (late,) if i % 2 else (i // 2 % 4, late)
    for i, (method, late) in enumerate(zip(METHODS, _LATE, strict=True))
}


def resumptions(folder: Path, steps: dict[str, tuple[int, ...]]) -> Results:
    planted = {method: [name for name, (place, _) in TASK_MUTATIONS.items() if place == method] for method in METHODS}
    jobs = {
        method: job(folder, method) | {"steps": list(steps[method]), "mutations": planted[method]} for method in METHODS
    }
    return run_all(jobs, folder)


@pytest.fixture(scope="module")
def folder(models_to_tune: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(models_to_tune, tmp_path_factory.mktemp("methods") / "models"))


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    if not hasattr(os, "fork") or sys.platform == "darwin":
        pytest.skip("a new interpreter for each resume takes minutes where processes cannot be forked")
    return resumptions(folder, STEPS_OF)


def assert_exact(method: str, steps: tuple[int, ...], results: Results) -> None:
    found = {step: results[f"{method}/{step}/"] for step in steps}
    assert {step: difference for step, difference in found.items() if difference is not None} == {}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_to_the_bit(method: str, results: Results) -> None:
    assert_exact(method, STEPS_OF[method], results)


@pytest.mark.parametrize("mutation", TASK_MUTATIONS)
def test_a_resume_that_is_not_exact_is_found(mutation: str, results: Results) -> None:
    difference = results[f"{TASK_MUTATIONS[mutation][0]}/{MUTATED_STEP}/{mutation}"]
    assert difference is not None and not difference.startswith(FAILED)


def test_steps_with_and_without_signal_are_resumed(results: Results, folder: Path) -> None:
    """The tests above saw both, and replies in the samples."""
    for method in ("grpo", "grpo-rloo", "grpo-tool"):
        lines = [line for line in storage.read_json_lines(folder / method / "metrics.jsonl") if line["event"] == "step"]
        signals = [line["figures"]["signal"] > 0 for line in lines]
        assert len(signals) == STEPS and 4 <= sum(signals) <= STEPS - 4
        samples = storage.read_json_lines(folder / method / "samples.jsonl")
        assert [line["step"] for line in samples if line["event"] == "replies"] == [0, 16, 32]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_method_resumes_to_the_bit_from_each_step(models_to_tune: Path, tmp_path: Path) -> None:
    every = tuple(range(STEPS))
    folder = Path(shutil.copytree(models_to_tune, tmp_path / "models"))
    results = resumptions(folder, dict.fromkeys(METHODS, every))
    for method in METHODS:
        assert_exact(method, every, results)
