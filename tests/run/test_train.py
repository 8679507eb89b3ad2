"""train, resume, load and Run from Python."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import groundling
from groundling.run.run import Run
from groundling.training.events import Evaluation, Event, Finished, Notice, Paused, Sample, Saved, Started, Step

SHORT = {"steps": 12, "eval_every": 5, "checkpoint_every": 6}


def silent(event: Event) -> None:
    pass


@pytest.fixture
def run(text_file: Path, tiny: dict[str, Any]) -> Run:
    return groundling.train(text_file, name="first", on_event=silent, **tiny | SHORT)


def test_a_run_learns_and_leaves_everything_in_its_folder(text_file: Path, tiny: dict[str, Any]) -> None:
    events: list[Event] = []
    run = groundling.train(text_file, name="first", on_event=events.append, **tiny)
    assert run.finished
    assert run.folder == Path("runs/first").resolve()
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "samples.jsonl", "checkpoints"} <= names
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert [event.step for event in evaluations] == [0, 10, 20, 30, 40]
    assert evaluations[0].validation_loss == pytest.approx(math.log(run.tokenizer.vocab_size), rel=0.05)
    assert evaluations[-1].validation_loss < evaluations[0].validation_loss - 0.8
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, 41))
    assert [event.step for event in events if isinstance(event, Sample)] == [0, 10, 20, 30, 40]
    assert isinstance(events[0], Started | Notice) or events[0]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.best_validation_loss == min(event.validation_loss for event in evaluations[1:])
    assert any(isinstance(event, Saved) for event in events)


def test_metrics_and_samples_are_one_json_object_a_line(run: Run) -> None:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert {"step", "loss", "learning_rate", "tokens", "tokens_per_second", "elapsed"} <= steps[0].keys()
    assert [line["tokens"] for line in steps] == [8 * 32 * (i + 1) for i in range(12)]
    assert all({"step", "validation_loss"} <= line.keys() for line in lines if line["event"] == "evaluation")
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [sample["step"] for sample in samples] == [0, 5, 10, 12]
    assert {sample["prompt"] for sample in samples} == {"\n"}


def test_the_schedule_is_really_applied(run: Run) -> None:
    rates = [line["learning_rate"] for line in run.metrics() if line["event"] == "step"]
    assert rates[:5] == pytest.approx([3e-3 * i / 5 for i in range(1, 6)])
    assert rates[-1] == pytest.approx(3e-4)


def test_generation_repeats_with_its_seed(run: Run) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.9, "top_k": 20}
    first = run.generate("The ", seed=1, **settings)
    assert first == groundling.load("first").generate("The ", seed=1, **settings)
    assert len(first) == 60
    assert first != run.generate("The ", seed=2, **settings)
    assert run.generate("The ", temperature=0, seed=1) == run.generate("The ", temperature=0, seed=2)


def test_generation_meets_the_unknown(run: Run) -> None:
    with pytest.raises(ValueError, match=r"'☃' \(U\+2603, snowman\) at position 4"):
        run.generate("The ☃", seed=1)
    assert run.generate("The ☃", seed=1, unknown="skip") == run.generate("The ", seed=1)


def test_evaluation_gives_the_figures_of_the_training_log(run: Run) -> None:
    logged = {line["step"]: line["validation_loss"] for line in run.metrics() if line["event"] == "evaluation"}
    result = run.evaluate()
    assert result["loss"] == logged[result["step"]]
    assert result == run.evaluate()
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert run.evaluate(max_tokens=0)["tokens"] > result["tokens"]


def test_an_averaged_model_is_what_is_evaluated_sampled_and_saved(text_file: Path, tiny: dict[str, Any]) -> None:
    events: list[Event] = []
    run = groundling.train(text_file, name="averaged", weight_average=0.3, on_event=events.append, **tiny)
    last = next(event for event in reversed(events) if isinstance(event, Evaluation))
    assert last.best
    assert run.evaluate()["loss"] == last.validation_loss
    sample = next(event for event in reversed(events) if isinstance(event, Sample))
    assert sample.text == run.generate(sample.prompt, max_new_tokens=tiny["sample_tokens"], seed=1)
    state = load_file(run.checkpoint / "optimizer.safetensors")
    trained, saved = state["wte.weight/trained"], load_file(run.checkpoint / "model.safetensors")["wte.weight"]
    assert not torch.equal(trained, saved)
    assert torch.allclose(trained, saved, atol=0.05)


def test_evaluation_on_another_text_reads_all_of_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("the other text, which is short", encoding="utf-8")
    assert run.evaluate("other.txt")["tokens"] == 29
    (tmp_path / "other.txt").write_text("the other text ☃", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other.txt: The character '☃'"):
        run.evaluate("other.txt")
    assert run.evaluate("other.txt", unknown="skip")["tokens"] == 14


def test_a_checkpoint_loads_with_no_other_file(run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "somewhere" / "step"
    alone.parent.mkdir(parents=True)
    os.rename(run.checkpoints.path(12), alone)
    loaded = groundling.load(alone)
    assert loaded.step == 12
    assert len(loaded.generate("The ", max_new_tokens=20, seed=1)) == 20


def test_load_takes_names_paths_and_checkpoints(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for reference in ("first", "runs/first", run.folder, "runs/first/checkpoints/step-000012"):
        assert groundling.load(reference).folder == run.folder
    assert groundling.load("runs/first/checkpoints/step-000010").step == 10
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match="No run 'first'"):
        groundling.load("first")
    assert groundling.load("first", out=tmp_path / "runs").folder == run.folder
    monkeypatch.setenv("GROUNDLING_RUNS", str(tmp_path / "runs"))
    assert groundling.load("first").folder == run.folder
    with pytest.raises(FileNotFoundError, match="did you mean 'first'"):
        groundling.load("frist")


def test_the_best_checkpoint_is_the_one_in_use(run: Run) -> None:
    evaluations = [line for line in run.metrics() if line["event"] == "evaluation" and line["step"] > 0]
    assert run.step == min(evaluations, key=lambda line: line["validation_loss"])["step"]


def test_runs_lists_all_even_damaged_ones(run: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    groundling.train(text_file, name="second", on_event=lambda e: stop(e, 3), **tiny | SHORT)
    damaged = Path("runs/third")
    damaged.mkdir()
    (damaged / "config.json").write_text("{", encoding="utf-8")
    rows = {row["name"]: row for row in groundling.runs()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "first": "finished", "second": "unfinished", "third": "unreadable",
    }  # fmt: skip
    assert rows["first"]["step"] == 12
    assert rows["second"]["step"] == 3
    json.dumps(list(rows.values()))


def stop(event: Event, step: int) -> None:
    if isinstance(event, Step) and event.step == step:
        signal.raise_signal(signal.SIGTERM)


def test_a_stop_is_said_and_says_how_to_continue(text_file: Path, tiny: dict[str, Any]) -> None:
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        stop(event, 3)

    run = groundling.train(text_file, name="paused", on_event=on_event, **tiny | SHORT)
    assert run.stopped_by == signal.SIGTERM
    assert events[-1] == Paused(3, "paused")
    assert run.checkpoints.steps() == [3]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_run_is_not_overwritten(run: Run, text_file: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"first exists and is finished\. .*`groundling resume first.* another --name"):
        groundling.train(text_file, name="first", on_event=silent, **tiny | SHORT)
    with pytest.raises(ValueError, match=r"\(--dropout 0\.0 instead of 0\.5, --seed 1337 instead of 3\)"):
        groundling.train(text_file, name="first", on_event=silent, **tiny | SHORT | {"seed": 3, "dropout": 0.5})
    with pytest.raises(ValueError, match=r"is finished. To train it further, use --steps"):
        groundling.resume("first", on_event=silent)
    with pytest.raises(ValueError, match="is already at step 12"):
        groundling.resume("first", steps=12, on_event=silent)


def test_a_finished_run_can_be_trained_further(run: Run) -> None:
    longer = groundling.resume("first", steps=20, on_event=silent)
    assert longer.finished
    assert longer.config.training.steps == 20
    assert [line["step"] for line in longer.metrics() if line["event"] == "step"] == list(range(1, 21))


def test_without_a_name_runs_are_numbered(text_file: Path, tiny: dict[str, Any]) -> None:
    names = [groundling.train(text_file, on_event=silent, **tiny | SHORT | {"steps": 6}).name for _ in range(2)]
    assert names == ["prose", "prose-2"]


def test_two_processes_do_not_train_one_run(text_file: Path, tiny: dict[str, Any]) -> None:
    refusals = []

    def intrude(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            with pytest.raises(ValueError, match="is being trained by another process") as refusal:
                groundling.resume("busy", on_event=silent)
            refusals.append(refusal)
            with pytest.raises(ValueError, match="is being trained by another process"):
                groundling.resume("busy", steps=500, on_event=silent)
            assert groundling.load("busy").config.training.steps == 12  # a refusal changes nothing

    groundling.train(text_file, name="busy", on_event=intrude, **tiny | SHORT)
    assert len(refusals) == 1


def test_a_changed_text_is_noticed(run: Run, text_file: Path) -> None:
    text_file.write_text(text_file.read_text("utf-8") + "one sentence more", encoding="utf-8", newline="")
    for use in (lambda: groundling.resume("first", steps=20, on_event=silent), run.evaluate):
        with pytest.raises(ValueError, match="is not the one that the run first was trained on"):
            use()


def test_a_lost_text_is_found_in_the_cache(run: Run, text_file: Path) -> None:
    before = run.evaluate()
    text_file.unlink()
    assert run.evaluate() == before
    events: list[Event] = []
    assert groundling.resume("first", steps=14, on_event=events.append).finished
    assert any(isinstance(event, Notice) and "from the cache" in event.sentence for event in events)


def test_a_text_that_is_lost_everywhere_is_said(run: Run, text_file: Path) -> None:
    import shutil

    text_file.unlink()
    shutil.rmtree(os.environ["GROUNDLING_CACHE"])
    with pytest.raises(ValueError, match="The text of the run first is gone"):
        run.evaluate()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("a", r"1 character\(s\), too few"),
        ("a short text, but a text " * 2, r"32 needs at least 33\. Use a longer text, or --block-size 26\."),
    ],
)
def test_a_text_that_is_too_short_is_refused_and_leaves_nothing(
    content: str, sentence: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    (tmp_path / "short.txt").write_text(content[:30], encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        groundling.train("short.txt", on_event=silent, **tiny)
    assert not Path("runs").exists()


def test_divergence_is_one_sentence_and_keeps_what_was_saved(text_file: Path, tiny: dict[str, Any]) -> None:
    def poison(event: Event) -> None:
        if isinstance(event, Step) and event.step == 8:
            import gc

            gc.collect()  # the models of the tests before
            (model,) = (o for o in gc.get_objects() if type(o) is groundling.GPT and o.training)
            model.wte.weight.data[:] = math.nan

    with pytest.raises(FloatingPointError, match=r"diverged at step 9: the weights wte.weight are not finite"):
        groundling.train(text_file, name="nan", on_event=poison, **tiny | SHORT)
    run = groundling.load("nan")
    assert run.checkpoints.steps() == [5, 6]
    assert len(run.generate("The ", max_new_tokens=5, seed=1)) == 5


def test_shakespeare_that_cannot_be_had_is_replaced_only_if_nobody_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    monkeypatch.setattr("groundling.data.sources.SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")
    events: list[Event] = []
    run = groundling.train(on_event=events.append, **tiny | SHORT)
    assert run.config.corpus == "python-docs"
    notices = [event.sentence for event in events if isinstance(event, Notice)]
    assert len([sentence for sentence in notices if "python-docs instead" in sentence]) == 1
    with pytest.raises(ConnectionError, match="cannot be downloaded"):
        groundling.train("shakespeare", on_event=silent, **tiny | SHORT)


def test_a_folder_of_documents_is_trained_on(tmp_path: Path, prose: str, tiny: dict[str, Any]) -> None:
    (tmp_path / "books").mkdir()
    for i in range(10):
        (tmp_path / "books" / f"{i}.txt").write_text(prose[3000 * i : 3000 * (i + 1)], encoding="utf-8")
    run = groundling.train("books", on_event=silent, **tiny | SHORT)
    assert run.record.corpus.documents == 10
    assert run.tokenizer.end_of_text_id is not None
    assert run.evaluate()["loss"] < 4.6


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    accumulate: int, text_file: Path, tiny: dict[str, Any]
) -> None:
    settings = tiny | SHORT | {"batch_size": 8 // accumulate, "accumulate": accumulate}
    run = groundling.train(text_file, on_event=silent, **settings)
    whole = groundling.train(text_file, on_event=silent, **tiny | SHORT)
    losses = [[line["loss"] for line in r.metrics() if line["event"] == "step"] for r in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow  # half a minute; test_compiling.py compiles a pass
@pytest.mark.usefixtures("compiler")
def test_compiling_trains_the_same_model(text_file: Path, tiny: dict[str, Any]) -> None:
    settings = tiny | {"steps": 3, "eval_every": 3, "n_layer": 1, "warmup_steps": 1}
    runs = [groundling.train(text_file, on_event=silent, **settings, compile=on) for on in ("on", "off")]
    losses = [[line["loss"] for line in run.metrics() if line["event"] == "step"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert groundling.load(runs[0].name).generate("The ", max_new_tokens=5, seed=1)


def test_a_compiler_that_fails_never_stops_a_run(
    text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    events: list[Event] = []
    run = groundling.train(text_file, on_event=events.append, **tiny | SHORT, compile="on")
    assert run.finished
    assert any(
        isinstance(event, Notice)
        and "is not compiled: torch.compile does not work here (no C++ compiler found)" in event.sentence
        for event in events
    )


@pytest.mark.parametrize("kind", [{"tokenizer": "byte"}, {"tokenizer": "bpe", "vocab_size": 300}], ids=["byte", "bpe"])
def test_any_tokenizer_serves_from_training_to_evaluation(
    text_file: Path, tiny: dict[str, Any], kind: dict[str, Any], prose: str
) -> None:
    import shutil

    text_file.write_text(prose.replace("o", "ö"), encoding="utf-8", newline="")
    whole = groundling.train(text_file, name="whole", on_event=silent, **tiny | kind | {"steps": 14, "warmup_steps": 0})
    events: list[Event] = []

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 9:
            os.kill(os.getpid(), signal.SIGINT)
        events.append(event)

    groundling.train(text_file, name="first", on_event=stop, **tiny | kind | {"steps": 14, "warmup_steps": 0})
    shutil.rmtree(os.environ["GROUNDLING_CACHE"])  # the run's own tokenizer is enough
    run = groundling.resume("first", on_event=silent)
    assert run.tokenizer == whole.tokenizer
    assert run.evaluate()["loss"] == whole.evaluate()["loss"]
    assert any(isinstance(event, Paused) for event in events)
    assert run.generate("Größe", seed=1, max_new_tokens=30) == whole.generate("Größe", seed=1, max_new_tokens=30)
    scored = run.evaluate(text_file)
    first = run.tokenizer.pieces[run.tokenizer.encode(text_file.read_text("utf-8"))[0]]
    assert scored["bytes"] == text_file.stat().st_size - len(first)
    with pytest.raises(ValueError, match="exists with other settings"):
        groundling.train(text_file, name="first", on_event=silent, **tiny)


def test_a_changed_tokenizer_is_not_gone_on_with(text_file: Path, tiny: dict[str, Any], prose: str) -> None:
    settings = tiny | {"tokenizer": "mine.json", "steps": 12}
    groundling.train_tokenizer(text_file, vocab_size=300).save("mine.json")
    groundling.train(text_file, name="first", on_event=silent, **settings)
    (Path("runs/first") / "result.json").unlink()  # as if it had been stopped
    groundling.train_tokenizer(text_file, vocab_size=280).save("mine.json")
    with pytest.raises(ValueError, match="exists with another tokenizer"):
        groundling.train(text_file, name="first", on_event=silent, **settings)
    Path("mine.json").unlink()
    assert groundling.resume("first", steps=14, on_event=silent).tokenizer.vocab_size == 300


def test_the_same_command_continues_after_an_upgrade_that_adds_a_setting(text_file: Path, tiny: dict[str, Any]) -> None:
    """The record of an older version does not have it, neither among what was asked for nor among what was planned."""
    stopped = groundling.train(text_file, name="first", on_event=stop_after(5), **tiny | SHORT)
    assert stopped.stopped_by == signal.SIGINT
    for file in stopped.folder.rglob("config.json"):
        record = json.loads(file.read_text("utf-8"))
        for part in ("requested", "settings"):
            del record[part]["training"]["generations"], record[part]["task"]
        if file.parent == stopped.folder:
            file.write_text(json.dumps(record), encoding="utf-8")
    run = groundling.train(text_file, name="first", on_event=silent, **tiny | SHORT)
    assert run.finished
    assert run.record.requested.training.generations == 1


def test_a_run_that_differs_says_in_what(text_file: Path, tiny: dict[str, Any]) -> None:
    groundling.train(text_file, name="first", on_event=stop_after(5), **tiny | SHORT)
    with pytest.raises(
        ValueError, match=r"exists with other settings \(--seed 1337 instead of 7\)\. Use another --name"
    ):
        groundling.train(text_file, name="first", on_event=silent, **tiny | SHORT | {"seed": 7})
    with pytest.raises(ValueError, match=r"exists with other settings \(--preset nano instead of laptop\)"):
        groundling.train(text_file, name="first", on_event=silent, **same_settings(tiny | SHORT, "laptop"))


def same_settings(settings: dict[str, Any], preset: str) -> dict[str, Any]:
    """The same settings, said of another preset."""
    import dataclasses

    from groundling.config import Config

    config = Config.build("x", settings["preset"], **{k: v for k, v in settings.items() if k != "preset"})
    values = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.training)}
    return settings | values | {"preset": preset}


def stop_after(step: int) -> Any:
    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == step:
            signal.raise_signal(signal.SIGINT)

    return stop


@pytest.mark.usefixtures("second_a_step")
@pytest.mark.parametrize("end", [{"steps": 8}, {"minutes": 0.2}])
def test_a_new_end_before_the_end_of_the_warm_up_shortens_it(
    end: dict[str, Any], text_file: Path, tiny: dict[str, Any]
) -> None:
    settings = tiny | SHORT | {"steps": 500, "warmup_steps": 400, "eval_every": 100}
    groundling.train(text_file, name="first", on_event=stop_after(5), **settings)
    run = groundling.resume("first", on_event=stop_after(7), **end)
    assert 0 < run.config.training.warmup_steps < run.config.training.steps
    assert groundling.resume("first", on_event=silent).finished  # and its checkpoints are of the same run


def test_a_run_out_of_patience_stays_so_when_it_is_killed_before_it_is_finished(
    text_file: Path, tiny: dict[str, Any]
) -> None:
    settings = tiny | {"steps": 300, "eval_every": 5, "checkpoint_every": 5, "patience": 2, "learning_rate": 0.5}
    settings |= {"sample_every": 0}
    whole = groundling.train(text_file, name="whole", on_event=silent, **settings)
    assert whole.result is not None and whole.result["step"] < 300

    class Killed(BaseException):
        pass

    last = whole.result["step"]

    def kill(event: Event) -> None:
        if isinstance(event, Saved) and event.step == last:
            raise Killed

    with pytest.raises(Killed):
        groundling.train(text_file, name="killed", on_event=kill, **settings)
    run = groundling.resume("killed", on_event=silent)
    assert run.result is not None
    assert run.result["step"] == last
    longer = groundling.resume("killed", steps=400, on_event=silent)  # asked to go on, it has its patience again
    assert longer.result is not None
    assert longer.result["step"] > last


def test_a_run_keeps_the_weights_that_it_began_with(text_file: Path, tiny: dict[str, Any]) -> None:
    """The run that they came from goes on, and deletes its checkpoint."""
    import shutil

    source = groundling.train(text_file, name="source", on_event=silent, **tiny | SHORT)
    settings = {k: tiny[k] for k in ("device", "dtype", "eval_tokens", "sample_tokens") if k in tiny} | {"steps": 6}
    whole = groundling.train(text_file, name="whole", init_from="source", on_event=silent, **settings)
    groundling.train(text_file, name="mine", init_from="source", on_event=stop_after(1), **settings)
    shutil.rmtree("runs/mine/checkpoints")  # it begins again at step 0
    shutil.rmtree(source.folder)
    run = groundling.resume("mine", on_event=silent)
    losses = [[x["loss"] for x in r.metrics() if x["event"] == "step"] for r in (run, whole)]
    assert losses[0] == losses[1]


def test_only_the_newest_checkpoint_is_resumed(run: Run) -> None:
    older = run.checkpoints.path(run.checkpoints.steps()[0])
    with pytest.raises(ValueError, match="is not the newest checkpoint, from which a run resumes"):
        groundling.resume(older, steps=20, on_event=silent)
    assert groundling.resume(run.checkpoints.path(12), steps=14, on_event=silent).finished


def test_a_model_of_others_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is not a groundling checkpoint\. .*`groundling import"):
        groundling.load(tmp_path / "theirs")
