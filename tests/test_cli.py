"""The command line, as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.__main__ import main
from groundling.cli.copies import show_originality
from groundling.config import flag, setting_fields
from tiny import TINY

VERBS = [
    "train", "resume", "sample", "chat", "eval", "runs", "serve", "export", "import", "plot", "doctor", "inspect",
    "tokenizer", "selftest", "studio",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "groundling"]


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (flag(name), str(value))]


class Outcome:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process: (status, standard output, standard error)."""

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(int(exit.value.code or 0), out, err)

    return call


@pytest.fixture(scope="module")
def trained(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    short = TINY | {"steps": 12, "eval_every": 6}
    run = groundling.train(folder / "prose.txt", name="first", out=folder, on_event=lambda event: None, **short)
    return run.folder


@pytest.fixture
def first(trained: Path, text_file: Path) -> None:
    """A run of twelve steps in the folder of runs, and its text beside it."""
    shutil.copytree(trained, "runs/first")


def test_help_answers_without_torch() -> None:
    program = (
        "import sys; from groundling.__main__ import main\n"
        "for words in (['--help'], *([verb, '--help'] for verb in sys.argv[1:])):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
        "    assert 'torch' not in sys.modules, words"
    )
    done = subprocess.run([sys.executable, "-c", program, *VERBS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: groundling") == 1 + len(VERBS)


def test_every_setting_has_a_flag_with_help(call: Any) -> None:
    shown = " ".join(call("train", "--help").out.split())
    for name in setting_fields():
        assert flag(name) in shown


def test_version(call: Any) -> None:
    assert call("--version").out.strip() == f"groundling {groundling.__version__}"


def test_train_shows_what_it_does_and_what_to_try_next(call: Any, text_file: Path, tiny: dict[str, Any]) -> None:
    done = call("train", text_file, "--name", "first", *flags(tiny))
    assert done.status == 0
    out = " ".join(done.out.split())
    for words in (
        "parameters", "token embedding", "corpus prose: 30,000 characters", "step 10 validation loss", "bits/byte",
        "Sample:", "groundling sample first", "groundling eval first", "groundling resume first --steps 80",
    ):  # fmt: skip
        assert words in out, words
    assert "tok/s" in out
    assert "left" in out


def test_train_json_prints_only_json_on_standard_output(call: Any, text_file: Path, tiny: dict[str, Any]) -> None:
    done = call("train", text_file, "--name", "first", "--json", *flags(tiny))
    result = json.loads(done.out)
    assert result["step"] == 40
    assert result["folder"] == str(Path("runs/first").resolve())
    assert "validation loss" in done.err


def test_sample_twice_is_the_same_text(call: Any, first: None) -> None:
    arguments = ("sample", "first", "--prompt", "The ", "--max-new-tokens", "40", "--seed", "1")
    once, again = call(*arguments), call(*arguments)
    assert once.status == 0
    assert once.out == again.out
    assert once.out.startswith("The ")
    assert len(once.out) == len("The ") + 40 + 1


def test_sample_without_a_seed_tells_the_one_it_drew(call: Any, first: None) -> None:
    done = call("sample", "first", "--max-new-tokens", "30")
    seed = done.err.split("--seed ")[1].split()[0]
    assert call("sample", "first", "--max-new-tokens", "30", "--seed", seed).out == done.out


def test_several_samples_have_following_seeds(call: Any, first: None) -> None:
    several = call("sample", "first", "--num-samples", "3", "--seed", "5", "--max-new-tokens", "20", "--json")
    samples = json.loads(several.out)
    assert [sample["seed"] for sample in samples] == [5, 6, 7]
    one = json.loads(call("sample", "first", "--seed", "6", "--max-new-tokens", "20", "--json").out)
    assert one[0]["text"] == samples[1]["text"]


def test_a_prompt_from_a_file_longer_than_the_context(call: Any, first: None, prose: str) -> None:
    Path("prompt.txt").write_text(prose[:500], encoding="utf-8", newline="")
    done = call("sample", "first", "--prompt-file", "prompt.txt", "--seed", "1", "--max-new-tokens", "5")
    assert done.status == 0
    assert "500 tokens, but the context is 32: only the newest 20 are used" in done.err
    assert done.out.startswith(prose[:500])


def test_greedy_and_temperature_0_are_one(call: Any, first: None) -> None:
    common = ("sample", "first", "--max-new-tokens", "20", "--seed", "1")
    assert call(*common, "--greedy").out == call(*common, "--temperature", "0").out


def test_eval_json_has_every_figure(call: Any, first: None) -> None:
    result = json.loads(call("eval", "first", "--json").out)
    assert {
        "loss", "perplexity", "bits_per_character", "bits_per_byte", "tokens", "characters", "step", "checkpoint",
    } <= result.keys()  # fmt: skip
    assert result["step"] == 12
    assert "nats per token" in call("eval", "first").out


def test_eval_sliding_and_its_page(call: Any, first: None) -> None:
    plain, sliding = (json.loads(call("eval", "first", *more, "--json").out) for more in ([], ["--sliding"]))
    assert (plain["protocol"], sliding["protocol"]) == ("non-overlapping", "sliding, stride 16")
    assert plain["loss"] != sliding["loss"]
    assert "sliding, stride 16" in call("eval", "first", "--sliding").out
    assert call("eval", "first", "--html", "page.html", "--html-tokens", "70").status == 0
    page = Path("page.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "the first 70 of 3,000 tokens" in page


def test_sample_tells_what_it_copied(call: Any, first: None, prose: str) -> None:
    arguments = ("sample", "first", "--prompt", "The ", "--max-new-tokens", "40", "--seed", "1", "--originality")
    (sample,) = json.loads(call(*arguments, "--json").out)
    found = groundling.load("first").training_text().report(sample["text"])
    assert sample["originality"] == json.loads(json.dumps(dataclasses.asdict(found)))
    assert sample["originality"]["characters"] == 40  # the prompt is not the model's
    where = found.where
    assert where is not None
    assert prose.find(where.text) == where.position
    shown = call(*arguments).out
    assert shown.startswith("The " + sample["text"])
    assert f"{found.longest} characters, in line {where.line:,} of the training text" in shown
    assert "nothing: no span of 30 characters or more" in shown


def test_copied_spans_are_marked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = "[the first line of the two of it]", "and what stands in the second one of it"
    text = groundling.TrainingText([f"{one}\n\n{other}\n"])
    sample = f"So: {one} {other}!"
    show_originality("ROMEO:", sample, text.report(sample))
    out = capsys.readouterr().out
    assert out.endswith(f"\nROMEO:So: [{one}] [{other}]!\n")
    assert "92.3% of 78 characters, in 2 span(s) of 30 or more" in out
    assert f"{len(other)} characters, in line 3 of the training text, from character 35 on: {other!r}" in out
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
    show_originality("ROMEO:", sample, text.report(sample))
    coloured = capsys.readouterr().out
    assert f"m{one}\x1b[0m" in coloured
    assert f"[{other}]" not in coloured


def test_runs_and_plot_and_doctor(call: Any, first: None) -> None:
    assert json.loads(call("runs", "--json").out)[0]["name"] == "first"
    assert "finished" in call("runs").out
    assert "There are no runs" in call("runs", "--out", "nowhere").out
    assert call("plot", "first", "first", "--to", "two.png").status == 0
    assert Path("two.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(call("doctor", "--json").out)
    assert {"device", "dtype", "threads", "compiler_found", "memory", "versions"} <= found.keys()
    assert "GFLOP/s" in call("doctor").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train nowhere.txt", "There is no corpus 'nowhere.txt'"),
        ("train shakespear", "did you mean 'shakespeare'"),
        ("train prose.txt --n-embd 100 --n-head 3", "--n-embd 100 is not divisible by --n-head 3"),
        ("train prose.txt --n-layer 0", "--n-layer must be at least 1"),
        ("train prose.txt --steps -5", "--steps must be at least 1"),
        ("train prose.txt --steps many", 'Invalid value for --steps: unable to convert "many" into int'),
        ("train prose.txt --steps 10 --warmup-steps 10", "--warmup-steps 10 must be fewer than --steps 10"),
        ("train prose.txt --learning-rate nan", "--learning-rate must be above 0"),
        ("train prose.txt --dropout 1", "--dropout must be below 1"),
        ("train prose.txt --preset huge", 'Invalid value "huge" for --preset'),
        ("train prose.txt --device cuda:99", "--device cuda:99"),
        ("train prose.txt --device toaster", "is not a device"),
        ("train prose.txt --n-layers 3", "Did you mean --n-layer?"),
        ("train prose.txt --name ../evil", "--name '../evil' is not a valid name"),
        ("train prose.txt --glob *.txt", "--glob chooses files of a folder"),
        ("trian", 'Did you mean "train"?'),
        ("sample nobody", "No run 'nobody'"),
        ("sample first --temperature -1", "--temperature must be at least 0"),
        ("sample first --temperature nan", "--temperature must be at least 0"),
        ("sample first --top-k -1", "--top-k must be at least 0"),
        ("sample first --num-samples 0", "--num-samples must be at least 1"),
        ("sample first --max-new-tokens -1", "--max-new-tokens must be at least 0"),
        ("sample first --prompt ☃", "'☃' (U+2603, snowman) at position 0"),
        ("sample first --prompt a --prompt-file prose.txt", "not both"),
        ("sample first --prompt-file nowhere.txt", "nowhere.txt"),
        ("eval first --text nowhere.txt", "There is no corpus 'nowhere.txt'"),
        ("resume first", "is finished. To train it further"),
        ("resume first --steps 5", "is already at step 12"),
        ("plot nobody", "No run 'nobody'"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: str, words: str, call: Any, first: None) -> None:
    done = call(*arguments.split())
    assert done.status in (1, 2)
    assert words in done.err
    assert done.err.startswith("groundling: ")
    assert len(done.err.splitlines()) == 1
    assert "Traceback" not in done.err
    assert [path.name for path in Path("runs").iterdir()] == ["first"]


def test_tokenizers_are_made_shown_and_exported(call: Any, text_file: Path, first: None) -> None:
    made = call("tokenizer", "train", text_file, "--vocab-size", "300", "--out", "t.json", "--json")
    assert json.loads(made.out) | {"fingerprint": ""} == {
        "file": "t.json", "kind": "bpe", "vocab_size": 300, "fingerprint": "",
    }  # fmt: skip
    assert "bpe, 300 tokens" in call("tokenizer", "train", text_file, "--vocab-size", "300", "--out", "t.json").out
    assert call("tokenizer", "export", "t.json", "--out", "theirs.json").status == 0
    ours, theirs = (
        json.loads(call("tokenizer", "show", file, "--text", "the ☃[b]\n", "--json").out)
        for file in ("t.json", "theirs.json")
    )
    assert ours["tokens"] == theirs["tokens"] and (ours["kind"], theirs["kind"]) == ("bpe", "huggingface")
    assert "".join(token["bytes"] for token in ours["tokens"]).replace(" ", "") == "the ☃[b]\n".encode().hex()
    assert [token["text"] for token in ours["tokens"]].count(None) == 3  # the parts of the snowman
    shown = call("tokenizer", "show", "t.json", "--text", "☃[b]\n").out
    assert all(piece in shown for piece in ("<E2>", "[", "\\n", "5 characters, 7 bytes")), shown
    assert "5 characters, 5 bytes, 5 tokens" in call("tokenizer", "show", "first", "--text", "there").out
    assert call("train", text_file, "--tokenizer", "t.json", "--steps", "1", "--n-layer", "1").status == 0


def test_tokenizers_side_by_side(call: Any, text_file: Path) -> None:
    found = json.loads(call("tokenizer", "compare", text_file, "--vocab-sizes", "300", "400", "--json").out)
    assert [row["vocabulary"] for row in found["tokenizers"][1:]] == [257, 300, 400]
    shown = call("tokenizer", "compare", text_file, "--vocab-sizes", "300").out
    assert all(words in shown for words in ("24,960", "19,298,688", "64.3%", "30,000 characters"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("tokenizer train nowhere.txt --out t.json", "There is no corpus 'nowhere.txt'"),
        ("tokenizer train prose.txt --out t.json --vocab-size 3", "--vocab-size must be at least 257, not 3."),
        ("tokenizer train prose.txt --out t.json --kind words", 'Invalid value "words" for --kind'),
        ("tokenizer show nowhere --text a", "No run 'nowhere'"),
        ("tokenizer show prose.txt --text a", "prose.txt is damaged: it is not valid JSON"),
        ("tokenizer show . --text a", "holds no tokenizer.json"),
        ("tokenizer export prose.txt --out t.json", "prose.txt is damaged"),
        ("tokenizer compare nowhere.txt", "There is no corpus 'nowhere.txt'"),
        ("tokenizer compare prose.txt --minutes 0.01 --vocab-sizes 300", "--minutes must be at least 0.2"),
        ("train prose.txt --tokenizer bype", "--tokenizer 'bype': input should be char, byte, bpe, or the path of"),
        ("train prose.txt --tokenizer prose.txt", "prose.txt is damaged: it is not valid JSON"),
        ("train prose.txt --tokenizer bpe --vocab-size 0", "--vocab-size must be at least 257, not 0."),
    ],
)
@pytest.mark.usefixtures("text_file")
def test_what_is_wrong_about_tokenizers_is_one_sentence(arguments: str, words: str, call: Any) -> None:
    done = call(*arguments.split())
    assert done.status in (1, 2)
    assert words in done.err
    assert done.err.startswith("groundling: ") and len(done.err.splitlines()) == 1
    assert not Path("t.json").exists() and not Path("runs").exists()


def test_debug_shows_where(first: None) -> None:
    done = subprocess.run([*COMMAND, "sample", "nobody", "--debug"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_text_comes_from_standard_input(prose: str, tiny: dict[str, Any], call: Any) -> None:
    arguments = ["train", "-", *flags(tiny | {"steps": 2, "warmup_steps": 0}), "--json"]
    done = subprocess.run([*COMMAND, *arguments], input=prose.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Path("runs/stdin/result.json").exists()
    resumed = call("resume", "stdin", "--steps", "3")
    assert resumed.status == 0, resumed.err


def test_a_reader_that_leaves_is_no_error(first: None) -> None:
    command = [*COMMAND, "sample", "first", "--max-new-tokens", "400", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0
