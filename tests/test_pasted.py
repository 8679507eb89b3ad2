"""Every command and every piece of code that groundling prints or writes works when it is pasted."""

from __future__ import annotations

import html
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import groundling
from groundling.__main__ import main
from groundling.analysis.diagnosis import diagnose
from groundling.analysis.history import History
from groundling.config.settings import TOKENIZERS
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.escape import command, printable, quoted
from groundling.inference.example_prompt import example_prompt
from groundling.reporting.console import Console
from groundling.run.run import Run
from groundling.training.events import Paused

FAMILIES = {"gpt2": [], "qwen3": ["--norm", "rmsnorm", "--position", "rope", "--mlp", "swiglu"]}
LATIN, MIXED = "it's a $novel & more.txt", "Война и мир: «том 1».txt"
WORDS = {
    LATIN: "It was a dark and stormy night; the rain fell in torrents, said Mr. `Paul`.",
    MIXED: "Все счастливые семьи похожи друг на друга, сказал 老李，而且 مرحبا 😀.",
}
TEXTS = {name: f"{words}\n" + " ".join(Random(0).choices(words.split(), k=600)) for name, words in WORDS.items()}
SETTINGS = [
    "--preset", "nano", "--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 2,
    "--steps", 3, "--eval-every", 2, "--eval-tokens", 64, "--sample-tokens", 5, "--vocab-size", 300,
    "--learning-rate", 0.02, "--device", "cpu", "--dtype", "float32",
]  # fmt: skip
COMBINATIONS = list(itertools.product(TEXTS, TOKENIZERS, FAMILIES))


@dataclass
class Printed:
    status: int
    out: str
    err: str

    @property
    def commands(self) -> list[str]:
        """Those between backticks, at the end of a line, or on a line of their own."""
        found = re.findall(r"`(groundling [^`]*)`|(?:^|:) +(groundling .*)$", self.out + self.err, re.MULTILINE)
        return [one or other for one, other in found]


def run(*words: object) -> Printed:
    """A command in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return Printed(int(end.value.code or 0), out.getvalue(), err.getvalue())


def paste(command: str) -> Printed:
    """A command in this process, as a POSIX shell reads it."""
    first, *words = shlex.split(command)
    assert first == "groundling"
    printed = run(*words)
    assert printed.status == 0, (command, printed.err)
    return printed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("my home")


@pytest.fixture(autouse=True)
def at_home(own_folders: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDLING_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def trained(home: Path) -> dict[tuple[str, str, str], Printed]:
    """What `train` printed, for each text, tokenizer and family. The runs of one family are in another folder."""
    with pytest.MonkeyPatch.context() as patch, chdir(home):
        patch.setenv("GROUNDLING_CACHE", str(home / "cache"))
        printed = {}
        for name, text in TEXTS.items():
            Path(name).write_text(text, encoding="utf-8")
        for text, tokenizer, family in COMBINATIONS:
            out = ["--out", "other runs"] if family == "qwen3" else []
            printed[text, tokenizer, family] = run(
                "train", text, *out, "--tokenizer", tokenizer, *FAMILIES[family], *SETTINGS
            )
            assert printed[text, tokenizer, family].status == 0, printed[text, tokenizer, family].err
        return printed


def run_of(printed: Printed) -> Run:
    """The run that `train` made, by the name in its last suggestion."""
    return groundling.load(shlex.split(printed.commands[-1])[2])


@pytest.mark.parametrize("combination", COMBINATIONS, ids=" ".join)
def test_what_train_suggests(trained: Any, combination: tuple[str, str, str]) -> None:
    text, tokenizer, family = combination
    printed = trained[combination]
    sampled, evaluated, resumed = map(paste, printed.commands)
    prompt = shlex.split(printed.commands[0])[-1]
    assert prompt == ("It" if text == LATIN else "Все") and sampled.out.startswith(prompt)
    assert "note: The prompt has" not in sampled.err
    assert "perplexity" in evaluated.out
    assert "Done: 6 steps" in resumed.out
    stem = "it-s-a-novel-more" if text == LATIN else "Война-и-мир-том-1"
    number = ["", "-2", "-3"][TOKENIZERS.index(tokenizer)]
    assert run_of(printed).reference == f"{'other runs/' if family == 'qwen3' else ''}{stem}{number}"
    assert run_of(printed).config.text.tokenizer == tokenizer


def test_a_real_shell_reads_the_commands_as_they_are_meant(trained: Any, tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("the shells are POSIX")
    odd = ["", "it's", 'a "b" $HOME `ls` \\', "a\nb\tc", "\x1b[31m", "\u202eabc", "a  b", "\udcff", "~", "-x", "!", "*"]
    commands = [each for printed in trained.values() for each in printed.commands]
    commands += [command("sample", word) for word in odd]
    echo = "import json, sys; print(json.dumps(sys.argv[1:]))"
    script = f'groundling() {{ {shlex.quote(sys.executable)} -c {shlex.quote(echo)} "$@"; }}\n' + "\n".join(commands)
    wanted = [shlex.split(each)[1:] for each in commands[: -len(odd)]] + [["sample", word] for word in odd]
    for shell in filter(None, map(shutil.which, ("bash", "zsh", "ksh"))):
        result = subprocess.run([shell, "-c", script], capture_output=True, check=True)
        assert list(map(json.loads, result.stdout.splitlines())) == wanted
    for each in commands:
        assert "\n" not in each and "`" not in each and printable(each) == each


def test_a_name_is_listed_in_full_in_a_narrow_terminal(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    made = run_of(trained[LATIN, "byte", "gpt2"]).folder
    shutil.copytree(made, made.with_name("語" * 33))
    assert "語" * 33 + " " in run("runs").out


def test_commands_for_windows_are_quoted_as_its_programs_read_them() -> None:
    for word in ("a b", 'say "hi"', "C:\\my runs\\x", "C:\\my runs\\", 'a \\"', ""):
        assert quoted(word, windows=True) == subprocess.list2cmdline([word])
    assert [quoted(word, windows=True) for word in ("it's", "a&b", "Война", "C:\\x\\y.txt")] == [
        '"it\'s"', '"a&b"', "Война", "C:\\x\\y.txt"
    ]  # fmt: skip


def test_the_command_runs_from_a_shell(trained: Any) -> None:
    if os.name == "nt":
        pytest.skip("the shell is POSIX")
    printed = trained[MIXED, "char", "qwen3"]
    function = f'groundling() {{ {shlex.quote(sys.executable)} -m groundling "$@"; }}; {printed.commands[0]}'
    result = subprocess.run(["sh", "-c", function], capture_output=True, text=True, encoding="utf-8", check=True)
    assert result.stdout.startswith("Все")


@pytest.mark.parametrize("combination", COMBINATIONS[::7], ids=" ".join)
def test_the_other_commands(trained: Any, combination: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a stopped run, of its report and diagnosis, and of errors."""
    text = combination[0]
    made = run_of(trained[combination])
    with redirect_stdout(io.StringIO()) as out:
        Console()(Paused(3, made.reference))
    assert out.getvalue() == f"Saved at step 3. To continue:  {command('resume', made.reference)}\n"
    for words in (["runs"], ["explain", made.reference], ["plot", made.reference], ["report", made.reference],
                  ["tokenizer", "export", made.reference, "--out", "tokenizer.json"]):  # fmt: skip
        shown = run(*words)
        assert shown.status == 0 and shown.commands == []
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    shown = [html.unescape(code) for code in re.findall("<code>(groundling .*?)</code>", page)]
    assert shown == [command("inspect", *made.config.text_arguments)]
    checked = paste(shown[0])
    assert f"{made.config.text.tokenizer} tokenizer, vocabulary of {made.tokenizer.vocab_size:,}" in checked.out
    # To train what the check-up recommends would take minutes: the command seems to have begun some time ago.
    (further,) = checked.commands
    assert shlex.split(further)[1:3] == ["train", str(Path(text).resolve())]
    fast = ["--steps", "2", "--warmup-steps", "0", "--eval-tokens", "64", "--n-layer", "1", "--n-embd", "6"]
    assert run(*_without_minutes(further), *fast).status == 0


def _without_minutes(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    at = words.index("--minutes")
    return words[:at] + words[at + 2 :]


def test_the_commands_in_a_diagnosis(trained: Any) -> None:
    made = run_of(trained[LATIN, "bpe", "gpt2"])
    history = History.read(made.metrics(), made.config)
    leaking = Printed(0, "\n".join(finding.advice for finding in diagnose(replace(history, leakage=0.5))), "")
    (inspect,) = leaking.commands
    assert inspect == command("inspect", *made.config.text_arguments)
    assert shlex.split(inspect)[-4:] == ["--tokenizer", "bpe", "--vocab-size", "300"]
    paste(inspect)
    assert re.sub(r"[\d.]+$", "N", history.train_command) == inspect.replace("inspect", "train", 1) + " --minutes N"


def test_the_commands_in_errors(trained: Any, home: Path, tmp_path: Path) -> None:
    text, made = LATIN, run_of(trained[LATIN, "byte", "qwen3"])
    same = ["train", text, "--out", "other runs", "--tokenizer", "byte", *FAMILIES["qwen3"], *SETTINGS]
    refused = run(*same, "--name", made.name)
    assert refused.status == 1
    paste(refused.commands[0])
    old = made.checkpoints.path(made.checkpoints.steps()[0])
    refused = run("resume", old)
    resume, start = refused.commands
    assert resume == command("resume", made.reference)
    assert paste(f"{start} --steps 2 --warmup-steps 0 --eval-tokens 64")
    moved = home / "moved runs" / "it is"
    shutil.copytree(made.folder, moved, ignore=shutil.ignore_patterns("checkpoints"))
    refused = run("sample", moved)
    assert refused.commands == [command("resume", "moved runs/it is")]
    content = Path(text).read_text(encoding="utf-8")
    Path(text).write_text(content + content, encoding="utf-8")
    refused = run("resume", made.reference, "--steps", 20)
    assert refused.status == 1
    paste(f"{refused.commands[0]} --steps 20")
    Path(text).write_text(content, encoding="utf-8")


@pytest.mark.parametrize("combination", COMBINATIONS, ids=" ".join)
def test_the_code_in_a_model_card(trained: Any, combination: tuple[str, str, str], home: Path) -> None:
    pytest.importorskip("transformers")
    made = run_of(trained[combination])
    folder = Path("my models") / made.name / combination[2]
    assert run("export", made.reference, "--to", "huggingface", "--out", folder).status == 0
    out, found = _run_code(folder)
    prompt = "It" if combination[0] == LATIN else "Все"
    assert out.startswith(prompt) and found["output"].shape == (1, 16)
    assert made.tokenizer.decode(found["ids"][0].tolist()) == prompt
    if combination[1] == "char" and combination[2] == "gpt2":
        imported = run("import", folder, "--name", f"back-{made.name}")
        Path("my.txt").write_text(TEXTS[combination[0]], encoding="utf-8")
        sample, further = imported.commands
        paste(sample)
        paste(f"{further} --steps 2 --warmup-steps 0 --eval-tokens 64")
        refused = run("sample", f"back-{made.name}", "--originality")
        assert refused.commands == [command("train", "my.txt", "--init-from", f"back-{made.name}")]
        refused = run("sample", folder)
        assert refused.commands == [command("import", folder)]
        paste(f"{refused.commands[0]} --name again-{made.name}")


def _run_code(folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the Python code of a model card in its folder. Returns what it printed, and its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    with chdir(folder), redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        exec(code, found := {})
    return out.getvalue(), found


def test_the_code_in_the_card_for_onnx(trained: Any) -> None:
    pytest.importorskip("onnxruntime")
    folder = Path("my models/onnx")
    assert run("export", run_of(trained[MIXED, "char", "gpt2"]).reference, "--to", "onnx", "--out", folder).status == 0
    found = _run_code(folder)[1]
    assert found["logits"].shape == (1, 3, found["tokenizer"].get_vocab_size())  # of "Все"


@pytest.mark.parametrize("combination", [(LATIN, "char", "qwen3"), (MIXED, "bpe", "gpt2")], ids=" ".join)
def test_the_commands_in_the_card_for_gguf(trained: Any, combination: tuple[str, str, str]) -> None:
    """llama.cpp and Ollama are not here: their arguments have to be the model's."""
    pytest.importorskip("gguf")
    made = run_of(trained[combination])
    folder = Path("my models") / f"{made.name} gguf"
    assert run("export", made.reference, "--to", "gguf", "--out", folder).status == 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    llama, create, ollama = map(shlex.split, re.findall(r"^(?:llama-completion|ollama) .*$", card, re.MULTILINE))
    given = dict(itertools.pairwise(llama))
    assert (given["-m"], given["-c"]) == ("model.gguf", "16") and (folder / "model.gguf").exists()
    assert given["-p"] == ("It" if combination[0] == LATIN else "Все")
    assert len(made.tokenizer.encode(given["-p"])) + int(given["-n"]) == 16
    assert create == ["ollama", "create", "my-model", "-f", "Modelfile"] and (folder / "Modelfile").exists()
    assert ollama == ["ollama", "run", "my-model", given["-p"]]


def _tokenizers(text: str) -> Iterator[Any]:
    yield CharTokenizer("".join(sorted(set(text))))
    yield ByteTokenizer()
    yield BpeTokenizer.fit([text], 300)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("First Citizen:\nBefore", "First"), ("«Все смешалось»", "Все"), ("大江东去，浪淘尽", "大江东去"),
        ("مرحبا", "مرحبا"), ("हिन्दी", "ह"),
        ("😀🙂", "😀"), ("'\"$`", "'\"$`"), ("\n \n", None), ("\ufffd\ufffdation of", "ation"),
        ("Donaudampfschifffahrtsgesellschaft", "Donaudampfschifffahr"),
    ],
)  # fmt: skip
def test_an_example_prompt_is_a_word_of_the_text(text: str, prompt: str | None) -> None:
    for tokenizer in _tokenizers(text * 3):
        for room in (1, 4, 64):
            found = example_prompt(text, tokenizer, room)
            ids = tokenizer.encode(found)
            assert 1 <= len(ids) <= room and tokenizer.decode(ids) == found
            if room == 64 and prompt is not None:
                assert found.startswith(prompt)
