"""Memory runs out at each place: smaller passes over the same text, or a sentence that names the setting."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling.__main__ import main
from groundling.config import CorpusSettings, TrainingSettings
from groundling.data.batches import WindowSampler
from groundling.data.corpus import prepare
from groundling.data.sources import find_source
from groundling.model import weights_file
from groundling.model.gpt import GPT
from groundling.run.run import Run
from groundling.tasks import pretraining
from groundling.training.compiling import CompileTrial
from groundling.training.events import Event, Notice, OutOfMemory
from groundling.training.optimizer import Optimizers
from groundling.training.out_of_memory import OutOfMemoryError, halved, is_out_of_memory

TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 8, "steps": 12, "eval_every": 5,
    "eval_tokens": 2560, "checkpoint_every": 4, "log_every": 1, "sample_tokens": 3, "warmup_steps": 2,
    "dropout": 0.0, "device": "cpu", "dtype": "float32", "compile": "off", "keep_checkpoints": 0,
}  # fmt: skip
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 6871947"),
]


LATER = [("forward", 1), ("forward", 7), ("backward", 7)]


def train(text: Path, name: str = "run", **settings: Any) -> tuple[Run, list[Event]]:
    events: list[Event] = []
    return groundling.train(text, name=name, on_event=events.append, **TINY | settings), events


def of(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def failing(function: Callable[..., Any], calls: set[int], error: BaseException = ERRORS[2]) -> Callable[..., Any]:
    """`function`, whose calls of these numbers, from 1 on, run out of memory once they have done their work."""
    count = [0]

    def fails(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        result = function(*arguments, **named)
        if count[0] in calls:
            raise error
        return result

    return fails


def losses(run: Run) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.metrics() if line["event"] == "step"]


def norms(run: Run) -> list[float]:
    return [line["grad_norm"] for line in run.metrics() if line["event"] == "step"]


def windows(run: Run, text: Path) -> list[list[int]]:
    """Where the windows of each step begin, by the settings in the run's record."""
    corpus, t = prepare(find_source(text), run.config.text), run.config.training
    batches = WindowSampler(corpus.train, run.config.model.block_size, t.batch_size * t.accumulate, t.seed)
    return [batches.offsets(step).tolist() for step in range(5)]


def assert_halved(run: Run, events: list[Event], whole: Run, text: Path) -> None:
    """Halved once, with nothing else to be seen."""
    (event,) = of(OutOfMemory, events)
    assert (event.batch_size, event.accumulate) == (4, 2)
    assert (run.config.training.batch_size, run.config.training.accumulate) == (4, 2)
    assert run.record.requested.training.batch_size == 8  # the same command finds the run again
    assert windows(run, text) == windows(whole, text)
    assert [step for step, _ in losses(run)] == list(range(1, 13))
    assert [loss for _, loss in losses(run)] == pytest.approx([loss for _, loss in losses(whole)], abs=1e-3)
    assert norms(run) == pytest.approx(norms(whole), rel=0.01)
    assert [line["batch_size"] for line in run.metrics() if line["event"] == "outofmemory"] == [4]


@pytest.fixture
def whole(text_file: Path) -> Run:
    return train(text_file, "whole")[0]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_memory_errors_are(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_halves_read_the_same_windows(text_file: Path) -> None:
    tokens = prepare(find_source(text_file), CorpusSettings()).train
    settings: TrainingSettings | None = TrainingSettings(batch_size=12, accumulate=3)
    seen, sizes = [], []
    while settings is not None:
        batch = WindowSampler(tokens, 16, settings.batch_size * settings.accumulate, seed=1)(7)
        seen.append(torch.cat([part.tokens for part in batch.split(settings.accumulate)]).tolist())
        sizes.append(settings.batch_size)
        settings = halved(settings)
    assert sizes == [12, 6, 3, 1]
    assert all(starts == seen[0] for starts in seen)
    odd = halved(TrainingSettings(batch_size=5, accumulate=2))
    assert odd is not None
    assert (odd.batch_size, odd.accumulate) == (2, 5)


@pytest.mark.parametrize(
    ("place", "call"),
    [("last pass", 7), *(pytest.param(*case, marks=pytest.mark.slow) for case in LATER)],
)
def test_in_a_pass(place: str, call: int, whole: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "backward":
        monkeypatch.setattr(torch.Tensor, "backward", failing(torch.Tensor.backward, {call}))
    elif place == "forward":
        forward = GPT.forward
        in_training = failing(forward, {call})
        monkeypatch.setattr(
            GPT, "forward", lambda self, *a, **k: (in_training if self.training else forward)(self, *a, **k)
        )
    else:  # what a part of the gradients was added up from is thrown away
        clip = torch.nn.utils.clip_grad_norm_
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", failing(clip, {call}))
    run, events = train(text_file)
    assert_halved(run, events, whole, text_file)


@pytest.mark.parametrize("call", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_in_the_optimizer(call: int, whole: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights may have been touched: it goes back to what is saved."""
    monkeypatch.setattr(Optimizers, "step", failing(Optimizers.step, {call}, ERRORS[1]))
    run, events = train(text_file)
    assert_halved(run, events, whole, text_file)
    assert [event.step for event in of(OutOfMemory, events)] == [{1: 0, 7: 5}[call]]


@pytest.mark.slow
def test_when_the_compiler_is_tried(whole: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompileTrial, "choose", failing(CompileTrial.choose, {1}))
    run, events = train(text_file)
    assert_halved(run, events, whole, text_file)


def test_a_resume_does_the_same(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, _ = train(text_file, "small", batch_size=4, accumulate=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", failing(torch.Tensor.backward, {1}))
        run, _ = train(text_file)
    for each in (small, run):
        groundling.resume(each, steps=16, on_event=lambda event: None)
    assert losses(run) == losses(small)
    assert len(losses(run)) == 16


def test_in_an_evaluation(whole: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GPT.forward

    def narrow(self: GPT, ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if not self.training and len(ids) > 130:
            raise ERRORS[1]
        return forward(self, ids, *rest, **named)

    monkeypatch.setattr(GPT, "forward", narrow)
    run, events = train(text_file)
    assert [event.evaluation_batch for event in of(OutOfMemory, events)] == [512, 256, 128]
    assert run.config.training.batch_size == 8
    assert losses(run) == losses(whole)
    ends = [[x["validation_loss"] for x in r.metrics() if x["event"] == "evaluation"] for r in (run, whole)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)
    resumed: list[Event] = []
    groundling.resume(run, steps=16, on_event=resumed.append)
    assert not of(OutOfMemory, resumed)


@pytest.mark.slow
def test_a_sample_is_left_out(whole: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "stream", failing(pretraining.stream, {2}))
    run, events = train(text_file)
    assert losses(run) == losses(whole)
    assert len(run.samples()) == len(whole.samples()) - 1
    assert [notice for notice in of(Notice, events) if "while writing a sample" in notice.sentence]


@pytest.mark.parametrize(
    ("place", "name", "sentence"),
    [
        (weights_file, "save_file", "while saving step 4. Close other programs"),
        pytest.param(
            torch.Tensor,
            "backward",
            "in a training step, with a single window of text. Close other programs",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_where_nothing_can_be_halved_a_sentence_says_what_to_do(
    place: Any, name: str, sentence: str, text_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(place, name, failing(getattr(place, name), set(range(1, 20))))
    settings = TINY | {"eval_every": 12, "checkpoint_every": 4}
    with pytest.raises(OutOfMemoryError, match=sentence):
        groundling.train(text_file, name="run", on_event=lambda event: None, **settings)
    words = [w for key, value in settings.items() for w in ("--" + key.replace("_", "-"), str(value))]
    monkeypatch.setattr(place, name, failing(getattr(place, name), set(range(1, 40))))
    with pytest.raises(SystemExit) as end:
        main(["train", str(text_file), "--name", "other", *words])
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


LIMITED = """
    import resource, sys
    import matplotlib.backends.backend_agg, matplotlib.figure, psutil
    import groundling
    from groundling.training.events import OutOfMemory, Started

    def limit(event):
        if isinstance(event, Started):
            most = psutil.Process().memory_info().vms + 200_000_000
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if isinstance(event, OutOfMemory):
            print(event.doing, event.batch_size, event.accumulate)

    run = groundling.train({text!r}, name="limited", on_event=limit, **{settings!r})
    assert run.finished
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space are Linux's")
def test_a_process_that_may_not_have_more_memory_trains_on(text_file: Path) -> None:
    """Really: the system refuses what a pass of 128 windows takes."""
    settings = TINY | {
        "batch_size": 128, "block_size": 128, "n_layer": 2, "n_embd": 64, "steps": 1, "eval_every": 1,
        "warmup_steps": 0, "checkpoint_every": 2,
    }  # fmt: skip
    program = textwrap.dedent(LIMITED.format(text=str(text_file), settings=settings))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith("in a training step") for line in lines)
    run = groundling.load("limited")
    assert run.config.training.batch_size < 128
    assert run.config.training.batch_size * run.config.training.accumulate == 128
    assert [step for step, _ in losses(run)] == [1]


@pytest.mark.parametrize("place", ["pass", "optimizer"])
def test_where_a_generation_has_just_begun(place: str, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line stays in the history, once, whether or not training goes back to before it."""
    settings = {"generations": 2, "steps": 12, "eval_every": 100, "accumulate": 1}
    born = 4  # a third of the steps
    if place == "pass":
        monkeypatch.setattr(torch.Tensor, "backward", failing(torch.Tensor.backward, {born + 1}))
    else:
        monkeypatch.setattr(Optimizers, "step", failing(Optimizers.step, {born + 1}))
    run, events = train(text_file, **settings)
    assert [event.step for event in of(OutOfMemory, events)] == [born]
    assert [(x["step"], x["generation"]) for x in run.metrics() if x["event"] == "generation"] == [(born, 2)]
    assert [step for step, _ in losses(run)] == list(range(1, 13))
    assert run.report()
