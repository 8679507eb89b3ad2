"""The test of the seam: a supervised task trains, evaluates, resumes to the bit and survives kills, and nothing but the
task had to be written for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import Answers
from forwards import saying

import groundling
from groundling.config import Config
from groundling.data.batches import Batch
from groundling.experiments.compare_runs import first_difference
from groundling.tasks import TASKS, new_task
from groundling.training.events import Evaluation, Event, Saved, Step

SETTINGS: dict[str, Any] = {
    "task": "answers", "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 12, "batch_size": 8, "accumulate": 2,
    "steps": 60, "eval_every": 20, "checkpoint_every": 15, "warmup_steps": 4, "learning_rate": 1e-2, "dropout": 0.1,
    "preset": "nano", "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "answers", Answers)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.txt"
    path.write_text("".join(f"{a}+{b}={a + b}\n" for a in range(12) for b in range(12)), newline="")
    return path


def train(text: Path, name: str, on_event: Any = lambda event: None) -> Any:
    return groundling.train(text, name=name, on_event=on_event, **SETTINGS)


def test_it_learns_and_the_highest_accuracy_is_the_best(sums: Path) -> None:
    events: list[Event] = []
    run = train(sums, "run", events.append)
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses[-1] < 0.7 * losses[0]
    best = max(evaluations[1:], key=lambda event: event.validation_loss)
    assert best.validation_loss > evaluations[0].validation_loss + 0.1
    assert run.result["best_validation_loss"] == best.validation_loss
    assert run.result["best_step"] == best.step == run.step
    assert all("whole_answers" in event.figures and event.bits_per_byte is None for event in evaluations)
    assert run.config.task == "answers"
    assert run.generate("3+4=", max_new_tokens=3, temperature=0)
    assert run.report().exists() and run.explain()


def test_prompts_are_read_and_not_learned(sums: Path) -> None:
    """The loss of a batch is that of its answers, whatever the model says about prompts and padding."""
    config = Config.build(str(sums), **SETTINGS)
    text = groundling.Corpus.open(sums)
    task = new_task(text, config, None)  # type: ignore[arg-type]
    batch = task.batch(0, None)  # type: ignore[arg-type]
    V = text.tokenizer.vocab_size
    logits = torch.randn(len(batch), 12, V, generator=torch.Generator().manual_seed(0))
    spoiled = torch.where(batch.weights[:, :, None] > 0, logits, torch.randn(len(batch), 12, V))  # type: ignore[index]
    assert torch.equal(task.loss(saying(logits), batch).value, task.loss(saying(spoiled), batch).value)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_token_counts_the_same_in_any_micro_batch(accumulate: int, sums: Path) -> None:
    """Ragged masks: the gradient of a step does not depend on how it is cut."""
    from groundling.training.step import micro_batches

    task = new_task(groundling.Corpus.open(sums), Config.build(str(sums), **SETTINGS), None)  # type: ignore[arg-type]
    batch = task.batch(3, None)  # type: ignore[arg-type]
    table = torch.zeros(64, 64, requires_grad=True)  # the logits of each token's successor

    for part, share in micro_batches(batch, accumulate, task.weight, seed=1, step=0, stopped=lambda: False):
        (task.loss(saying(lambda tokens: table[tokens]), part).value * (share / accumulate)).backward()
    whole = torch.zeros(64, 64, requires_grad=True)
    logits = whole[batch.tokens].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="none")
    assert isinstance(batch, Batch) and batch.weights is not None
    ((losses * batch.weights.flatten()).sum() / batch.weights.sum()).backward()
    torch.testing.assert_close(table.grad, whole.grad)


def test_a_stopped_run_resumes_to_the_bit(sums: Path) -> None:
    whole = train(sums, "whole")

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 23:
            signal.raise_signal(signal.SIGINT)

    assert train(sums, "stopped", stop).stopped_by == signal.SIGINT
    resumed = groundling.resume("stopped", on_event=lambda event: None)
    assert resumed.finished
    assert first_difference(resumed.folder, whole.folder) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked to be killed")
def test_kills_lose_nothing(sums: Path) -> None:
    whole = train(sums, "whole")
    for kind, step in ((Step, 7), (Saved, 30), (Step, 52)):
        child = os.fork()
        if child == 0:

            def strike(event: Event, kind: type[Event] = kind, step: int = step) -> None:
                if isinstance(event, kind) and event.step == step:  # type: ignore[attr-defined]
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                train(sums, "killed", strike)
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] & 0x7F == signal.SIGKILL
    run = train(sums, "killed")
    assert run.finished
    assert first_difference(run.folder, whole.folder) is None
