"""NaN, infinity and spikes in the loss, the gradient, a weight or the optimizer: left out, gone back from, or said."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling.analysis.diagnosis import diagnose
from groundling.analysis.history import History
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.run.run import Run
from groundling.tasks.pretraining import Pretraining
from groundling.training.divergence import DivergedError, DivergenceGuard
from groundling.training.events import Event, RolledBack, Saved, Skipped, Step
from groundling.training.schedule import rate_factor
from groundling.training.state import TrainState, read_state
from groundling.training.task import Loss, Task
from groundling.training.trainer import Trainer

TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "steps": 40, "eval_every": 16,
    "eval_tokens": 256, "checkpoint_every": 10, "log_every": 1, "sample_tokens": 3, "warmup_steps": 2, "dropout": 0.1,
    "learning_rate": 3e-3, "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip

Fault = Callable[[int, float, GPT], Any]


def train(text: Path, name: str = "run", on_event: Any = None, **settings: Any) -> tuple[Run, list[Event]]:
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if on_event:
            on_event(event)

    return groundling.train(text, name=name, on_event=tell, **TINY | settings), events


def of(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Put a fault into training: given the step, the share of the learning rates and the model, a factor of the loss
    (or None)."""

    def plant(fault: Fault) -> None:
        make_step, loss = Trainer._step, Task.loss
        at: list[Any] = [0, 1.0]

        def watched(self: Trainer, *parts: Any, **named: Any) -> Any:
            at[:] = self.state.step + 1, self.state.guard.lr_scale
            return make_step(self, *parts, **named)

        def faulty(self: Task, forward: Any, batch: Any) -> Loss:
            factor = fault(at[0], at[1], forward)
            return Loss(loss(self, forward, batch).value * (1.0 if factor is None else factor))

        monkeypatch.setattr(Trainer, "_step", watched)
        monkeypatch.setattr(Pretraining, "loss", faulty)

    return plant


def tensors(run: Run) -> bytes:
    last = run.checkpoints.path(run.checkpoints.steps()[-1])
    return (last / "model.safetensors").read_bytes() + (last / "optimizer.safetensors").read_bytes()


def history(run: Run) -> list[dict[str, Any]]:
    kept = ("event", "step", "to", "cause", "loss", "learning_rate", "grad_norm", "validation_loss", "rate_share")
    lines = [line for line in run.metrics() if line["event"] in ("step", "skipped", "rolledback", "evaluation")]
    return [{key: line[key] for key in kept if key in line} for line in lines]


def steps(run: Run) -> list[int]:
    return [line["step"] for line in run.metrics() if line["event"] == "step"]


# A step is left out.


@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (math.nan, "loss is NaN"),
        pytest.param(math.inf, "loss is infinite", marks=pytest.mark.slow),
        (10.0, r"loss is \d\d\.\d, (9|10|11) times the usual \d\.\d+"),
    ],
)
def test_a_step_at_fault_is_left_out(
    factor: float, cause: str, text_file: Path, plant: Callable[[Fault], None]
) -> None:
    before: dict[int, list[torch.Tensor]] = {}

    def fault(step: int, share: float, model: GPT) -> float | None:
        before[step] = [p.detach().clone() for p in model.parameters()]
        return factor if step == 25 else None

    plant(fault)
    run, events = train(text_file)
    skipped = of(Skipped, events)
    assert [event.step for event in skipped] == [25]
    assert re.fullmatch(cause, skipped[0].cause)
    assert all(torch.equal(a, b) for a, b in zip(before[25], before[26], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before[26], before[27], strict=True))
    assert not of(RolledBack, events)
    assert steps(run) == [n for n in range(1, 41) if n != 25]
    assert [line["step"] for line in run.metrics() if line["event"] == "skipped"] == [25]
    assert all(math.isfinite(line["loss"]) for line in run.metrics() if line["event"] == "step")
    assert [line["tokens"] for line in run.metrics() if line["event"] == "step"][-1] == 39 * 32


def test_a_gradient_at_fault_is_left_out_too(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, calls = torch.nn.utils.clip_grad_norm_, [0]

    def faulty(parameters: Any, limit: float) -> torch.Tensor:
        calls[0] += 1
        parameters = list(parameters)
        if calls[0] == 7:
            parameters[0].grad[0, 0] = math.nan
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", faulty)
    _, events = train(text_file, steps=12)
    assert [(event.step, event.cause) for event in of(Skipped, events)] == [(7, "gradient norm is NaN")]


# It goes back.


def test_three_in_a_row_lead_back_at_half_the_rate_and_without_their_text(
    text_file: Path, plant: Callable[[Fault], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    plant(lambda step, share, model: made.append(step) or (math.nan if step in (25, 26, 27) else None))  # type: ignore[func-returns-value]
    run, events = train(text_file)
    assert [event.step for event in of(Skipped, events)] == [25, 26, 27]
    (back,) = of(RolledBack, events)
    assert (back.step, back.to, back.rate_share) == (27, 20, 0.5)
    assert back.cause == "loss is NaN, as in the 2 steps before"
    assert made == [*range(1, 28), *range(21, 25), *range(28, 41)]
    # Each step stands once in the history, and what happened stands there too.
    assert steps(run) == [*range(1, 25), *range(28, 41)]
    kinds = [line["event"] for line in run.metrics()]
    assert kinds.count("skipped") == 3
    assert kinds.count("rolledback") == 1
    rates = {event.step: event.learning_rate for event in of(Step, events)}
    twice = [event.learning_rate for event in of(Step, events) if event.step == 22]
    assert twice[1] == twice[0] / 2
    assert rates[39] == pytest.approx(TINY["learning_rate"] * rate_factor(39 / 40, run.config.training) / 2)


def test_where_nothing_was_saved_it_goes_back_to_the_start(text_file: Path, plant: Callable[[Fault], None]) -> None:
    first: list[list[torch.Tensor]] = []

    def fault(step: int, share: float, model: GPT) -> float | None:
        if step == 1:
            first.append([p.detach().clone() for p in model.parameters()])
        return math.nan if 4 <= step < 8 and share == 1 else None

    plant(fault)
    run, events = train(text_file, steps=12)
    (back,) = of(RolledBack, events)
    assert back.to == 0
    assert all(torch.equal(a, b) for a, b in zip(*first, strict=True))
    assert steps(run) == [1, 2, 3, 7, 8, 9, 10, 11, 12]
    # The optimizer is as new, too: from there on it is the run that has half of the rates from the beginning.
    t = run.config.training
    halves = {"learning_rate": t.learning_rate / 2, "matrix_learning_rate": t.matrix_learning_rate / 2}
    plant(lambda step, share, model: None)
    slow, _ = train(text_file, "slow", steps=12, **halves)
    losses = [[x["loss"] for x in r.metrics() if x["event"] == "step"][:3] for r in (run, slow)]
    assert losses[0] == losses[1]
    assert [line["step"] for line in run.metrics() if line["event"] == "evaluation"] == [0, 12]


def spoil(what: str) -> Fault:
    import gc

    from groundling.training.optimizer import Optimizers

    def fault(step: int, share: float, model: GPT) -> None:
        if step == 20 and share == 1:  # a step before it is saved
            if what == "weights":
                torch.nn.Module.__getattr__(model, "ln_f").weight.data[3] = math.inf
            else:
                found = (o for o in gc.get_objects() if type(o) is Optimizers)
                optimizer = next(o for o in found if model.wte.weight in o._owners)
                optimizer.state_of(model.ln_f.weight)["exp_avg_sq"][3] = math.nan

    return fault


@pytest.mark.parametrize("what", ["weights", "optimizer"])
def test_what_is_spoiled_is_never_saved(what: str, text_file: Path, plant: Callable[[Fault], None]) -> None:
    plant(spoil(what))
    run, events = train(text_file, keep_checkpoints=0)
    (back,) = of(RolledBack, events)
    assert back.to == 16  # the best
    assert {"weights": "the weights ln_f.weight are", "optimizer": "of ln_f.weight is"}[what] in back.cause
    assert steps(run) == [*range(1, 41)]
    from safetensors.torch import load_file

    for step in run.checkpoints.steps():
        for name in ("model.safetensors", "optimizer.safetensors"):
            for tensor in load_file(run.checkpoints.path(step) / name).values():
                assert tensor.isfinite().all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_whose_result_is_seen_late_is_left_out_too(
    optimizer: str, text_file: Path, plant: Callable[[Fault], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: when Python sees it, the device has left it out already, and weights and optimizer are those of a
    run that looks at once."""
    settings = {"log_every": 4, "optimizer": optimizer, "weight_average": 0.1, "keep_checkpoints": 0}
    plant(lambda step, share, model: math.nan if step == 25 else None)
    whole, _ = train(text_file, "at-once", **settings)
    monkeypatch.setattr(Machine, "runs_ahead", True)
    run, events = train(text_file, **settings)
    assert [(event.step, event.cause) for event in of(Skipped, events)] == [(25, "loss is NaN")]
    assert not of(RolledBack, events)
    assert run.finished
    assert max(steps(run)) == 40
    assert tensors(run) == tensors(whole)


def test_three_results_seen_late_lead_back(
    text_file: Path, plant: Callable[[Fault], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "runs_ahead", True)
    plant(lambda step, share, model: math.nan if step in (25, 26, 27) else None)
    run, events = train(text_file, log_every=4)
    assert [(back.step, back.to) for back in of(RolledBack, events)] == [(27, 20)]
    assert run.finished
    assert max(steps(run)) == 40


def test_after_three_times_it_ends_and_says_why(text_file: Path, plant: Callable[[Fault], None]) -> None:
    plant(lambda step, share, model: math.nan if step > 24 else None)
    events: list[Event] = []
    with pytest.raises(DivergedError, match=r"at step 36: loss is NaN.*3 rollbacks.*--learning-rate 0\.0003"):
        train(text_file, on_event=events.append)
    assert [back.rate_share for back in of(RolledBack, events)] == [0.5, 0.25, 0.125]
    run = groundling.load("run")
    assert run.generate("The ", max_new_tokens=3, seed=1)  # what was saved is sound
    assert [f.kind for f in diagnose(History.read(run.metrics(), run.config))] == ["diverged"]
    assert "loss is NaN" in run.explain()["verdict"]


# A run that was stopped goes the same way.


@pytest.mark.parametrize(
    "stops",
    [
        [(Skipped, 26, 1)],
        [(Step, 22, 2)],  # when it has gone back
        pytest.param([(Step, 23, 1), (Skipped, 27, 1)], marks=pytest.mark.slow),
        pytest.param([(RolledBack, 27, 1)], marks=pytest.mark.slow),
        pytest.param([(Step, 23, 1)], marks=pytest.mark.slow),
    ],
)
def test_a_stop_at_any_time_changes_nothing(
    stops: list[tuple[type[Event], int, int]], text_file: Path, plant: Callable[[Fault], None]
) -> None:
    # Only at the full rate: whether a resume knows that it was lowered shows.
    def fault(step: int, share: float, model: GPT) -> float | None:
        return {1.0: math.nan if 25 <= step <= 27 else 10.0 if step == 30 else None, 0.5: 10.0}.get(
            share if step in (25, 26, 27, 35) else 0.0
        )

    plant(fault)
    whole, events = train(text_file, "whole", keep_checkpoints=2)
    assert len(of(RolledBack, events)) == 1
    assert [event.step for event in of(Skipped, events)] == [25, 26, 27, 35]

    def stopping(kind: type[Event], step: int, nth: int) -> Callable[[Event], None]:
        seen: list[Event] = []

        def stop(event: Event) -> None:
            if type(event) is kind and getattr(event, "step", None) == step:
                seen.append(event)
                if len(seen) == nth:
                    signal.raise_signal(signal.SIGINT)

        return stop

    assert train(text_file, "stopped", stopping(*stops[0]))[0].stopped_by == signal.SIGINT
    for stop in stops[1:]:
        groundling.resume("stopped", on_event=stopping(*stop))
    run = groundling.resume("stopped", on_event=lambda event: None)
    assert run.finished
    assert tensors(run) == tensors(whole)
    assert history(run) == history(whole)
    states = [json.loads((r.checkpoints.path(40) / "state.json").read_text()) for r in (run, whole)]
    for state in states:
        del state["elapsed"]
    assert states[0] == states[1]


@pytest.mark.slow
def test_a_kill_after_the_way_back_changes_nothing_either(text_file: Path, plant: Callable[[Fault], None]) -> None:
    plant(lambda step, share, model: math.nan if 25 <= step <= 27 else None)
    whole, _ = train(text_file, "whole")

    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, Saved) and event.step == 30:
            raise Killed

    with pytest.raises(Killed):
        train(text_file, "killed", kill)
    run = groundling.resume("killed", on_event=lambda event: None)
    assert tensors(run) == tensors(whole)
    assert history(run) == history(whole)


# What is a spike.


def losses_of(values: list[float], vocab_size: int = 65) -> list[str]:
    guard, found = DivergenceGuard(), []
    for value in values:
        cause = guard.find_anomaly(value, 1.0, math.log(vocab_size))
        if cause:
            found.append(cause)
        else:
            guard.note_good(value)
    return found


def test_what_is_a_spike() -> None:
    falling = [4.17 * 0.98**n for n in range(60)]
    assert losses_of(falling) == []
    assert losses_of([*falling, 16.0]) == ["loss is 16, 7 times the usual 2.3"]
    assert losses_of([*falling, 11.0]) == []  # not five times
    # A text known by heart, and then a new kind of text, which costs twice what guessing does.
    assert losses_of([0.001] * 60 + [8.3]) == []
    assert losses_of([0.001] * 60 + [13.0]) != []
    assert losses_of([4.2] * 15 + [100.0]) == []  # too early to say
    assert losses_of([4.2] * 16 + [100.0]) != []


def test_states_of_before_still_load(tmp_path: Path) -> None:
    assert TrainState(step=3, tokens=96, elapsed=1.0).guard.lr_scale == 1.0
    before = {
        "step": 30, "tokens": 960, "elapsed": 2.5, "best_loss": 2.25, "generation": 2, "born": 10, "born_at": 0.75,
        "sound_step": 20, "rate_share": 0.5, "passed_over": [24], "rollbacks": 1, "loss_scale": 8.0,
    }  # fmt: skip
    (tmp_path / "state.json").write_text(json.dumps(before))
    state = read_state(tmp_path)
    assert (state.best_score, state.stage, state.stage_step, state.stage_elapsed) == (2.25, 2, 10, 0.75)
    guard = state.guard
    assert (guard.last_good_step, guard.lr_scale, guard.skipped_steps, guard.rollbacks) == (20, 0.5, [24], 1)
    assert state.scaler.loss_scale == 8.0
    (tmp_path / "state.json").write_text(json.dumps(state.to_dict()))
    assert read_state(tmp_path) == state
