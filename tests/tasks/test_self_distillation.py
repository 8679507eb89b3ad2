"""Several generations: each learns from the text and from the model before, and nothing of it is lost."""

from __future__ import annotations

import math
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forwards import saying
from safetensors.torch import load_file

import groundling
from groundling.analysis.diagnosis import diagnose
from groundling.analysis.history import History
from groundling.config import Config, ModelSettings
from groundling.data.batches import Batch
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.reporting.run_facts import Facts
from groundling.run.run import Run
from groundling.tasks.pretraining import Pretraining
from groundling.tasks.self_distillation import SelfDistillation, end_of
from groundling.training.events import Event, Generation, RolledBack, Step
from groundling.training.trainer import Trainer
from tiny import TINY

THREE = {"generations": 3, "weight_average": 0.1, "optimizer": "muon", "compile": "off", "schedule": "linear",
         "final_lr_fraction": 0.0}  # fmt: skip
# Of 40 steps: a sixth, a third, a half; a generation ends with the step that completes its share.
BORN = [7, 20]


def quietly(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def run(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("generations")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    settings = TINY | THREE | {"keep_checkpoints": 0}
    return groundling.train(folder / "prose.txt", name="three", out=folder, on_event=quietly, **settings)


def of(run: Run, event: str) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["event"] == event]


@pytest.mark.parametrize("generations", [1, 2, 3, 7])
def test_generations_have_lengths_as_one_to_two_to_three(generations: int) -> None:
    ends = [0.0] + [end_of(k, generations) for k in range(1, generations + 1)]
    lengths = [b - a for a, b in pairwise(ends)]
    assert lengths == pytest.approx([k * lengths[0] for k in range(1, generations + 1)])
    assert ends[-1] == 1.0


def test_the_value_is_the_texts_and_the_gradient_is_half_the_teachers() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 5, 7, requires_grad=True), torch.randn(2, 5, 7, requires_grad=True)
    tokens, targets = torch.randint(7, (2, 5)), torch.randint(7, (2, 5))
    task, batch = object.__new__(SelfDistillation), Batch(tokens, targets)
    task._predict = saying(teacher)
    loss = task.loss(saying(logits), batch).value
    loss.backward()
    assert loss.detach() == Pretraining.loss(task, saying(logits), batch).value.detach()
    wanted = (F.one_hot(targets, 7) + teacher.detach().softmax(-1)) / 2  # of a cross-entropy: p - wanted
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - wanted) / 10)
    assert teacher.grad is None


def test_each_begins_anew_and_is_evaluated_sampled_and_saved_at_its_end(run: Run) -> None:
    assert [(line["step"], line["generation"]) for line in of(run, "generation")] == [(7, 2), (20, 3)]
    evaluated, saved = [{line["step"] for line in of(run, event)} for event in ("evaluation", "saved")]
    assert {*BORN, 40} <= evaluated & saved
    losses = {line["step"]: line["loss"] for line in of(run, "step")}
    untrained = losses[1]
    for born in BORN:
        assert losses[born] < 0.95 * untrained < losses[born + 1] < 1.05 * untrained
    assert len(losses) == 40


def test_learning_rates_rise_and_fall_in_each(run: Run) -> None:
    rates = [line["learning_rate"] for line in of(run, "step")]
    for start, end in pairwise([0, *BORN, 40]):
        part = rates[start:end]
        peak = part.index(max(part))
        assert part[:peak] == sorted(part[:peak]) and part[peak:] == sorted(part[peak:], reverse=True)
        assert part[-1] < 0.1 * max(part)
        assert max(part) > 2e-3


def test_the_teacher_is_the_model_that_was_saved_at_its_end(run: Run) -> None:
    for born, later in ((7, 10), (7, 20), (20, 30), (20, 40)):
        teacher = load_file(run.checkpoints.path(born) / "model.safetensors")
        training = load_file(run.checkpoints.path(later) / "optimizer.safetensors")
        kept = {name.removesuffix("/teacher"): value for name, value in training.items() if name.endswith("/teacher")}
        assert kept.keys() == teacher.keys()
        assert all(torch.equal(kept[name], teacher[name]) for name in kept)
    assert not [name for name in load_file(run.checkpoints.path(7) / "optimizer.safetensors") if "/teacher" in name]


def test_the_teacher_is_listened_to(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, whose second and third generations learn from the text alone, is another one."""
    folder = tmp_path / "deaf"
    shutil.copytree(run.folder, folder)
    for step in run.checkpoints.steps():
        if step > 7:
            shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}")
    (folder / "result.json").unlink()
    monkeypatch.setattr(SelfDistillation, "loss", Pretraining.loss)
    deaf = groundling.resume(folder, on_event=quietly)
    mine, theirs = [[line["loss"] for line in of(each, "step")] for each in (deaf, run)]
    same = [step for step, (a, b) in enumerate(zip(mine, theirs, strict=True), 1) if a == b]
    assert same == [*range(1, 8), 8, 21]  # the first step of each has its weights from nobody


def test_what_is_told_of_a_run_is_told_of_its_last_generation(run: Run) -> None:
    history = History.read(run.metrics(), run.config)
    assert history.steps.tolist() == list(range(21, 41))
    assert min(history.evaluated) > 20
    assert history.epochs(40) == pytest.approx(40 * 8 * 32 / history.training_tokens)


def test_the_page_shows_all_of_them_also_when_one_has_just_begun(run: Run) -> None:
    lines = run.metrics()
    begun = [i for i, line in enumerate(lines) if line["event"] == "generation"]
    for some in (lines[: begun[1] + 1], lines):
        facts = Facts("three", run.record.to_dict(), run.config, some, [], None)
        assert "Generation 2 starts after step 7: a new model" in str(facts.charts["loss"])
        assert facts.findings == diagnose(History.read(some, run.config))
        assert facts.outcome
        assert facts.whole.n_steps == (20 if some is not lines else 40)


@pytest.mark.parametrize(("kind", "step"), [(Generation, 7), (Generation, 20), (Step, 7), (Step, 8)])
def test_a_stop_where_one_begins_changes_nothing(
    kind: type[Event], step: int, run: Run, text_file: Path, tiny: dict[str, Any]
) -> None:
    from groundling.experiments.compare_runs import first_difference

    def stop(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)

    stopped = groundling.train(text_file, name="stopped", on_event=stop, **tiny | THREE | {"keep_checkpoints": 0})
    assert stopped.stopped_by == signal.SIGINT
    resumed = groundling.resume("stopped", on_event=quietly)
    assert first_difference(resumed.folder, run.folder) is None
    assert [line["step"] for line in of(resumed, "generation")] == BORN


def test_a_fault_after_the_first_step_of_one_leads_back_before_it_began(
    text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step = Trainer._step

    def faulty(self: Trainer, *parts: Any, **named: Any) -> Any:
        outcome, cause = make_step(self, *parts, **named)
        if self.state.step == 8 and not self.state.guard.rollbacks:
            with torch.no_grad():
                self.learner.model.wte.weight[0, 0] = math.nan
            cause = "planted"
        return outcome, cause

    monkeypatch.setattr(Trainer, "_step", faulty)
    events: list[Event] = []
    done = groundling.train(text_file, on_event=events.append, **tiny | THREE)
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.to == 7
    assert [event.step for event in events if isinstance(event, Generation)] == [7, 7, 20]
    assert [line["step"] for line in of(done, "generation")] == BORN
    assert done.finished


def test_more_steps_go_on_with_the_last_generation(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(run.folder, folder)
    longer = groundling.resume(folder, steps=60, on_event=quietly)
    assert [line["step"] for line in of(longer, "generation")] == BORN
    rates = {line["step"]: line["learning_rate"] for line in of(longer, "step")}
    # The third one has steps 21 to 60 now, of which 21 are behind it with the next.
    assert rates[41] > rates[50] > rates[60] == pytest.approx(0, abs=1e-9)


def test_the_first_weights_of_each_are_its_own() -> None:
    config = Config.build("text", **THREE, n_layer=1, n_head=2, n_embd=8, block_size=8)
    initial = InitialModel(config.model, 5, config.training.seed)
    first, again, second = (initial.build(n).wte.weight for n in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"generations": 0}, "--generations must be at least 1"),
        ({"generations": 2, "patience": 3}, "Use --patience or --generations, not both"),
        ({"generations": 5, "steps": 4, "warmup_steps": 0}, "--generations 5 needs at least as many --steps"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.build("text", **settings)


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_a_compiled_teacher_says_the_same() -> None:
    from groundling.machine import choose
    from groundling.model.compiled import compiled_forward

    config = Config.build("text", device="cpu", dtype="float32", compile="on")
    machine = choose(config.machine)
    teacher = GPT(ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=32), 9).requires_grad_(False).eval()
    tokens = torch.randint(9, (4, 32))
    with torch.no_grad():
        torch.testing.assert_close(compiled_forward(teacher, machine, graphs=False)(tokens), teacher(tokens))
