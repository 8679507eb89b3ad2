"""A run as plain PyTorch: what the files compute is what groundling computes, and groundling is not there."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundling
from groundling.__main__ import main
from groundling.config import ModelSettings, Sampling, TrainingSettings
from groundling.data.conversations import Message
from groundling.data.corpus import Corpus
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.inference.engine import generate as continued
from groundling.model.gpt import GPT
from groundling.model.weights_file import load_weights
from groundling.run.eject import eject, facts, tokenizer
from groundling.run.run import Run
from tiny import TINY

LLAMA: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"}
MUON: dict[str, Any] = {"optimizer": "muon", "weight_average": 0.06, "schedule": "linear", "final_lr_fraction": 0.0}
BPE: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 400}
RUNS: dict[str, dict[str, Any]] = {
    "gpt2-char": {"accumulate": 2, "batch_size": 4},
    "gpt2-byte": {"tokenizer": "byte", "tie_head": False, "grad_clip": 0.0, "warmup_steps": 0},
    "gpt2-bpe": MUON | BPE | {"eval_tokens": 0},
    "qwen3-char": MUON | LLAMA | {"generations": 2, "n_head": 4, "n_kv_head": 2, "head_size": 10},
    "qwen3-byte": MUON | LLAMA | {"tokenizer": "byte", "qk_norm": False, "rope_scaling": "llama3:8:1:4:16"},
    "qwen3-bpe": LLAMA | BPE | {"generations": 3, "accumulate": 3, "batch_size": 2, "schedule": "constant"},
    "further": {"init_from": "gpt2-char", "learning_rate": 1e-3},
}
GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 1.3, "top_k": 3, "seed": 7}
PROMPT, N = "The class", 100

# Runs each file of a list as a program, with its words, in a process that cannot import groundling. Prints what they
# print, and the logits of the models for some tokens.
DRIVER = """
import contextlib, io, json, runpy, sys
sys.modules["groundling"] = None
import torch
printed = []
for file, words, tokens in json.load(sys.stdin):
    sys.path.insert(0, file.rpartition("/")[0])
    sys.modules.pop("model", None)
    sys.argv = [file, *words]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        names = runpy.run_path(file, run_name="__main__")
    logits = []
    if tokens:
        model = names["GPT"]().eval()
        model.load_state_dict(names["load_file"](names["FOLDER"] / "model.safetensors"))
        logits = model(torch.tensor(tokens)).tolist()
    printed.append([out.getvalue(), logits])
print(json.dumps(printed))
"""


def driven(*calls: tuple[Path, list[str], list[list[int]]]) -> list[tuple[str, list[Any]]]:
    given = json.dumps([(file.as_posix(), words, tokens) for file, words, tokens in calls])
    done = subprocess.run(
        [sys.executable, "-I", "-c", DRIVER], input=given, capture_output=True, text=True, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def runs(prose: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("eject")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    made = dict[str, Run]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        patch.setenv("GROUNDLING_RUNS", str(folder / "runs"))
        patch.setattr("groundling.run.session._finish", lambda *_: None)
        for name, settings in RUNS.items():
            chosen = (
                TINY
                | {"steps": 50, "checkpoint_every": 50, "eval_every": 25, "sample_every": 0, "compile": "off"}
                | settings
            )
            if "init_from" in settings:  # the model is given
                kept = ("steps", "batch_size", "sample_every", "device", "dtype", "compile")
                chosen = {key: chosen[key] for key in kept} | settings
            made[name] = groundling.train(folder / "prose.txt", name=name, on_event=lambda _: None, **chosen)
            made[name].eject()
    return made


@dataclasses.dataclass(frozen=True)
class Ejected:
    """What an ejected run printed."""

    logits: torch.Tensor
    greedy: str
    drawn: str
    trained: str
    after: str
    """The greedy text of the weights that train.py saved."""


@pytest.fixture(scope="module")
def tokens(runs: dict[str, Run]) -> list[list[int]]:
    """Two windows, of ids that all the tokenizers have."""
    return np.random.default_rng(0).integers(0, 60, (2, 32)).tolist()


@pytest.fixture(scope="module")
def ejected(runs: dict[str, Run], tokens: list[list[int]]) -> dict[str, Ejected]:
    calls = list[tuple[Path, list[str], list[list[int]]]]()
    for run in runs.values():
        generate, train = (run.folder / "ejected" / name for name in ("generate.py", "train.py"))
        greedy = ["--temperature", "0", "--max-new-tokens", str(N)]
        drawn = ["--temperature", "1.3", "--top-k", "3", "--seed", "7", "--max-new-tokens", str(N), "--prompt", PROMPT]
        calls += [(generate, greedy, tokens), (generate, drawn, []), (train, [], [])]
        calls += [(generate, [*greedy, "--weights", "trained.safetensors"], [])]
    printed = iter(driven(*calls))
    return {
        name: Ejected(torch.tensor(logits), greedy, *(next(printed)[0] for _ in range(3)))
        for name, (greedy, logits) in ((name, next(printed)) for name in runs)
    }


each = pytest.mark.parametrize("name", RUNS)


@each
def test_the_logits_are_the_same(
    name: str, runs: dict[str, Run], ejected: dict[str, Ejected], tokens: list[list[int]]
) -> None:
    run = runs[name]
    model = GPT(run.config.model, run.tokenizer.vocab_size).eval()
    load_weights(run.checkpoint, model)
    with torch.inference_mode():
        assert torch.allclose(ejected[name].logits, model(torch.tensor(tokens)), rtol=0, atol=1e-5)


@each
def test_the_texts_are_the_same(name: str, runs: dict[str, Run], ejected: dict[str, Ejected]) -> None:
    """Longer than the context, so that its window moves, too."""
    run = runs[name]
    first = run.tokenizer.decode(run.prompt_ids())  # which `sample` does not print
    assert ejected[name].greedy == first + run.generate(max_new_tokens=N, **GREEDY) + "\n"
    assert ejected[name].drawn == PROMPT + run.generate(PROMPT, max_new_tokens=N, **DRAWN) + "\n"


@each
def test_the_losses_are_the_same(name: str, runs: dict[str, Run], ejected: dict[str, Ejected]) -> None:
    metrics = runs[name].metrics()
    losses = [line["loss"] for line in metrics if line["event"] == "step"]
    found = [float(loss) for loss in re.findall(r"^step +\d+  loss (\S+) ", ejected[name].trained, re.MULTILINE)]
    assert len(losses) == 50
    assert found == pytest.approx(losses, abs=1e-4)
    checks = {line["step"]: line["validation_loss"] for line in metrics if line["event"] == "evaluation"}
    again = re.findall(r"^step +(\d+)  validation loss (\S+)", ejected[name].trained, re.MULTILINE)
    assert len(again) == len(checks) - 1  # not before the first step
    assert {int(step): float(loss) for step, loss in again} == pytest.approx(
        {step: checks[step] for step in checks if step}, abs=1e-4
    )


@each
def test_what_it_trains_can_be_used(name: str, runs: dict[str, Run], ejected: dict[str, Ejected]) -> None:
    """The weights are those of the run, which saved them at the same step, up to the last digits."""
    from safetensors.torch import load_file

    folder = runs[name].folder / "ejected"
    saved, trained = load_file(folder / "model.safetensors"), load_file(folder / "trained.safetensors")
    assert saved.keys() == trained.keys()
    assert all(torch.allclose(saved[key], trained[key], atol=1e-3) for key in saved)
    assert len(ejected[name].after) >= N


@each
def test_they_are_short_and_need_little(name: str, runs: dict[str, Run]) -> None:
    folder = runs[name].folder / "ejected"
    lines, imported = 0, set[str]()
    for file in folder.glob("*.py"):
        code = file.read_text(encoding="utf-8")
        lines += len(code.splitlines())
        assert ast.get_docstring(ast.parse(code))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                imported.add(str(module).partition(".")[0])
    assert lines < 550
    needed = {re.split("[>=]", line)[0] for line in (folder / "requirements.txt").read_text().split()}
    assert imported - sys.stdlib_module_names == needed | {"model"}


@each
def test_nothing_is_there_that_the_run_does_not_need(name: str, runs: dict[str, Run]) -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (runs[name].folder / "ejected").glob("*.py"))
    settings = runs[name].config
    model, training = settings.model, settings.training
    for word, used in {
        "rotate(": model.position == "rope", "wpe": model.position == "learned", "lm_head": not model.tie_head,
        "Muon": training.optimizer == "muon", "average": training.weight_average > 0,
        "teacher": training.generations > 1, "Dropout": model.dropout > 0, "warmup": training.warmup_steps > 0,
        "ACCUMULATE": training.accumulate > 1, "clip_grad": training.grad_clip > 0, "PATIENCE": training.patience > 0,
        "N_KV_HEAD": model.kv_heads < model.n_head, "CHARACTERS": runs[name].tokenizer.kind == "char",
        "autocast": False, "load_file(FOLDER / \"initial": training.init_from is not None,
    }.items():  # fmt: skip
        assert (word in code) == used, word


def variants(run: Run, corpus: Corpus) -> Iterator[tuple[Run, dict[str, Any]]]:
    """The run as if it had other settings, and what the templates get then."""
    families: list[dict[str, Any]] = [{}, LLAMA, {"norm": "rmsnorm"}, LLAMA | {"qk_norm": False}]
    models: list[dict[str, Any]] = [
        {"dropout": 0.1, "tie_head": False}, {"n_kv_head": 1, "norm_eps": 1e-8, "mlp_size": 20},
        {"attention_bias": "qkv", "mlp_bias": "on"}, {"rope_scaling": "linear:2", "head_size": 6},
        {"attention_bias": "off", "mlp_bias": "off"}, {"rope_scaling": "llama3:32:1:4:8192"},
        {"sliding_window": 8, "n_layer": 3, "sliding_layers": "SF"}, {"sliding_window": 5, "n_kv_head": 1},
    ]  # fmt: skip
    recipes: list[dict[str, Any]] = [
        {"patience": 2}, MUON, MUON | {"generations": 2, "accumulate": 2}, {"warmup_steps": 0, "schedule": "constant"},
        {"generations": 2, "eval_tokens": 64}, {"grad_clip": 0.0, "minutes": 1.0, "init_from": "another"},
    ]  # fmt: skip
    chosen, dtypes = itertools.product(families, models, recipes), itertools.cycle(("float32",) * 3 + ("bfloat16",) * 2)
    for (family, model, recipe), dtype in zip(chosen, dtypes, strict=False):
        settings = dataclasses.replace(
            run.config,
            model=dataclasses.replace(run.config.model, **family | model),
            training=dataclasses.replace(run.config.training, **recipe),
        )
        other = Run(run.folder)
        machine = run.record.machine.model_copy(update={"dtype": dtype})
        other.record = run.record.model_copy(update={"settings": settings, "machine": machine})
        yield other, facts.model_facts(other) | facts.training_facts(other, corpus, [])


def tokenizers() -> list[dict[str, Any]]:
    chosen = itertools.product(("char", "byte", "library"), ({"chat": True}, {"prefix": [1]}, {}), ([], [4]))
    common = {
        "before": tokenizer._listed([1]),
        "after": tokenizer._listed([*range(50)]),
        "start": [0],
        "start_says": "a line break",
        "chat": False,
        "prefix": [],
    }
    return [common | form | {"tokenizer": kind, "ends": ends} for kind, form, ends in chosen]


def test_whatever_the_settings_they_are_formatted_and_run(runs: dict[str, Run], tmp_path: Path) -> None:
    """With the formatter's defaults, and with our line length. Each model computes what groundling's does."""
    templates, texts, form = eject._environment(), set[tuple[str, str]](), tokenizers()
    models = set[ModelSettings]()
    corpus = facts.open_corpus(runs["gpt2-char"])
    for i, (run, values) in enumerate(variants(runs["gpt2-char"], corpus)):
        values |= form[i % len(form)] | {"notes": ["A note."]}
        for name in ("model", "generate", "train"):
            texts.add((name, templates.get_template(f"{name}.py.jinja").render(values)))
        settings = run.config.model
        if settings not in models:
            models.add(settings)
            ours = GPT(settings, run.tokenizer.vocab_size).eval()
            plain: dict[str, Any] = {"__name__": "model", "__file__": "model.py"}
            exec(templates.get_template("model.py.jinja").render(values), plain)
            theirs = plain["GPT"]().eval()
            theirs.load_state_dict(eject._renamed(ours.state_dict()))
            window = torch.arange(32)[None]
            assert torch.allclose(theirs(window), ours(window), atol=1e-5)
    assert len(models) == 32 and len(texts) > 60
    for i, (name, text) in enumerate(sorted(texts)):
        (tmp_path / f"{name}{i}.py").write_text(text, encoding="utf-8")
    (tmp_path / "model.py").touch()  # so that imports of it are sorted as from a file that is there
    if (ruff := shutil.which("ruff")) is None:
        pytest.skip("ruff is not installed")
    for words in (["format", "--check"], ["format", "--check", "--line-length", "120"], ["check"]):
        done = subprocess.run([ruff, *words, "--isolated", "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Any]]:
    """Run an ejected file in this process, without its main()."""

    def loaded(file: Path) -> dict[str, Any]:
        monkeypatch.syspath_prepend(file.parent)
        sys.modules.pop("model", None)
        return runpy.run_path(str(file))

    yield loaded
    sys.modules.pop("model", None)


def test_a_long_text_stays_where_it_is(
    runs: dict[str, Run], tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["gpt2-char"]
    monkeypatch.setenv("GROUNDLING_CACHE", str(run.folder.parents[1] / "cache"))
    monkeypatch.setattr(facts, "MOST_COPIED", 1000)
    folder = run.eject(tmp_path / "long")
    assert not (folder / "tokens.bin").exists()
    x, _ = loaded(folder / "train.py")["batch"](3)
    same, _ = loaded(run.folder / "ejected" / "train.py")["batch"](3)
    assert torch.equal(x, same)


def test_a_tuned_run_replies(models_to_tune: Path, tmp_path: Path, loaded: Any) -> None:
    """The prompt is what the user says. Training it again takes the conversations, so there is no train.py."""
    run, notes = groundling.load(models_to_tune / "parent"), list[str]()
    folder = run.eject(tmp_path / "plain", notice=notes.append)
    assert notes == ["train.py is not included: it trains on a text, and this run was tuned by sft."]
    assert not (folder / "train.py").exists() and "train.py is not" in (folder / "README.md").read_text()
    generate = loaded(folder / "generate.py")
    model = generate["GPT"]().eval()
    model.load_state_dict(generate["load_file"](folder / "model.safetensors"))
    for question in ("abc", "1+2="):
        tokens = generate["BEFORE"] + generate["encode"](question) + generate["AFTER"]
        ids = generate["generate"](model, tokens, 20, 0.0, 0, None)
        assert isinstance(run.tokenizer, ChatTokenizer)
        chat = run.tokenizer.render([Message("user", question)], add_generation_prompt=True).ids
        reply = [*continued(run.model, chat, 20, Sampling(temperature=0))]
        end = next((i for i, id in enumerate(reply, 1) if id in run.tokenizer.end_ids), len(reply))
        assert ids == [*chat, *reply[:end]]
        assert generate["decode"](ids) == run.tokenizer.decode(ids)


def test_a_run_without_its_text_gets_no_train(runs: dict[str, Run], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs["gpt2-byte"].folder, tmp_path / "gone"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["settings"]["corpus"] = str(tmp_path / "nowhere.txt")
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    notes = list[str]()
    folder = Run(copy).eject(tmp_path / "plain", notice=notes.append)
    assert len(notes) == 1 and notes[0].startswith("train.py is not included: ") and "nowhere.txt" in notes[0]
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "generate.py", "model.py", "model.safetensors", "requirements.txt",
    }  # fmt: skip


def test_what_differs_is_said(runs: dict[str, Run]) -> None:
    run, notes = Run(runs["gpt2-char"].folder), list[str]()
    model = dataclasses.replace(run.config.model, dropout=0.2)
    training = dataclasses.replace(run.config.training, minutes=1.0)
    settings = dataclasses.replace(run.config, model=model, training=training)
    machine = run.record.machine.model_copy(update={"dtype": "float16"})
    run.record = run.record.model_copy(update={"settings": settings, "machine": machine})
    facts.training_facts(run, facts.open_corpus(runs["gpt2-char"]), notes)
    assert [note.split()[0] for note in notes] == ["train.py", "The", "Dropout", "train.py"]


def test_a_folder_in_use_is_left_alone(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["gpt2-char"]
    with pytest.raises(FileExistsError, match=r"ejected is not an empty folder\. Choose another folder with --out"):
        run.eject()
    (tmp_path / "mine").mkdir()
    assert (run.eject(tmp_path / "mine") / "model.py").exists()  # it was empty
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is not an empty folder"):
        run.eject(tmp_path / "file")


def test_an_unknown_part_of_a_model_is_refused(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs["qwen3-byte"]
    monkeypatch.setattr(facts, "_MODEL", tuple(name for name in facts._MODEL if name != "qk_norm"))
    with pytest.raises(ValueError, match="A model with --qk-norm False cannot be ejected"):
        run.eject()
    stretched = Run(run.folder)
    model = dataclasses.replace(run.config.model, rope_scaling="yarn:4:32")
    stretched.record = run.record.model_copy(update={"settings": dataclasses.replace(run.config, model=model)})
    with pytest.raises(ValueError, match="A model with --rope-scaling yarn:4:32 cannot be ejected"):
        stretched.eject()


def test_every_setting_is_known() -> None:
    """A new one needs code in the templates if it changes what is computed. Until then it is refused."""
    assert {each.name for each in dataclasses.fields(ModelSettings)} == set(facts._MODEL)
    assert {each.name for each in dataclasses.fields(TrainingSettings)} == set(facts._TRAINING)


def test_the_command(
    runs: dict[str, Run], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints is short, and works when it is pasted."""
    run = runs["gpt2-char"]
    with pytest.raises(SystemExit) as exit:
        main(["eject", str(run.folder), "--out", str(tmp_path / "it's mine")])
    assert exit.value.code == 0
    out = capfd.readouterr().out
    lines = {name: len((tmp_path / "it's mine" / f"{name}.py").read_text().splitlines()) for name in ("model", "train")}
    assert all(re.search(rf"^{name}\.py +{n} lines$", out, re.MULTILINE) for name, n in lines.items())
    generate, train = (line.strip() for line in out.partition("Next:\n")[2].splitlines())
    assert shlex.split(train)[1:] == [os.path.join("it's mine", "train.py")]
    python, file, *words = shlex.split(generate)
    assert shutil.which(python) and words == ["--prompt", run.example_prompt(16)]
    monkeypatch.setattr(sys, "argv", [file, *words, "--max-new-tokens", "5"])
    monkeypatch.syspath_prepend("it's mine")  # as `python FILE` does
    runpy.run_path(file, run_name="__main__")
    text = capfd.readouterr().out
    assert text.startswith(words[-1]) and len(text) == len(words[-1]) + 6
    del sys.modules["model"]
