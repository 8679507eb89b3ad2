"""Stop anywhere, continue, and nothing shows: every tensor, every logged loss and every batch to the bit."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_faults import PRETRAINING_MUTATIONS
from resumptions import FAILED, FRESH_STEP, MUTATED_STEP, STEPS, run_all

import groundling
from groundling.experiments.compare_runs import first_difference, history, tensors
from groundling.run.run import Run
from groundling.training.events import Event, Notice, Sample, Step
from groundling.training.state import TrainState
from tiny import TINY as USUAL

TINY = {
    "steps": STEPS, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "eval_tokens": 128,
    "sample_tokens": 3, "learning_rate": 3e-3, "device": "cpu", "threads": 1, "compile": "off",
}  # fmt: skip
MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 1}

FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "arithmetic": {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}},
    "optimizer": {
        "adamw": {"optimizer": "adamw"},
        "muon": {"optimizer": "muon", "weight_average": 0.1, **MODERN},
        "8 bits": {"optimizer": "muon", "optimizer_bits": 8, "n_embd": 128},
    },
    "dropout": {"without": {"dropout": 0.0}, "with": {"dropout": 0.2}},
    "accumulation": {"1": {"accumulate": 1}, "4": {"accumulate": 4}},
    "schedule": {
        "warm-up, cosine": {"warmup_steps": 9, "schedule": "cosine"},
        "warm-up, linear": {"warmup_steps": 3, "schedule": "linear", "final_lr_fraction": 0.0},
        "constant": {"warmup_steps": 0, "schedule": "constant"},
    },
    "evaluation": {
        "with samples": {"eval_every": 7},
        "alone": {"eval_every": 10, "sample_every": 0},
        "at the end": {"eval_every": STEPS},
    },
    "passes over the text": {"many": {"text": "short.txt"}, "less than one": {"text": "long.txt"}},
    "generations": {"one": {"generations": 1}, "four": {"generations": 4}},
}
COMPILED = FACTORS | {"compiler": {"off": {"compile": "off"}, "on": {"compile": "on"}}}
EVERY_STEP: tuple[str, ...] = ("float32", "muon", "with", "1", "warm-up, cosine", "with samples", "many", "four")
SOME_STEPS = (23, 58)
FIFTH_STEPS = (0, *range(4, STEPS, 5))

Row = tuple[str, ...]


@cache
def covering(compiled: bool = False) -> list[Row]:
    """Few rows, a value for each factor, in which any two values of two factors meet in at least one."""
    factors = COMPILED if compiled else FACTORS
    rows = list(itertools.product(*factors.values()))
    chosen, met = [], set[tuple[int, str, int, str]]()
    while new := max(rows, key=lambda row: len(pairs(row) - met)):
        if pairs(new) <= met:
            return chosen
        chosen.append(new)
        met |= pairs(new)
    raise AssertionError("unreachable")


def pairs(row: Row) -> set[tuple[int, str, int, str]]:
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def settings_of(row: Row) -> dict[str, Any]:
    settings: dict[str, Any] = dict(TINY)
    for values, chosen in zip(COMPILED.values(), row, strict=False):
        settings |= values[chosen]
    return settings


def resumptions(folder: Path, prose: str, rows: dict[str, tuple[Row, Any, Any]]) -> dict[str, str | None]:
    """What differs after each resume: see resumptions.py. `rows`: name -> row, steps, mutations."""
    (folder / "short.txt").write_text(prose[:800], encoding="utf-8")
    (folder / "long.txt").write_text(prose, encoding="utf-8")
    jobs = {}
    for name, (row, steps, mutations) in rows.items():
        settings = settings_of(row)
        text = str(folder / settings.pop("text"))
        jobs[name] = {
            "verb": "train", "arguments": [text], "settings": settings, "steps": list(steps),
            "mutations": list(mutations),
        }  # fmt: skip
    return run_all(jobs, folder)


@pytest.fixture(scope="module")
def results(prose: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    if not hasattr(os, "fork") or sys.platform == "darwin":
        pytest.skip("a new interpreter for each of fifty resumes takes minutes where processes cannot be forked")
    rows: dict[str, tuple[Row, Any, Any]] = {"whole": (EVERY_STEP, FIFTH_STEPS, PRETRAINING_MUTATIONS)}
    rows |= {f"row{i}": (row, SOME_STEPS[i % 2 :][:1], ()) for i, row in enumerate(covering())}
    return resumptions(tmp_path_factory.mktemp("resumptions"), prose, rows)


def differing(results: dict[str, str | None]) -> dict[str, str | None]:
    return {place: difference for place, difference in results.items() if difference is not None}


def test_a_resume_from_every_fifth_step_is_exact(results: dict[str, str | None]) -> None:
    mine = {f"whole/{step}/": results[f"whole/{step}/"] for step in FIFTH_STEPS}
    assert FRESH_STEP in FIFTH_STEPS  # by a new interpreter, the others by forks of one
    assert differing(mine) == {}


@pytest.mark.slow
def test_a_resume_from_any_of_64_steps_is_exact(prose: str, tmp_path: Path) -> None:
    found = resumptions(tmp_path, prose, {"whole": (EVERY_STEP, range(STEPS), ())})
    assert len(found) == 64
    assert differing(found) == {}


@pytest.mark.parametrize("i", range(len(covering())), ids=["; ".join(row) for row in covering()])
def test_a_resume_is_exact_whatever_is_trained(i: int, results: dict[str, str | None]) -> None:
    mine = {place: difference for place, difference in results.items() if place.startswith(f"row{i}/")}
    assert len(mine) == 1
    assert differing(mine) == {}


@pytest.mark.parametrize("compiled", [False, True])
def test_any_two_values_of_two_factors_meet(compiled: bool) -> None:
    rows = itertools.product(*(COMPILED if compiled else FACTORS).values())
    assert set().union(*map(pairs, rows)) == set().union(*map(pairs, covering(compiled)))
    assert len(covering(compiled)) <= 14


@pytest.mark.parametrize("mutation", PRETRAINING_MUTATIONS)
def test_a_resume_that_is_not_exact_is_found(mutation: str, results: dict[str, str | None]) -> None:
    difference = results[f"whole/{MUTATED_STEP}/{mutation}"]
    assert difference is not None
    assert not difference.startswith(FAILED)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_resume_is_exact_in_the_full_product(prose: str, tmp_path: Path) -> None:
    rows = list(itertools.product(*FACTORS.values()))
    steps = itertools.cycle(range(STEPS))
    jobs = {f"row{i}": (row, (next(steps), next(steps), next(steps)), ()) for i, row in enumerate(rows)}
    found = resumptions(tmp_path, prose, jobs)
    assert len(found) == 3 * len(rows) == 2592
    assert differing(found) == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("compiler")
def test_a_resume_is_exact_where_the_model_is_compiled(prose: str, tmp_path: Path) -> None:
    rows = [row for row in covering(compiled=True) if row[-1] == "on"]
    assert len(rows) >= 3  # each schedule
    found = resumptions(tmp_path, prose, {f"row{i}": (row, (1, 20), ()) for i, row in enumerate(rows)})
    assert differing(found) == {}


# Nothing here divides anything else: stops fall on all kinds of places.
SETTINGS = {"dropout": 0.1, "accumulate": 2, "eval_every": 7, "checkpoint_every": 9}


def quietly(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def reference(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reference")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    run = groundling.train(folder / "prose.txt", name="whole", out=folder, on_event=quietly, **USUAL | SETTINGS)
    assert len([line for line in run.metrics() if line["event"] == "step"]) == 40
    return run


def assert_same(run: Run, reference: Run) -> None:
    assert first_difference(run.folder, reference.folder) is None


def stop_at(step: int, kind: type[Event]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if isinstance(event, kind) and getattr(event, "step", None) == step:
            signal.raise_signal(signal.SIGINT)

    return on_event


@pytest.mark.parametrize(("step", "kind"), [(1, Step), (18, Step), (21, Sample), (28, Step), (39, Step)])
def test_a_stopped_run_continues_to_the_bit(
    step: int, kind: type[Event], reference: Run, text_file: Path, tiny: dict[str, Any]
) -> None:
    stopped = groundling.train(text_file, name="stopped", on_event=stop_at(step, kind), **tiny | SETTINGS)
    assert stopped.stopped_by == signal.SIGINT
    assert not stopped.finished
    run = groundling.resume("stopped", on_event=quietly)
    assert run.stopped_by is None
    assert run.finished
    assert_same(run, reference)


def test_a_run_that_is_stopped_after_its_last_step_is_evaluated_when_it_continues(
    reference: Run, text_file: Path, tiny: dict[str, Any]
) -> None:
    stopped = groundling.train(text_file, name="stopped", on_event=stop_at(40, Step), **tiny | SETTINGS)
    assert not stopped.finished
    run = groundling.resume("stopped", on_event=quietly)
    assert run.finished
    assert history(run.folder) == history(reference.folder)
    ours, theirs = tensors(run.folder), tensors(reference.folder)
    differing = {name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()}
    # The checkpoint of step 40 was saved before its evaluation, of which it does not know; it is not overwritten.
    assert differing < TrainState().to_dict().keys()


def test_many_stops_change_nothing_either(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    groundling.train(text_file, name="often", on_event=stop_at(3, Step), **tiny | SETTINGS)
    for step in (4, 11, 14, 30):
        groundling.resume("often", on_event=stop_at(step, Step))
    assert_same(groundling.resume("often", on_event=quietly), reference)


def test_the_same_command_continues(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    groundling.train(text_file, on_event=stop_at(13, Step), **tiny | SETTINGS)
    run = groundling.train(text_file, on_event=quietly, **tiny | SETTINGS)
    assert run.name == "prose"
    assert_same(run, reference)


def test_a_damaged_last_checkpoint_costs_only_time(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    stopped = groundling.train(text_file, name="damaged", on_event=stop_at(25, Step), **tiny | SETTINGS)
    (stopped.folder / "checkpoints" / "step-000025" / "model.safetensors").write_bytes(b"\0" * 100)
    events: list[Event] = []
    run = groundling.resume("damaged", on_event=events.append)
    assert any("step-000025" in str(event) for event in events)
    assert_same(run, reference)


def test_two_runs_with_one_seed_are_one_run(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    again = groundling.train(text_file, name="again", on_event=quietly, **tiny | SETTINGS)
    assert_same(again, reference)
    other = groundling.train(text_file, name="other", on_event=quietly, **tiny | SETTINGS | {"seed": 2})
    assert "differs" in str(first_difference(other.folder, reference.folder))


def not_exact(events: list[Event]) -> list[str]:
    sentences = [event.sentence for event in events if isinstance(event, Notice)]
    return [sentence for sentence in sentences if sentence.startswith("Not bit-exact: ")]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({}, ""),
        ({"torch": "2.12.0"}, f"torch 2.12.0 → {torch.__version__}"),
        ({"threads": "64"}, "threads 64 → "),
        ({"processor": "Abacus"}, "processor Abacus → "),
        ({"instructions": "AVX2", "dtype": "bfloat16"}, "dtype bfloat16 → float32"),
    ],
    ids=["same", "torch", "threads", "processor", "two"],
)
def test_what_decides_the_bits_and_has_changed_is_said_once(
    before: dict[str, str], said: str, reference: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's newest checkpoint was saved elsewhere, by its own record."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("GROUNDLING_CACHE", str(reference.folder.parent / "cache"))
    monkeypatch.setattr("groundling.machine.torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    folder = tmp_path / "moved"
    shutil.copytree(reference.folder, folder)
    record = json.loads((folder / "config.json").read_text("utf-8"))
    bits = {"instructions": "DEFAULT"}
    assert record["bits"].keys() >= before.keys()
    record["bits"] |= bits | before
    events: list[Event] = []
    rewrite(folder, record)
    groundling.resume(folder, steps=42, on_event=events.append)
    assert len(not_exact(events)) == bool(before)
    if before:
        assert said in not_exact(events)[0]
        assert not_exact(events)[0].count("→") == len(before)
    groundling.resume(folder, steps=44, on_event=(later := list[Event]()).append)
    assert not_exact(later) == []


def rewrite(folder: Path, record: dict[str, Any]) -> None:
    """Put another record into the run's newest checkpoint, as if it had been saved with that."""
    from groundling import storage

    newest = (
        folder / "checkpoints" / json.loads((folder / "checkpoints" / "last.json").read_text("utf-8"))["checkpoint"]
    )
    about, old = storage.read_manifest(newest), newest.with_name("old")
    newest.rename(old)
    with storage.new_folder(newest, about) as temporary:
        for file in old.iterdir():
            if file.name not in ("config.json", storage.MANIFEST):
                shutil.copyfile(file, temporary / file.name)
        (temporary / "config.json").write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(old)
