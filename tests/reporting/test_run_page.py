"""The page of a run: true figures, whatever the run was, and nothing that a text could run in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Page, Written

import groundling
from groundling.__main__ import main
from groundling.analysis.memorization import TrainingText
from groundling.reporting.run_page import run_page
from groundling.training.events import Event, Finished

pytestmark = pytest.mark.usefixtures("pictures")


def page_of(run: Written, *more: Any) -> Page:
    return Page(run_page(run.facts(*more)))


def test_a_run_leaves_a_page_with_its_true_figures(
    text_file: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    run = groundling.train(text_file, name="first", on_event=events.append, **tiny)
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.report == str(Path("runs/first/report.html"))
    source = (run.folder / "report.html").read_text("utf-8")
    page, lines = Page(source), run.metrics()

    points = [line for line in lines if line["event"] == "evaluation" and line["step"]]
    best = min(points, key=lambda line: line["validation_loss"])
    figures = page.words("figures")
    for figure in (
        f"{best['validation_loss']:.4f} best validation loss", f"{best['bits_per_byte']:.3f} bits per byte",
        f"40 steps, best at {best['step']}", f"{sum(p.numel() for p in run.model.parameters()):,} parameters",
    ):  # fmt: skip
        assert figure in figures
    assert f"best {best['validation_loss']:.4g} at step {best['step']}" in page.words("loss")
    milestones = next(line for line in lines if line["event"] == "checked")["milestones"]
    for n, loss in enumerate(milestones[: int(np.argmin(milestones)) + 1]):
        name = f"{n}-gram" if n else "chance"
        assert f"{name} {loss:.2f}" in page.words("loss")
        assert f"{name} {loss:.3f}" in page.words("ladder")
    assert f"this model {best['validation_loss']:.3f}" in page.words("ladder")
    explained = run.explain()
    assert explained["standing"] in page.words("diagnosis")
    for finding in explained["findings"]:
        assert finding["advice"] in page.words("diagnosis")
    assert "30,000 characters" in page.words("corpus")
    readings = {curve["name"]: curve for curve in page.data["charts"]["loss"]["readings"]}
    assert readings["validation"]["x"] == [0, 10, 20, 30, 40]
    assert readings["validation"]["y"][1:] == [f"{line['validation_loss']:.4g}" for line in points]
    texts = ["".join(text for text, _ in slide["pieces"]) for slide in page.data["slides"]]
    assert texts == [sample["text"] for sample in run.samples()]

    with pytest.raises(SystemExit) as exit:
        main(["report", "first", "--to", "elsewhere.html", "--json"])
    assert not exit.value.code
    assert json.loads(capsys.readouterr().out) == {"file": "elsewhere.html"}
    assert Path("elsewhere.html").read_text("utf-8") == source
    with pytest.raises(ValueError, match=r"--to runs is a folder"):
        run.report("runs")


def test_only_the_page_s_own_script_can_run(written: Written) -> None:
    page = page_of(written.sample(200, "text")).source
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert "http" not in page.replace("http-equiv", "")


EVIL = "</script><script>window.evil = 1</script><img src=x onerror='evil=1'>&amp;\x1b\0"


def test_hostile_text_stays_text(written: Written) -> None:
    written.record["corpus"] |= {"name": EVIL}
    written.sample(100, EVIL, prompt=EVIL).sample(200, EVIL, prompt=EVIL, copied_share=1.0, longest_copy=90,
                                                  copied_spans=[[0, 90]])  # fmt: skip
    page = page_of(written)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert "".join(page.text["sample"]) == 2 * EVIL.replace("\x1b", "\u241b").replace("\0", "\u2400")
    assert page.data["slides"][0]["pieces"] == [[EVIL.replace("\x1b", "\u241b").replace("\0", "\u2400"), 0]]


def test_a_run_without_samples_has_no_slider(written: Written) -> None:
    page = page_of(written)
    assert "writing" not in page.ids
    assert "input" not in page.tags
    assert "loss" in page.ids


def test_one_evaluation_is_enough() -> None:
    page = page_of(Written(steps=5).step(5, 3.0).evaluation(5, 2.75))
    assert "2.7500" in page.words("figures")
    assert "Too few evaluations" in page.words("diagnosis")
    assert "best 2.75 at step 5" in page.words("loss")


def test_a_run_of_steps_without_an_evaluation_has_a_page() -> None:
    page = page_of(Written(steps=5).step(1, 4.0).step(2, 3.0))
    assert "best" not in page.words("loss")
    assert "not finished: last logged at step 2 of 5" in page.source


def test_a_run_without_a_step_has_nothing_to_report() -> None:
    with pytest.raises(ValueError, match=r"nothing to report on my-run yet"):
        Written(steps=5).facts()


def test_with_and_without_milestones(written: Written) -> None:
    page = page_of(written)
    assert "ladder" not in page.ids
    assert "gram" not in page.words("loss")
    assert "Best loss" not in page.words("diagnosis")
    page = page_of(written.checked())
    for words in ("chance 4.10", "1-gram 3.30", "2-gram 2.40", "3-gram 2.00"):
        assert words in page.words("loss")
    assert "4-gram" not in page.words("loss")  # beyond the best of them
    said = "2.250 nats per token: better than the 2-gram model (token pairs), not yet as good as the 3-gram model."
    assert said in page.words("diagnosis")
    assert page.words("ladder").split("2-gram 2.400 ")[1] == "this model 2.250 3-gram 2.000"
    assert "12.5 %" in page.words("corpus")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"event": "paused", "step": 200, "run": "my-run"}, "paused at step 200 of 400"),
        ({"event": "diverged", "step": 201}, "diverged at step 201 of 400"),
    ],
)
def test_a_run_that_did_not_end_has_a_page(written: Written, line: dict[str, Any], said: str) -> None:
    run = Written(steps=400)
    run.lines += [*written.lines[1:], line]
    page = page_of(run)
    assert said in page.source
    assert ("Diverged: at step 201" in page.words("diagnosis")) == (line["event"] == "diverged")


def test_losses_that_are_not_finite_are_not_drawn(written: Written) -> None:
    page = page_of(written.step(201, float("nan"), grad_norm=None).step(202, float("inf")))
    drawn = json.dumps(page.data) + "".join(re.findall(r' d="([^"]*)"', page.source))
    assert "nan" not in drawn.lower()
    assert "inf" not in drawn.lower()
    assert page.data["charts"]["loss"]["readings"][0]["x"][-1] == 200


def test_all_of_a_rising_curve_is_in_view_and_a_spike_does_not_flatten_it(written: Written) -> None:
    def tops(source: str, look: str) -> list[float]:
        (path,) = re.findall(rf'<path class="{look}" d="([^"]*)"', source)
        return [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]

    written.evaluation(300, 6.0)
    assert min(tops(page_of(written).source, "validation")) > 0
    written.step(301, 100.0)
    spiked = page_of(written).source
    assert min(tops(spiked, "raw")) < 0  # out of the picture
    assert min(tops(spiked, "validation")) > 400


def test_plan_and_outcome_stand_side_by_side(written: Written) -> None:
    plan = {
        "event": "planned", "minutes": 2.0, "steps": 300, "epochs": 1.25, "memory": 700_000_000, "loss": 2.0,
        "low": 1.9, "high": 2.3,
    }  # fmt: skip
    written.lines.insert(0, plan)
    assert "The loss is" not in page_of(written).words("plan")
    written.result = {"elapsed": 118.0, "peak_memory": 900_000_000}
    page = page_of(written)
    for words in (
        "time 2 min 00 s 1 min 58 s", "steps 300 200", "validation loss 2.00 (1.90 to 2.30) 2.25",
        "memory 0.7 GB 0.9 GB", "The loss is within the forecast range.",
    ):  # fmt: skip
        assert words in page.words("plan")
    plan["low"] = 2.26
    assert "below the forecast range" in page_of(written).words("plan")
    plan |= {"loss": None, "low": None, "high": None}  # of a preset nothing was forecast
    words = page_of(written).words("plan")
    assert "validation loss – 2.25" in words and "The loss is" not in words


def test_settings_machine_and_versions_are_there(written: Written) -> None:
    written.record["requested"] = json.loads(json.dumps(written.record["settings"]))
    written.record["requested"]["model"]["n_layer"] = 2
    source = page_of(written).source
    assert '<code>--n-layer</code><span class="planned" title="set by the plan">4</span>' in source
    assert "<code>--steps</code><span>200</span>" in source
    for words in ("no GPU is here", "<span>python</span><span>3.11.7</span>", "groundling inspect &#39;a text&#39;"):
        assert words in source


def test_the_check_up_that_it_names_is_of_the_same_tokens() -> None:
    run = Written(steps=200, tokenizer="bpe", vocab_size=300).step(1, 4.0)
    assert "groundling inspect &#39;a text&#39; --tokenizer bpe --vocab-size 300" in page_of(run).source


COPIED = "It was the best of times, it was the worst of times"


def test_copied_spans_are_marked_and_the_share_is_a_curve(written: Written) -> None:
    text = "New words. " + COPIED + "!"
    span = [11, 11 + len(COPIED)]
    written.sample(100, "New words.", copied_share=0.0, longest_copy=4, copied_spans=[])
    written.sample(200, text, copied_share=51 / 63, longest_copy=51, copied_spans=[span])
    page = page_of(written)
    assert page.marks[0] == COPIED
    assert "81 % copied, longest span 51 characters" in page.words("said")
    assert [pieces["pieces"] for pieces in page.data["slides"]] == [
        [["New words.", 0]], [["New words. ", 0], [COPIED, 2], ["!", 0]],
    ]  # fmt: skip
    assert page.data["charts"]["copied"]["readings"][0] == {"name": "copied", "x": [100, 200], "y": ["0", "81"]}
    assert page.data["charts"]["longest"]["readings"][0]["y"] == ["4", "51"]
    assert "81 %" in page.words("figures")


def test_copies_that_training_did_not_look_for_are_looked_for(written: Written) -> None:
    written.sample(200, "New words. " + COPIED + "!")
    page = page_of(written)
    assert page.marks == []
    assert "groundling report my-run searches them" in page.words("writing")
    assert "copied" not in page.data["charts"]
    page = page_of(written, TrainingText(["Once: " + COPIED + "."]))
    assert page.marks[0].strip() == COPIED
    assert "not searched for copied text" not in page.words("writing")


def test_a_run_of_hundred_thousand_steps_is_a_small_page() -> None:
    run = Written(steps=100_000)
    noise = np.random.default_rng(0).normal(scale=0.05, size=100_000)
    for step in range(1, 100_001):
        run.step(step, 1.5 + 2.5 * float(np.exp(-step / 2000)) + noise[step - 1])
        if step % 200 == 0:
            run.evaluation(step, 1.5 + 2.5 * float(np.exp(-step / 2000)))
            run.sample(step, "Ω" * 20_000 if step == 50_000 else f"step {step} " + "ж" * 3000)
    page = page_of(run)
    assert len(page.source.encode()) < 2_000_000
    assert [page.data["slides"][i]["step"] for i in (0, -1)] == [200, 100_000]
    assert f"{len(page.data['slides'])} of 500 samples are shown" in page.words("writing")


def test_a_text_that_is_gone_does_not_stop_the_page(text_file: Path, tiny: dict[str, Any]) -> None:
    run = groundling.train(text_file, name="first", on_event=lambda _: None, **tiny | {"steps": 6, "eval_every": 6})
    path = run.folder / "samples.jsonl"
    samples = [{key: line[key] for key in ("event", "step", "prompt", "text")} for line in run.samples()]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    assert "not searched for copied text" not in run.report().read_text("utf-8")  # it is at hand, so they were now
    assert "not searched for copied text" in run.report(originality=False).read_text("utf-8")
    text_file.write_text("another text " * 3000, "utf-8")
    assert "not searched for copied text" in run.report().read_text("utf-8")
