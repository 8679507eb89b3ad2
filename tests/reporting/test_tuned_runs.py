"""What a run of post-training looks like: on the console, on its page, in its plot and to trackers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Page, Written

from groundling.reporting.console import Console
from groundling.reporting.plot import plot_curves
from groundling.reporting.run_page import run_page
from groundling.reporting.trackers import values_of
from groundling.training.events import Evaluation, Event, Finished, Replies, ReplyGroup, Started, Step

ANCESTORS = [
    {"run": "base", "folder": "/a/base", "task": "pretraining", "step": 2000, "weights": "00", "corpus": "a text"},
    {"run": "base-sft", "folder": "/a/base-sft", "task": "sft", "step": 300, "weights": "11", "corpus": "chats"},
]
EVIL = "</script><script>window.evil = 1</script>"
GROUP = ReplyGroup("47+38=\n", ["47+38=85;#85", "#84", "#85"], [1.0, 0.0, 1.0])


def shown(task: str, *events: Event) -> str:
    file = io.StringIO()
    with Console(file) as console:
        corpus = {"name": "sums", "characters": 0, "vocab_size": 40, "training_tokens": 0, "validation_tokens": 0}
        machine = {"device": "cpu", "dtype": "float32", "threads": 1, "reasons": []}
        console(Started("my-run", 0, 100, 0.0, corpus, [("all", 1000)], machine, 0.0, task))
        for event in events:
            console(event)
    return file.getvalue()


def step(**figures: float) -> Step:
    return Step(10, 0.0123, 1e-4, 1000, 500.0, 10.0, 90.0, 1.0, figures)


def test_the_console_shows_rewards_instead_of_the_loss() -> None:
    out = shown(
        "grpo",
        Evaluation(0, 0.4, None, None, False, 1.0, {"length": 20.25, "cut": 0.015, "kl": 0.0}, "accuracy"),
        Replies(0, [GROUP]),
        step(reward=0.5, signal=0.625, entropy=0.21, length=19.5, cut=0.0, sampling_gap=0.001),
        Finished("my-run", 100, 61.0, 60, 0.713, "It went well.", 10**9, metric="accuracy"),
    )
    assert "task    sums, vocabulary of 40" in out
    assert "step 0  accuracy 40.0%  length 20.25  cut 1.5%  kl 0  1 s" in out
    assert "step 10/100  reward 0.5  signal 62%  entropy 0.21  length 19.5  val accuracy 40%  lr 1.0e-04" in out
    assert "0.0123" not in out
    assert "47+38=   (3 replies, mean reward 0.667)" in out
    assert "      reward 1      #85\n      reward 0      #84\n" in out
    assert "Best accuracy 71.3% at step 60." in out
    assert out.endswith(
        "  groundling chat my-run\n  groundling eval my-run --task sums\n  groundling resume my-run --steps 200\n"
    )


def test_a_step_without_a_signal_shows_no_entropy() -> None:
    assert "reward 1  signal 0%  length 5  lr" in shown("grpo", step(reward=1.0, signal=0.0, entropy=0.0, length=5.0))


def test_the_console_shows_how_pairs_are_ranked() -> None:
    evaluation = Evaluation(0, 0.6931, None, 0.7, False, 1.0, {"accuracy": 0.5, "margin": -1e-6}, "preference loss")
    out = shown("dpo", evaluation, step(accuracy=0.8125, margin=0.456, chosen_reward=0.1))
    assert "step 0  preference loss 0.6931  training loss 0.7000  accuracy 50.0%  margin 0  1 s" in out
    assert "loss 0.012  accuracy 81%  margin 0.456  val 0.693  lr" in out


@pytest.fixture
def tuned() -> Written:
    """A GRPO run with a lineage, whose second reply is hostile."""
    run = Written.tuned("grpo", steps=20)
    run.record = run.record | {
        "lineage": ANCESTORS, "others": {"reward": ANCESTORS[1] | {"run": "judge", "step": 50, "task": "reward"}}
    }  # fmt: skip
    for i in range(1, 21):
        run.step(i, 0.001, figures={"reward": i / 20, "signal": 0.5, "entropy": 0.3, "length": 20.0, "cut": 0.25})
    run.scored(0, "accuracy", 0.4, kl=0.0, length=21.0).scored(20, "accuracy", 0.713, best=True, kl=0.1, length=22.0)
    run.replied(0, ("47+38=", {"#85": 1.0, EVIL: 0.0})).replied(20, ("5+6=", {"#11": 1.0}), ("1+1=", {"#3": 0.0}))
    return run


def test_the_page_of_a_run_with_rewards(tuned: Written) -> None:
    page = Page(run_page(tuned.facts()))
    assert (
        "Pretrained as base on a text (2,000 steps), then sft as base-sft on chats (300 steps), then grpo on a text. "
        "Reward: judge, step 50"
    ) in page.source
    assert "71.3% best accuracy" in page.words("figures")
    assert "went from 40.0% before training to 71.3%" in page.words("diagnosis")
    assert "answers cut" in page.words("diagnosis").lower()
    charts = page.data["charts"]
    assert list(charts) == ["score", "small_loss", "signal", "entropy", "length", "cut", "kl", "rate", "speed"]
    score = {curve["name"]: curve for curve in charts["score"]["readings"]}
    assert score["validation accuracy"]["y"] == ["40%", "71.3%"]
    assert {curve["name"] for curve in charts["length"]["readings"]} == {"training", "validation"}
    assert charts["cut"]["readings"][0]["y"][-1] == "25%"
    first, last = page.data["rollouts"]
    assert first["groups"][0] == {"prompt": "47+38=", "replies": [["1", "#85", 1.0], ["0", EVIL, 0.0]]}
    assert last["said"] == "step 20 · mean reward of these replies 0.5"
    assert page.words("groups") == "5+6= 1 #11 1+1= 0 #3"
    assert page.tags.count("script") == 2
    assert "--max-completion-length" in page.words("made")


def test_the_page_of_a_run_on_pairs() -> None:
    run = Written.tuned("dpo", steps=40)
    for i in range(1, 41):
        run.step(i, 0.6, figures={"accuracy": 0.8, "margin": 0.1, "chosen_logprob": -9.0, "rejected_logprob": -12.0})
    scored: dict[str, Any] = {"accuracy": 0.75, "margin": 0.2, "chosen_logprob": -10.0, "rejected_logprob": -11.0}
    run.scored(0, "preference loss", 0.69, **scored).scored(40, "preference loss", 0.5, best=True, **scored)
    page = Page(run_page(run.facts()))
    charts = page.data["charts"]
    assert list(charts) == ["loss", "accuracy", "margin", "logprob", "rate", "speed"]
    assert [curve["name"] for curve in charts["loss"]["readings"]] == ["training", "validation"]
    assert {curve["name"]: curve["y"][-1] for curve in charts["logprob"]["readings"]} == {
        "chosen": "-10", "rejected": "-11",
    }  # fmt: skip
    assert "ranks 75% as people did" in page.words("diagnosis")
    assert "pair" in page.words("corpus")
    assert "rollouts" not in page.ids


def test_the_plot_of_a_run_with_rewards_shows_them(tuned: Written, tmp_path: Path, monkeypatch: Any) -> None:
    from matplotlib.axes import Axes

    drawn: list[Any] = []
    plot = Axes.plot

    def noted(self: Any, x: Any, y: Any, **style: Any) -> Any:
        drawn.append((self, np.ravel(y).tolist()))
        return plot(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", noted)
    plot_curves({"my-run": tuned.lines}, tmp_path / "loss.png")
    assert drawn[0][1] == [i / 20 for i in range(1, 21)]
    assert drawn[2][1] == [0.4, 0.713]
    assert drawn[3][1] == [0.713]
    assert drawn[0][0].get_ylabel() == "accuracy"


def test_trackers_get_the_figures_and_the_replies() -> None:
    values = values_of(step(reward=0.5, signal=0.625))
    assert values["train/reward"] == 0.5 and values["train/signal"] == 0.625
    scored = values_of(Evaluation(0, 0.4, None, None, False, 1.0, {"kl": 0.25}, "accuracy"))
    assert scored == {"validation/accuracy": 0.4, "validation/kl": 0.25}
    assert values_of(Replies(0, [GROUP])) == {"replies": "47+38=\n\n1  47+38=85;#85\n0  #84\n1  #85"}
