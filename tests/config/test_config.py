"""Settings: what is built, what is refused and how the refusal reads."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.config import PRESETS, Config, did_you_mean, flag, setting_fields


@pytest.fixture
def saved() -> dict[str, Any]:
    return Config.build("shakespeare").to_dict()


def test_every_setting_has_a_sentence_of_help() -> None:
    assert len(setting_fields()) > 25
    for name, field in setting_fields().items():
        assert field.metadata["help"].strip().endswith((".", "...")), name


def test_a_setting_has_its_name_once() -> None:
    groups = [f.name for f in dataclasses.fields(Config) if f.name not in ("corpus", "preset", "task", "method", "mix")]
    config = Config.build("x")
    names = [f.name for group in groups for f in dataclasses.fields(getattr(config, group))]
    assert sorted(names) == sorted(setting_fields())


def test_overrides_lie_over_the_preset_in_every_group() -> None:
    config = Config.build(
        "my.txt", "workshop", val_fraction=0.2, n_layer=2, tie_head=False, steps=7000, sample_every=0, device="cpu"
    )
    workshop = PRESETS["workshop"]
    assert (config.corpus, config.preset) == ("my.txt", "workshop")
    assert config.text.val_fraction == 0.2
    assert config.model == dataclasses.replace(workshop.model, n_layer=2, tie_head=False)
    assert config.training == dataclasses.replace(workshop.training, steps=7000, sample_every=0)
    assert config.machine.device == "cpu"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_gives_its_own_values(name: str) -> None:
    config = Config.build("x", name)
    assert (config.model, config.training) == (PRESETS[name].model, PRESETS[name].training)


def test_the_workshop_preset_is_the_workshops_model() -> None:
    model, training = PRESETS["workshop"].model, PRESETS["workshop"].training
    shape = (model.n_layer, model.n_head, model.n_embd, model.block_size, model.dropout)
    assert shape == (6, 6, 384, 256, 0.2)
    assert (training.steps, training.batch_size * training.accumulate, training.learning_rate) == (5000, 64, 1e-3)
    assert Config.build("x").preset == "laptop"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gpt2", (12, 12, 768)),
        ("gpt2-medium", (24, 16, 1024)),
        ("gpt2-large", (36, 20, 1280)),
        ("gpt2-xl", (48, 25, 1600)),
    ],
)
def test_gpt2_presets_have_the_published_shapes(name: str, shape: tuple[int, int, int]) -> None:
    model = PRESETS[name].model
    assert (model.n_layer, model.n_head, model.n_embd) == shape
    assert model.block_size == 1024 and model.n_embd // model.n_head == 64


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"There is no preset 'huge'\. Choose one of: nano, laptop, workshop, gpt2"):
        Config.build("x", "huge")


@pytest.mark.parametrize(
    ("wrong", "right"), [("n_layers", "n_layer"), ("learning_rat", "learning_rate"), ("batchsize", "batch_size")]
)
def test_an_unknown_setting_suggests_the_near_one(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=rf"There is no setting '{wrong}' \(did you mean '{right}'\?\)\.$"):
        Config.build("x", **{wrong: 3})


def test_no_suggestion_where_nothing_is_near() -> None:
    assert did_you_mean("zzzzzz", list(setting_fields())) == ""
    with pytest.raises(ValueError, match=r"There is no setting 'zzzzzz'\.$"):
        Config.build("x", zzzzzz=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layer", 2.0),
        ("n_layer", "2"),
        ("n_layer", True),
        ("n_layer", None),
        ("n_layer", [2]),
        ("steps", math.nan),
        ("learning_rate", "1e-3"),
        ("learning_rate", True),
        ("tie_head", 1),
        ("tie_head", "yes"),
        ("schedule", "exponential"),
        ("dtype", "float8"),
        ("tokenizer", "words"),
        ("device", 0),
        ("device", object()),  # not its repr
        ("glob", Path("a.txt")),
        ("sample_prompt", b"To be"),
        ("seed", np.array([1, 2])),
    ],
)
def test_a_wrong_type_is_refused_by_flag(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{flag(name)} .*: input should be"):
        Config.build("x", **{name: value})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_layer": 0}, "--n-layer must be at least 1, not 0."),
        ({"n_head": 0}, "--n-head must be at least 1"),
        ({"n_embd": -384}, "--n-embd must be at least 1"),
        ({"block_size": 0}, "--block-size must be at least 1"),
        ({"n_embd": 130, "n_head": 4}, "--n-embd 130 is not divisible by --n-head 4"),
        ({"dropout": 1.0}, "--dropout must be below 1, not 1.0."),
        ({"dropout": -0.1}, "--dropout must be at least 0"),
        ({"dropout": math.nan}, "--dropout must be at least 0"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"steps": -5}, "--steps must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"accumulate": 0}, "--accumulate must be at least 1"),
        ({"eval_every": 0}, "--eval-every must be at least 1"),
        ({"checkpoint_every": 0}, "--checkpoint-every must be at least 1"),
        ({"log_every": 0}, "--log-every must be at least 1"),
        ({"sample_every": -1}, "--sample-every must be at least 0"),
        ({"keep_checkpoints": -1}, "--keep-checkpoints must be at least 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"learning_rate": math.nan}, "--learning-rate must be above 0"),
        ({"learning_rate": math.inf}, "--learning-rate must be at most 1e+30, not inf."),
        ({"final_lr_fraction": 1.5}, "--final-lr-fraction must be at most 1"),
        ({"weight_decay": math.nan}, "--weight-decay must be at least 0"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0"),
        ({"grad_clip": math.inf}, "--grad-clip must be at most 1,000,000,000,000, not inf."),
        ({"beta1": 1.0}, "--beta1 must be below 1"),
        ({"beta2": math.nan}, "--beta2 must be at least 0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 2**63}, "--seed must be at most 9,223,372,036,854,775,807"),
        ({"threads": -1}, "--threads must be at least 0"),
        ({"val_fraction": 0.0}, "--val-fraction must be above 0"),
        ({"val_fraction": 0.6}, "--val-fraction must be at most 0.5"),
        ({"val_fraction": math.nan}, "--val-fraction must be above 0"),
        ({"steps": 50, "warmup_steps": 50}, "--warmup-steps 50 must be fewer than --steps 50"),
    ],
)
def test_what_cannot_be_is_refused_by_flag(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        Config.build("x", **settings)
    assert str(refused.value).startswith(sentence)


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"--n-layer.*--dropout.*--device"):
        Config.build("x", n_layer="6", dropout="no", device=3)


@pytest.mark.parametrize("steps", [50, np.int64(50)])
def test_a_short_run_shortens_the_presets_warm_up(steps: int) -> None:
    assert Config.build("x", "nano", steps=steps).training.warmup_steps == 10
    assert Config.build("x", "nano", steps=steps, warmup_steps=40).training.warmup_steps == 40


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_of_very_few_steps_has_no_warm_up(steps: int) -> None:
    assert Config.build("x", "nano", steps=steps).training.warmup_steps == 0


def test_a_long_run_keeps_the_presets_warm_up() -> None:
    assert Config.build("x", "nano", steps=10**6).training.warmup_steps == PRESETS["nano"].training.warmup_steps


def test_numpy_numbers_are_numbers() -> None:
    config = Config.build(
        "x", n_layer=np.int64(2), seed=np.uint64(7), dropout=np.float64(0.25), tie_head=np.False_, steps=np.int32(500)
    )
    plain = Config.build("x", n_layer=2, seed=7, dropout=0.25, tie_head=False, steps=500)
    assert config == plain
    assert type(config.model.n_layer) is int and type(config.model.tie_head) is bool


def test_an_integer_is_good_for_a_number() -> None:
    assert Config.build("x", learning_rate=1).training.learning_rate == 1.0


@st.composite
def configs(draw: st.DrawFn) -> Config:
    heads, steps = draw(st.integers(1, 64)), draw(st.integers(1, 10**9))
    return Config.build(
        draw(st.text(st.characters(exclude_categories=["Cs"]))),
        draw(st.sampled_from(sorted(PRESETS))),
        glob=draw(st.none() | st.just("*.txt")),
        val_fraction=draw(st.floats(0, 0.5, exclude_min=True)),
        n_head=heads,
        n_kv_head=draw(st.sampled_from([0, 1, heads])),
        n_embd=2 * heads * draw(st.integers(1, 128)),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        position=draw(st.sampled_from(["learned", "rope"])),
        mlp=draw(st.sampled_from(["gelu", "swiglu"])),
        optimizer=draw(st.sampled_from(["adamw", "muon"])),
        dropout=draw(st.floats(0, 1, exclude_max=True)),
        tie_head=draw(st.booleans()),
        steps=steps,
        warmup_steps=draw(st.integers(0, steps - 1)),
        learning_rate=draw(st.floats(0, 1e12, exclude_min=True)),
        schedule=draw(st.sampled_from(["cosine", "linear", "constant"])),
        sample_every=draw(st.none() | st.integers(0, 10**12)),
        sample_prompt=draw(st.text(st.characters(exclude_categories=["Cs"]))),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@given(configs())
def test_settings_come_back_from_json_as_they_were(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_layer": 10**9}, "--n-layer must be at most 1,000, not 1000000000."),
        ({"n_head": 10**9}, "--n-head must be at most 1,000"),
        ({"n_embd": 10**400}, "--n-embd must be at most 1,048,576, not 10000000000000000000."),
        ({"block_size": 2**31}, "--block-size must be at most 16,777,216"),
        ({"rope_theta": 1e309}, "--rope-theta must be at most 1,000,000,000,000, not inf."),
        ({"batch_size": 10**15}, "--batch-size must be at most"),
        ({"vocab_size": 10**9}, "--vocab-size must be at most 4,194,304"),
        ({"sample_prompt": "a" * 100_001}, "--sample-prompt must have at most 100,000 characters, not 100,001."),
        ({"device": "cpu" * 2000}, "--device must have at most 4,096 characters"),
    ],
)
def test_what_is_absurd_is_refused_by_flag(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        Config.build("x", **settings)
    assert str(refused.value).startswith(sentence)


def test_a_long_mistake_is_told_in_short() -> None:
    with pytest.raises(ValueError, match="--n-layer") as refused:
        Config.build("x", n_layer="6" * 10**6)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(("group", "name"), [("model", "n_layer"), ("training", "seed"), ("text", "glob")])
def test_a_missing_setting_is_refused_not_guessed(saved: dict[str, Any], group: str, name: str) -> None:
    del saved[group][name]
    with pytest.raises(ValueError, match=rf"^The setting '{name}' is missing\.$"):
        Config.from_dict(saved)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="--n-head 6 is not divisible by --n-kv-head 4"):
        Config.build("x", "workshop", n_kv_head=4)
    with pytest.raises(ValueError, match="--position rope needs an even head size"):
        Config.build("x", n_embd=9, n_head=3)


@pytest.mark.parametrize("name", ["corpus", "model"])
def test_a_missing_group_is_refused(saved: dict[str, Any], name: str) -> None:
    del saved[name]
    with pytest.raises(ValueError, match=rf"^The setting '{name}' is missing\.$"):
        Config.from_dict(saved)


def test_an_extra_setting_is_refused(saved: dict[str, Any]) -> None:
    saved["model"]["n_experts"] = 8
    with pytest.raises(ValueError, match="There is no setting 'n_experts'"):
        Config.from_dict(saved)
    del saved["model"]["n_experts"]
    with pytest.raises(ValueError, match="There is no setting 'extra'"):
        Config.from_dict(saved | {"extra": 1})


@pytest.mark.parametrize("value", [[], None, "text", {"model": 3}])
def test_what_is_no_settings_at_all_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"input should be an object|is missing"):
        Config.from_dict(value)


def test_a_name_that_is_not_unicode_has_its_own_sentence() -> None:
    with pytest.raises(ValueError, match="the name of the corpus, is not valid Unicode"):
        Config.build("caf\udce9.txt")


def test_settings_cannot_be_changed() -> None:
    config = Config.build("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.n_layer = 3  # type: ignore[misc]


@pytest.mark.parametrize("module", ["groundling", "groundling.config", "groundling.cli"])
def test_the_import_does_not_wait_for_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
