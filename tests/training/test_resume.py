"""Stop anywhere, continue, and nothing shows: every tensor and every logged loss to the bit."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import groundling
from groundling.run import Run
from groundling.training.events import Event, Sample, Step

# Nothing here divides anything else: stops fall on all kinds of places.
SETTINGS = {"dropout": 0.1, "accumulate": 2, "eval_every": 7, "checkpoint_every": 9}


def final_tensors(run: Run) -> dict[str, torch.Tensor]:
    last = run.checkpoints.pointed("last")
    assert last is not None
    weights, optimizer = load_file(last / "model.safetensors"), load_file(last / "optimizer.safetensors")
    return weights | optimizer


def history(run: Run) -> list[tuple[Any, ...]]:
    """All that was logged, but for what a clock says."""
    kept = ("step", "loss", "learning_rate", "tokens", "grad_norm", "validation_loss", "training_loss", "best")
    lines = [line for line in run.metrics() if line["event"] in ("step", "evaluation")]
    return [tuple(line.get(key) for key in kept) for line in lines]


def assert_same(run: Run, reference: Run) -> None:
    ours, theirs = final_tensors(run), final_tensors(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert history(run) == history(reference)
    assert (run.folder / "samples.jsonl").read_bytes() == (reference.folder / "samples.jsonl").read_bytes()


@pytest.fixture
def reference(text_file: Path, tiny: dict[str, Any]) -> Run:
    run = groundling.train(text_file, name="whole", on_event=lambda event: None, **tiny | SETTINGS)
    assert len([line for line in run.metrics() if line["event"] == "step"]) == 40
    return run


def stop_at(step: int, kind: type[Event]) -> Any:
    def on_event(event: Event) -> None:
        if isinstance(event, kind) and getattr(event, "step", None) == step:
            signal.raise_signal(signal.SIGINT)

    return on_event


@pytest.mark.parametrize(
    ("step", "kind"), [(1, Step), (18, Step), (20, Step), (21, Sample), (28, Step), (39, Step), (40, Step)]
)
def test_a_stopped_run_continues_to_the_bit(
    step: int, kind: type[Event], reference: Run, text_file: Path, tiny: dict[str, Any]
) -> None:
    stopped = groundling.train(text_file, name="stopped", on_event=stop_at(step, kind), **tiny | SETTINGS)
    assert stopped.stopped_by == signal.SIGINT
    assert not stopped.finished  # not even after step 40: the last evaluation is missing
    run = groundling.resume("stopped", on_event=lambda event: None)
    assert run.stopped_by is None
    assert run.finished
    assert_same(run, reference)


def test_many_stops_change_nothing_either(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    groundling.train(text_file, name="often", on_event=stop_at(3, Step), **tiny | SETTINGS)
    for step in (4, 11, 14, 30):
        groundling.resume("often", on_event=stop_at(step, Step))
    assert_same(groundling.resume("often", on_event=lambda event: None), reference)


def test_the_same_command_continues(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    groundling.train(text_file, on_event=stop_at(13, Step), **tiny | SETTINGS)
    run = groundling.train(text_file, on_event=lambda event: None, **tiny | SETTINGS)
    assert run.name == "prose"
    assert_same(run, reference)


def test_a_damaged_last_checkpoint_costs_only_time(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    stopped = groundling.train(text_file, name="damaged", on_event=stop_at(25, Step), **tiny | SETTINGS)
    (stopped.folder / "checkpoints" / "step-000025" / "model.safetensors").write_bytes(b"\0" * 100)
    events: list[Event] = []
    run = groundling.resume("damaged", on_event=events.append)
    assert any("step-000025" in str(event) for event in events)
    assert_same(run, reference)


TRAIN = """
    import groundling
    from groundling.training.events import Step
    import torch; torch.set_num_threads(2)
    groundling.train({text!r}, name="killed", on_event=lambda e: print(e.step, flush=True)
                     if isinstance(e, Step) else None, **{settings!r})
"""


@pytest.mark.parametrize("at", [4, 12, 30])
def test_a_killed_process_loses_nothing_that_was_saved(
    at: int, reference: Run, text_file: Path, tiny: dict[str, Any]
) -> None:
    """SIGKILL in the middle of training; then the same command in a fresh process."""
    program = textwrap.dedent(TRAIN.format(text=str(text_file), settings=tiny | SETTINGS))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == str(at):
                time.sleep(0.005 * at)  # not always at the same place of a step
                process.kill()
                break
    assert process.wait() != 0
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    assert_same(groundling.load("killed"), reference)


def mutated_resume(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    """Break one thing in what a resume restores."""
    from groundling import launch
    from groundling.corpus.batches import Batches
    from groundling.training import fit

    load = launch.load_training
    if mutation == "optimizer moment":

        def forgetful(path: Path, model: Any, optimizer: Any) -> Any:
            state = load(path, model, optimizer)
            optimizer.state_of(model.wte.weight)["exp_avg"].zero_()
            return state

        monkeypatch.setattr(launch, "load_training", forgetful)
    elif mutation == "data order":
        starts = Batches.starts
        monkeypatch.setattr(Batches, "starts", lambda self, step, micro_step=0: starts(self, step + 1, micro_step))
    elif mutation == "dropout":
        seed = fit._dropout_seed
        monkeypatch.setattr(fit, "_dropout_seed", lambda s, step, micro_step: seed(s + 1, step, micro_step))
    elif mutation == "schedule":
        rate = fit.rate_factor
        monkeypatch.setattr(fit, "rate_factor", lambda progress, settings: rate(progress + 1e-3, settings))


@pytest.mark.parametrize("mutation", ["optimizer moment", "data order", "dropout", "schedule"])
def test_these_tests_would_notice(
    mutation: str, reference: Run, text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    groundling.train(text_file, name="mutated", on_event=stop_at(20, Step), **tiny | SETTINGS)
    mutated_resume(monkeypatch, mutation)
    run = groundling.resume("mutated", on_event=lambda event: None)
    with pytest.raises(AssertionError):
        assert_same(run, reference)


MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "optimizer": "muon", "n_kv_head": 1}


@pytest.mark.parametrize("changes", [{}, MODERN], ids=["gpt2", "modern"])
def test_bfloat16_continues_to_the_bit_too(changes: dict[str, Any], text_file: Path, tiny: dict[str, Any]) -> None:
    settings = tiny | SETTINGS | {"dtype": "bfloat16", "steps": 16} | changes
    reference = groundling.train(text_file, name="whole16", on_event=lambda event: None, **settings)
    groundling.train(text_file, name="stopped16", on_event=stop_at(9, Step), **settings)
    assert_same(groundling.resume("stopped16", on_event=lambda event: None), reference)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_continues_to_the_bit_too(text_file: Path, tiny: dict[str, Any]) -> None:
    settings = tiny | SETTINGS | MODERN | {"dtype": "bfloat16", "steps": 16, "compile": "on"}
    reference = groundling.train(text_file, name="whole-compiled", on_event=lambda event: None, **settings)
    groundling.train(text_file, name="stopped-compiled", on_event=stop_at(9, Step), **settings)
    assert_same(groundling.resume("stopped-compiled", on_event=lambda event: None), reference)


def test_two_runs_with_one_seed_are_one_run(reference: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    again = groundling.train(text_file, name="again", on_event=lambda event: None, **tiny | SETTINGS)
    assert_same(again, reference)
    other = groundling.train(text_file, name="other", on_event=lambda event: None, **tiny | SETTINGS | {"seed": 2})
    digest = [
        hashlib.sha256(str(final_tensors(run)["wte.weight"].tolist()).encode()).digest() for run in (again, other)
    ]
    assert digest[0] != digest[1]
