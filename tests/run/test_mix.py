"""A run that mixes several texts: what it reads, records, says of each text, and refuses."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.analysis.leakage import shared
from groundling.data.mixture import Mixture
from groundling.interchange.export import export
from groundling.reporting.console import Console
from groundling.run.run import Run
from groundling.tasks import new_task
from groundling.training.events import Checked, Evaluation, Event, Notice, Started, Step

CHANGING = ((0.9, 0.1), (0.1, 0.9))


def silent(event: Event) -> None:
    pass


@pytest.fixture
def texts(prose: str, tmp_path: Path) -> list[Path]:
    """A file and a folder. The end of the file, its validation part, is also in the folder's training part."""
    paths = [tmp_path / "a.txt", tmp_path / "b"]
    paths[0].write_text(prose[:10_000], newline="")
    paths[1].mkdir()
    (paths[1] / "one.txt").write_text(prose[9_000:10_000] + prose[20_000:22_000], newline="")
    (paths[1] / "two.txt").write_text(prose[22_000:25_000], newline="")
    return paths


def mixed(texts: list[Path], weights: Any = CHANGING) -> dict[Path, Any]:
    return dict(zip(texts, weights, strict=True))


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics() if line["event"] == "step"]


def evaluations(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["event"] == "evaluation"]


@pytest.fixture
def stopped(texts: list[Path], settings: dict[str, Any]) -> Run:
    def on_event(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        groundling.train(mix=mixed(texts), name="first", on_event=on_event, **settings)
    return groundling.load("first")


def test_one_text_with_a_weight_is_the_plain_text_to_the_bit(texts: list[Path], settings: dict[str, Any]) -> None:
    plain = groundling.train(texts[0], name="plain", on_event=silent, **settings)
    run = groundling.train(mix={texts[0]: 0.5}, name="mix", on_event=silent, **settings)
    assert losses(run) == losses(plain) and len(losses(run)) == 4
    for one, other in zip(evaluations(run), evaluations(plain), strict=True):
        assert one.pop("elapsed") and other.pop("elapsed") and one == other
    checked = [[line for line in each.metrics() if line["event"] == "checked"] for each in (run, plain)]
    assert checked[0] == checked[1]


def test_a_stopped_mix_resumes_to_the_bit_and_says_what_it_reads(
    stopped: Run, texts: list[Path], settings: dict[str, Any]
) -> None:
    events: list[Event] = []
    whole = groundling.train(mix=mixed(texts), name="whole", on_event=events.append, **settings)
    run = groundling.train(mix=mixed(texts), name="first", on_event=silent, **settings)  # the same command
    assert run.finished and losses(run) == losses(whole)
    assert [line["figures"] for line in evaluations(run)] == [line["figures"] for line in evaluations(whole)]
    started = next(event for event in events if isinstance(event, Started))
    first, second = started.corpus["parts"]
    assert (first["name"], first["start"], first["end"]) == ("a", 0.9, 0.1)
    assert (first["training_tokens"], second["training_tokens"]) == (9_000, 5_401)  # each document has an end
    # 32 windows from 90% to 10%: half of each text. An epoch is one window less than fits.
    assert first["epochs"] == 16 / (9_000 // 16 - 1) and second["epochs"] == 16 / (5_401 // 16 - 1)
    for event in (event for event in events if isinstance(event, Evaluation)):
        of_a, of_b = event.figures["loss on a"], event.figures["loss on b"]
        assert event.validation_loss == pytest.approx(0.1 * of_a + 0.9 * of_b, rel=1e-12) and of_a != of_b
    scored, last = whole.evaluate(), min(evaluations(whole), key=lambda line: line["validation_loss"])
    assert (scored["loss"], scored["bits_per_byte"]) == (last["validation_loss"], last["bits_per_byte"])
    assert [(each["name"], each["share"], each["loss"]) for each in scored["texts"]] == [
        ("a", 0.1, last["figures"]["loss on a"]), ("b", 0.9, last["figures"]["loss on b"]),
    ]  # fmt: skip
    said = io.StringIO()
    with Console(said) as console:
        for event in events:
            console(event)
    assert "        a: 90% to 10% of the windows, 9,000 training tokens, 0.0 epochs\n" in said.getvalue()
    assert "weighted by their shares at the end" in said.getvalue()
    assert f"  loss on a {last['figures']['loss on a']:.4f}  loss on b " in said.getvalue()
    page = whole.report().read_text(encoding="utf-8")
    assert "90% to 10% of the windows, 9,000 training tokens, 0.0 epochs" in page and "Loss by text" in page
    assert whole.config.train_arguments[:3] == ["--mix", f"{texts[0]}=0.9:0.1", f"{texts[1]}=0.1:0.9"]


def test_the_record_names_texts_weights_and_fingerprints(stopped: Run, texts: list[Path]) -> None:
    record = json.loads((stopped.folder / "config.json").read_text(encoding="utf-8"))
    assert record["settings"]["mix"] == {"weights": [[0.9, 0.1], [0.1, 0.9]], "steps": 4}
    assert record["settings"]["corpus"] == [str(text) for text in texts]
    parts = record["corpus"]["parts"]
    alone = [groundling.Corpus.open(text) for text in texts]
    assert [part["name"] for part in parts] == ["a", "b"]
    assert [part["fingerprint"] for part in parts] == [each.fingerprint for each in alone]
    assert [(part["documents"], part["characters"]) for part in parts] == [(1, 10_000), (2, 6_000)]


def test_a_longer_run_reads_the_same_windows_before(stopped: Run) -> None:
    """The weights change over the steps that were planned, and then stay."""
    before = new_task(stopped.text.open(), stopped.config, None)  # type: ignore[arg-type]
    run = groundling.resume(stopped, steps=6, on_event=silent)
    assert run.config.mix is not None and run.config.mix.steps == 4
    task = new_task(run.text.open(), run.config, None)  # type: ignore[arg-type]
    assert all(task.batch(step, run.model).tokens.equal(before.batch(step, run.model).tokens) for step in range(6))
    end = [part["epochs"] * n for part, n in zip(task.mixed(104), (561, 336), strict=True)]
    start = [part["epochs"] * n for part, n in zip(task.mixed(4), (561, 336), strict=True)]
    assert [round(b - a) for a, b in zip(start, end, strict=True)] == [80, 720]  # 800 windows at 10% and 90%


def test_moved_texts_are_found_and_changed_ones_are_named(
    stopped: Run, texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "another"))  # as on another machine
    moved = texts[0].rename(tmp_path / "else.txt")
    with pytest.raises(ValueError, match=r"first is gone: .*a\.txt no longer exists\. .*--corpus PATH"):
        stopped.text.open()
    with pytest.raises(ValueError, match=r"trained on: a .* and b .* have changed\."):
        groundling.resume("first", corpus=[texts[1], moved], on_event=silent)
    with pytest.raises(ValueError, match="it mixes 2 texts, and these are 1"):
        groundling.resume("first", corpus=moved, on_event=silent)
    (texts[1] / "two.txt").write_text("changed " * 300)
    with pytest.raises(ValueError, match=rf"trained on: b \({texts[1]}\) has changed\. Restore the old text"):
        groundling.resume("first", corpus=[moved, texts[1]], on_event=silent)
    run = groundling.resume("first", corpus=[moved, texts[1]], accept_changed_text=True, on_event=silent)
    assert run.finished and run.config.corpus == (str(moved), str(texts[1]))
    assert run.record.corpus.parts[1].characters == 3000 + 2400 and len(run.record.former_texts) == 1


def test_texts_that_are_gone_are_read_from_the_cache(stopped: Run, texts: list[Path], tmp_path: Path) -> None:
    texts[0].rename(tmp_path / "else.txt")
    events: list[Event] = []
    assert groundling.resume("first", on_event=events.append).finished
    assert any(
        "Using the text's tokens from the cache" in event.sentence for event in events if isinstance(event, Notice)
    )


def test_baselines_are_weighted_and_leakage_is_sought_in_every_training_part(stopped: Run) -> None:
    text = stopped.text.open()
    assert isinstance(text, Mixture)
    checked = new_task(text, stopped.config, None).baselines()  # type: ignore[arg-type]
    assert isinstance(checked, Checked)
    alone = [new_task(each, dataclasses.replace(stopped.config, mix=None), None).baselines() for each in text.corpora]  # type: ignore[arg-type]
    assert all(isinstance(each, Checked) for each in alone)
    assert checked.one_gram == pytest.approx(0.1 * alone[0].one_gram + 0.9 * alone[1].one_gram)
    assert checked.milestones[2] == pytest.approx(0.1 * alone[0].milestones[2] + 0.9 * alone[1].milestones[2])
    first, second = text.corpora
    inside, across = shared(first.train, first.validation), shared(second.train, first.validation)
    assert inside == 0 and across > 0.99  # the end of the first text is in the second's training part
    assert shared([first.train, second.train], first.validation) == across
    assert checked.leakage == pytest.approx(0.1 * across + 0.9 * shared([first.train, second.train], second.validation))


def test_copies_are_found_in_every_text_by_name(stopped: Run, texts: list[Path]) -> None:
    index = stopped.training_text()
    for path, name in ((texts[0], "a"), (texts[1] / "one.txt", "one.txt"), (texts[1] / "two.txt", "two.txt")):
        found = index.report(path.read_text()[1200:1300]).where
        assert found is not None
        assert (found.document, found.position) == (name, 1200)
    assert index.report(texts[1].joinpath("two.txt").read_text()[-60:]).longest < 60  # its end is for validation


def test_weights_that_do_not_add_up_are_used_as_a_ratio(texts: list[Path], settings: dict[str, Any]) -> None:
    events: list[Event] = []
    run = groundling.train(mix=mixed(texts, (2, 1)), on_event=events.append, **settings)
    said = " ".join(event.sentence for event in events if isinstance(event, Notice))
    assert "The weights of --mix do not add up to 1. Only their ratio counts: a 66.7%, b 33.3%." in said
    assert run.name == "a-b" and "resume" not in said
    again = groundling.train(mix=mixed(texts, (1, 2)), name="other", on_event=silent, **settings)
    assert losses(again) != losses(run)
    with pytest.raises(ValueError, match=r"exists with other settings \(--mix 1, 2 instead of 2, 1\)"):
        groundling.train(mix=mixed(texts, (2, 1)), name="other", on_event=silent, **settings)


@pytest.mark.slow
def test_a_plan_for_minutes_fixes_when_the_weights_end(texts: list[Path], settings: dict[str, Any]) -> None:
    run = groundling.train(
        mix=mixed(texts), on_event=silent, minutes=0.2, **{k: v for k, v in settings.items() if k != "steps"}
    )
    assert run.config.mix is not None and run.config.mix.steps == run.config.training.steps > 0
    planned = next(line for line in run.metrics() if line["event"] == "started")
    assert planned["corpus"]["parts"][0]["start"] == 0.9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"corpus": "a.txt", "mix": {"a.txt": 1}}, "Use CORPUS or --mix, not both"),
        ({"mix": {"a.txt": 1, "./a.txt": 1}}, "--mix: all files of a are read already"),
        ({"mix": {"*.txt": 1, "b": 1}}, r"--mix has 2 weights for 3 texts\. Instead of a pattern, give a folder"),
        ({"mix": {"a.txt": 1, "short.txt": 1}}, r"--mix: short is too short\. The training part has 18 token"),
        ({"mix": {"a.txt": 1, "nowhere.txt": 1}}, r"There is no corpus 'nowhere\.txt'"),
        ({"mix": "a.txt"}, "mix must be a dict of paths and weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(
    texts: list[Path], settings: dict[str, Any], arguments: Any, sentence: str
) -> None:
    texts[0].with_name("short.txt").write_text("to be or not to be. ")
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=sentence):
        groundling.train(on_event=silent, **arguments, **(settings | {"block_size": 32}))
    assert not list(Path("runs").glob("*"))


def test_what_needs_one_text_says_so(stopped: Run, tmp_path: Path) -> None:
    run = groundling.resume(stopped, on_event=silent)
    with pytest.raises(ValueError, match=r"--average compares losses on one text, and the run first mixes several\."):
        export(run, to="gguf", average=2)
    for ask in (
        run.token_losses,
        lambda: run.evaluate(html=tmp_path / "page.html"),
        lambda: run.evaluate(by_position=True),
    ):
        with pytest.raises(ValueError, match=r"The run first mixes 2 texts\. Give one of them with --text\."):
            ask()
    assert run.evaluate("a.txt", html=tmp_path / "page.html")["loss"] > 0
    assert len(run.generate("The ", max_new_tokens=5, unknown="skip")) == 5
    notes = list[str]()
    run.eject(tmp_path / "ejected", notice=notes.append)
    assert "it mixes several texts, and train.py reads one." in " ".join(notes)
