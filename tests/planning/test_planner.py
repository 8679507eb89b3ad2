"""Plans: what is chosen for the time, what stays as the user said, and that the arithmetic is PyTorch's."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from groundling.config import PRESETS, Config, CorpusSettings, MachineSettings, ModelSettings, TrainingSettings
from groundling.data.corpus import Corpus, prepare
from groundling.data.sources import find_source
from groundling.machine import Speed, choose
from groundling.model.describe import flops_per_token, matrix_parameters
from groundling.model.gpt import GPT
from groundling.planning import planner
from groundling.planning.planner import compare_with_plan, forecast, larger_passes
from groundling.planning.planner import plan as make_plan
from groundling.training.events import Planned
from groundling.training.state import TrainState


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of one machine, so that plans do not depend on where the tests run."""
    monkeypatch.setattr(planner, "measure_speed", lambda *_: Speed(gflops=1000, gbytes=11))
    monkeypatch.setattr(planner, "benchmark_pass", lambda _: 0.15)


@pytest.fixture
def text(text_file: Path) -> Corpus:
    return prepare(find_source(text_file), CorpusSettings())


def plan(text: Corpus, **settings: Any) -> tuple[Config, Planned]:
    preset = settings.pop("preset", None)
    config = Config.build("text", preset, **settings)
    given = settings.keys() | ({"preset"} if preset else set())
    planned, event = make_plan(config, given, text, choose(MachineSettings(device="cpu", dtype="float32")), 2.0)
    assert event is not None
    return planned, event


@pytest.mark.parametrize("name", ["nano", "laptop", "workshop"])
def test_operations_are_counted_as_pytorch_counts_them(name: str) -> None:
    """PyTorch counts all of attention; causal attention needs half of that."""
    from torch.utils.flop_counter import FlopCounterMode

    m = PRESETS[name].model
    with torch.device("meta"):
        model = GPT(m, 65)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, m.block_size, dtype=torch.int64)).sum().backward()
    square = 2 * m.n_layer * m.block_size**2 * m.n_embd  # a product of attention: 2 of them forward, 4 back
    assert flops_per_token(m, 65) * m.block_size + 3 * square == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameters_are_those_of_the_model_but_for_vectors(name: str) -> None:
    with torch.device("meta"):
        model = GPT(PRESETS[name].model, 65)
    assert matrix_parameters(PRESETS[name].model, 65) == sum(p.numel() for p in model.parameters() if p.dim() >= 2)


@pytest.mark.usefixtures("laptop")
def test_more_time_never_gives_a_smaller_model_or_a_worse_forecast(text: Corpus) -> None:
    configs, plans = zip(*(plan(text, minutes=m) for m in (0.5, 1, 3, 5, 15, 60, 1440)), strict=True)
    decays = [config.training.weight_decay for config in configs]
    assert decays == sorted(decays)
    for less, more in pairwise(plans):
        assert more.parameters >= less.parameters
        assert more.loss <= less.loss
        assert more.low < more.loss < more.high


@pytest.mark.usefixtures("laptop")
@pytest.mark.parametrize(("minutes", "least"), [(0.5, 0.5), (5, 0.9), (60, 0.9)])
def test_planned_steps_fill_the_time(text: Corpus, minutes: float, least: float) -> None:
    config, event = plan(text, minutes=minutes)
    assert least * 60 * minutes < event.steps * event.seconds_per_step < 60 * minutes
    assert config.training.steps == event.steps
    assert 2 <= math.ceil(event.steps / config.training.eval_every) <= 21
    assert config.preset == "planned"


@pytest.mark.usefixtures("laptop")
def test_a_text_that_is_read_often_is_learned_in_two_generations(text: Corpus) -> None:
    short, long = (plan(text, minutes=minutes)[1] for minutes in (0.2, 60))
    assert short.epochs < 20 < long.epochs
    assert (short.generations, long.generations) == (1, 2)
    alone = plan(text, minutes=60, generations=1)[1]
    # A third of the time without a teacher, and two thirds in steps that take 1.3 times as long.
    assert long.steps / alone.steps == pytest.approx(1 / 3 + 2 / 3 / 1.3, rel=0.01)
    assert long.steps * long.seconds_per_step == pytest.approx(alone.steps * alone.seconds_per_step, rel=0.01)
    assert plan(text, minutes=60, generations=3)[0].training.generations == 3
    for said in ({"patience": 2}, {"preset": "nano"}):
        assert plan(text, minutes=60, **said)[0].training.generations == 1


@pytest.mark.usefixtures("laptop")
def test_evaluations_read_what_there_is_time_for(text: Corpus) -> None:
    read = [plan(text, minutes=minutes)[0].training.eval_tokens for minutes in (0.2, 1, 3, 60)]
    assert 8192 <= read[0] < read[1] < read[2] < read[3] == TrainingSettings().eval_tokens
    assert plan(text, minutes=0.2, eval_tokens=100_000)[0].training.eval_tokens == 100_000


@pytest.mark.usefixtures("laptop")
def test_what_the_user_said_stays(text: Corpus) -> None:
    said: dict[str, Any] = {
        "n_embd": 96, "n_head": 3, "dropout": 0.05, "batch_size": 4, "eval_every": 7, "matrix_learning_rate": 0.01,
    }  # fmt: skip
    values = plan(text, minutes=5, **said)[0].to_dict()
    assert {name: (values["model"] | values["training"])[name] for name in said} == said


@pytest.mark.usefixtures("laptop")
@pytest.mark.parametrize("preset", ["nano", "workshop"])
def test_a_named_preset_keeps_its_model_and_learns_for_the_time(text: Corpus, preset: str) -> None:
    config, event = plan(text, minutes=5, preset=preset)
    assert (event.loss, event.low, event.high) == (None, None, None)  # forecasts are of planned models
    assert config.model == PRESETS[preset].model
    assert config.training.learning_rate == PRESETS[preset].training.learning_rate
    assert config.preset == preset
    assert config.training.steps == event.steps != PRESETS[preset].training.steps


@pytest.mark.usefixtures("laptop")
def test_without_minutes_nothing_is_planned(text: Corpus) -> None:
    config = Config.build("text", steps=7)
    machine = choose(MachineSettings(device="cpu", dtype="float32"))
    assert make_plan(config, {"steps"}, text, machine, 0.0) == (config, None)


def test_minutes_and_steps_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="Use --minutes or --steps, not both"):
        Config.build("text", minutes=5, steps=100)


@pytest.mark.parametrize("minutes", [-1, 0.1, 1e9, float("nan")])
def test_impossible_minutes_are_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="--minutes"):
        Config.build("text", minutes=minutes)


def test_noise_is_not_expected_to_be_learned(tmp_path: Path) -> None:
    letters = torch.randint(97, 113, (20_000,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "noise.txt").write_bytes(bytes(letters))
    noise = prepare(find_source(tmp_path / "noise.txt"), CorpusSettings())
    for minutes in (0.5, 60):
        _, event = plan(noise, minutes=minutes)
        assert event.low < math.log(16) and event.loss > 0.75 * math.log(16)


def test_what_is_read_of_a_text_counts_and_not_how_long_it_is(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    (tmp_path / "docs.txt").write_text("\n".join(topics.values()), encoding="utf-8")
    docs = prepare(find_source(tmp_path / "docs.txt"), CorpusSettings())
    losses = [forecast(Config.build("text", "nano", steps=steps), docs) for steps in (10, 100, 1000)]
    assert losses[0] > losses[1] + 0.2
    assert losses[1] > losses[2] + 0.1


def test_a_gated_untied_model_with_shared_heads_is_counted() -> None:
    m = ModelSettings(n_embd=64, n_head=4, n_kv_head=2, n_layer=2, norm="rmsnorm", position="rope", mlp="swiglu",
                      tie_head=False, block_size=32)  # fmt: skip
    with torch.device("meta"):
        model = GPT(m, 50)
    assert matrix_parameters(m, 50) == sum(p.numel() for p in model.parameters() if p.dim() >= 2)


def test_a_forecast_is_judged() -> None:
    event = {"event": "planned", "minutes": 5.0, "steps": 100, "loss": 1.5, "low": 1.4, "high": 1.6}
    good = compare_with_plan([event], TrainState(step=110, elapsed=297.0, best_score=1.55))
    assert good is not None
    assert "4.95 min, 110 steps, loss 1.55 (within" in good
    bad = compare_with_plan([event], TrainState(step=110, elapsed=297.0, best_score=1.75))
    assert bad is not None
    assert "outside" in bad
    assert compare_with_plan([], TrainState(best_score=1.0)) is None
    silent = compare_with_plan(
        [event | {"loss": None, "low": None, "high": None}], TrainState(step=9, elapsed=60.0, best_score=2.0)
    )
    assert silent == "Planned: 5 min, 100 steps. Actual: 1.00 min, 9 steps, loss 2.00."


def test_a_gpu_gets_as_few_passes_as_its_memory_allows() -> None:
    config = Config.build("text", "gpt2")
    windows = config.training.batch_size * config.training.accumulate
    batches = []
    for gigabytes in (4, 40, 100, 10_000):
        t = larger_passes(config, 50_257, gigabytes * 10**9).training
        assert t.batch_size * t.accumulate == windows
        batches.append(t.batch_size)
    assert batches == sorted(batches)
    assert batches[0] == config.training.batch_size
    assert batches[-1] == windows
