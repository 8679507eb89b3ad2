"""What a shell expands or leaves as it is: home folders, variables, patterns, quotes, dashes, escapes and pipes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
from options import options

import groundling
from groundling.config import CorpusSettings, slip
from groundling.config.setting import flags
from groundling.escape import unescaped

PATHS = [(name, argument.names[0]) for name, argument in options() if Path in (argument.hint, *get_args(argument.hint))]
# Paths that are options of text: they may also be names.
REFERENCES = [("train", "--tokenizer"), ("train", "--init-from"), ("eval", "--text")]
WORDS = {
    "train": "prose.txt --preset nano --steps 1", "resume": "first", "sample": "first", "chat": "first",
    "eval": "first", "serve": "first", "inspect": "prose.txt", "import": "nowhere", "export": "first --to gguf",
    "runs": "", "studio": "", "tasks": "sums --n 2", "explain": "first", "plot": "first", "report": "first",
    "demo": "", "sft": "first nowhere", "dpo": "first nowhere", "reward": "first nowhere", "grpo": "first --task sums",
    "distill": "first first nowhere", "eject": "first", "share": "first",
    "course": "", "course start": "1", "course run": "1", "course check": "1", "course bundle": "nowhere",
    "course submit": "first --author Ada", "course board": "nowhere",
    "tokenizer train": "prose.txt --kind char",
    "tokenizer export": "first",
}  # fmt: skip
# A file of this name is nowhere, and none is made.
SLIPS = {
    "$HOME/x": "your shell did not replace $HOME.", "${HOME}/x": "your shell did not replace ${HOME}.",
    "$env:USERPROFILE\\x": "your shell did not replace $env:USERPROFILE.",
    "%USERPROFILE%\\x": "your shell did not replace %USERPROFILE%.", "'x'": "the quotes are part of the path.",
    "“x”": "the quotes are part of the path.", "–out": "a dash that is not a hyphen", "file:///x": "it is a URL.",
    "https://example.org/x": "it is a URL.", "x ": "it begins or ends with a space or line break.",
    "x\n": "it begins or ends with a space or line break.", "x*.txt": "it is a pattern that no file matches.",
}  # fmt: skip


@pytest.mark.parametrize(("command", "option"), [*PATHS, *REFERENCES], ids=str)
@pytest.mark.usefixtures("first", "text_file")
def test_every_path_explains_what_the_shell_did_not_do(command: str, option: str, cli: Any) -> None:
    before = [*command.split(), *WORDS[command].split()]
    for path in ("$HOME/nowhere/x", "“x”"):
        done = cli(*([*before[:-1], path] if option == "FOLDER" else [*before, f"{option}={path}"]))
        assert (done.status, len(done.err.splitlines())) == (1, 1), done.err
        assert SLIPS[path.replace("nowhere/", "")] in done.err
    assert sorted(path.name for path in Path.cwd().iterdir()) in (["cache", "prose.txt"], ["prose.txt"])


@pytest.mark.parametrize(("path", "sentence"), SLIPS.items(), ids=repr)
def test_a_path_that_is_nowhere_shows_what_went_wrong(path: str, sentence: str) -> None:
    assert slip(path).startswith(sentence) or slip(path).startswith(f"it begins with {sentence}")


@pytest.mark.parametrize("command", ["sample", "explain", "inspect", "serve", "tokenizer show --text=a", "train"])
def test_every_argument_does(command: str, cli: Any) -> None:
    done = cli(*command.split(), "$HOME/x")
    assert (done.status, len(done.err.splitlines())) == (1, 1), done.err
    assert SLIPS["$HOME/x"] in done.err


def test_paths_that_exist_are_what_they_are() -> None:
    for name in ("$HOME", "'x'", "x ", "–out"):
        Path(name).write_text("a", encoding="utf-8")
        assert str(groundling.config.user_path("--to", name)) == name
    assert not slip("C:/x") and not slip("a$5.txt") and not slip("100%.txt") and not slip("-x")


@pytest.mark.usefixtures("text_file")
def test_a_tilde_is_the_home_folder(first: groundling.Run, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path("home").absolute()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (home / "p.txt").write_text("The ", encoding="utf-8")
    assert cli("sample", "first", "--prompt-file=~/p.txt", "--max-new-tokens=1").out.startswith("The ")
    assert cli("plot", "first", "--to=~/x.png").status == cli("report", "first", "--to", "~/x.html").status == 0
    assert cli("eval", "first", "--html=~/e.html", "--text=~/p.txt").status == 0
    assert cli("tokenizer", "train", "~/p.txt", "--kind=char", "--out=~/t.json").status == 0
    assert cli("tokenizer", "export", "~/t.json", "--out=~/hf.json").status == 0
    os.symlink(first.folder, home / "run")
    assert cli("tokenizer", "show", "~/run", "--text=T").status == 0
    for path in ("~/q.png", Path("~/r.png")):  # the functions do the same
        assert first.plot(path).parent == home
    # matplotlib makes hidden folders where it is imported for the first time.
    assert {path.name for path in home.iterdir() if not path.name.startswith(".")} == {
        "p.txt", "x.png", "x.html", "e.html", "t.json", "hf.json", "run", "q.png", "r.png",
    }  # fmt: skip
    assert "No run '~nobody/x'" in cli("plot", "~nobody/x").err  # of a user who does not exist


@pytest.mark.parametrize("option", ["--to=", "--to=.", "--to=-", "--to=nowhere/x.png", f"--to={os.devnull}"])
def test_what_cannot_be_a_file_is_refused(option: str, first: groundling.Run, cli: Any) -> None:
    done = cli("plot", "first", option)
    assert done.status in (1, 2) and "--to" in done.err and len(done.err.splitlines()) == 1
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\nb", "a\nb"),
        (r"\t\r\n", "\t\r\n"),
        (r"a\\nb", r"a\nb"),
        (r"\\\n", "\\\n"),
        (r"\alpha \d \x41 \u2603 \' C:\dir", r"\alpha \d \x41 \u2603 \' C:\dir"),
        ("a\\", "a\\"),
        ("a\nb", "a\nb"),
    ],
)
def test_escapes_mean_what_they_mean_in_c(typed: str, meant: str) -> None:
    assert unescaped(typed) == meant


def test_escapes_are_read_in_every_text(first: groundling.Run, cli: Any, text_file: Path) -> None:
    words = ("--max-new-tokens=40", "--seed=1", "--json")
    (sample,) = json.loads(cli("sample", "first", r"--prompt=The\nclass", *words).out)
    assert sample["prompt"] == "The\nclass"
    whole = first.generate("The\nclass", max_new_tokens=40, seed=1)
    stop = next(c for c in whole[5:] if c not in "\n\t")
    (stopped,) = json.loads(cli("sample", "first", r"--prompt=The\nclass", f"--stop={stop}", r"--stop=\n", *words).out)
    assert stopped["text"] == whole[: min(whole.find(each) for each in (stop, "\n") if each in whole)]
    shown = cli("tokenizer", "show", "first", "--text", r"a\nb", "--json").out
    assert [token["text"] for token in json.loads(shown)["tokens"]] == ["a", "\n", "b"]
    train = ("train", text_file, "--preset=nano", "--steps=1", "--n-embd=8", "--block-size=8", "--device=cpu", "--json")
    done = cli(*train, r"--sample-prompt=\n\n", r"--document-separator=\n\n\n")
    assert done.status == 0, done.err
    config = groundling.load(json.loads(done.out)["folder"]).config
    assert (config.training.sample_prompt, config.text.document_separator) == ("\n\n", "\n\n\n")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="has no such paths")
@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
@pytest.mark.usefixtures("first")
def test_a_prompt_comes_from_another_process(path: str) -> None:
    command = [sys.executable, "-m", "groundling", "sample", "first", "--prompt-file", path]
    done = subprocess.run(command, input="The\\n\n", capture_output=True, text=True)
    assert done.returncode == 1 and "'\\\\' (U+005C) at position 3" in done.stderr  # nothing is unescaped there


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="has no such paths")
@pytest.mark.parametrize("kind", ["/dev/fd", "fifo"])
def test_a_prompt_comes_through_a_pipe(kind: str, first: groundling.Run, cli: Any) -> None:
    words = ("sample", "first", "--max-new-tokens=2", "--seed=1", "--prompt-file")
    if kind == "fifo":
        os.mkfifo("fifo")
        threading.Thread(target=Path("fifo").write_bytes, args=(b"The class\n",), daemon=True).start()
        done = cli(*words, "fifo")
    else:
        reader, writer = os.pipe()
        os.write(writer, b"The class\n")
        os.close(writer)
        done = cli(*words, f"/dev/fd/{reader}")
        os.close(reader)
    assert done.out == "The class\n" + first.generate("The class\n", max_new_tokens=2, seed=1) + "\n", done.err


def test_a_prompt_from_standard_input(first: groundling.Run, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("The class\n", ""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        done = cli("sample", "first", "--prompt-file", "-", "--max-new-tokens=2", "--seed=1")
        assert done.out == text + first.generate(text, max_new_tokens=2, seed=1) + "\n"


def test_conversations_from_standard_input(first: groundling.Run, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept, so the run can be trained further."""
    chats = "".join(json.dumps({"prompt": f"the {word}", "completion": "class"}) + "\n" for word in ("a", "be", "see"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(chats.encode())))
    options = ["--sample-every=0", "--device=cpu", "--json"]
    done = cli("sft", "first", "-", "--steps=1", "--name=piped", *options)
    assert done.status == 0, done.err
    done = cli("resume", "piped", "--steps=2", "--json")
    assert done.status == 0 and json.loads(done.out)["step"] == 2, done.err
    run = groundling.load("piped")
    assert run.record.corpus.documents == 3 and run.record.corpus.name == "stdin"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--prompt", "“The", "class”"], "'class”' has a quotation mark that your shell does not know."),
        (["--prompt", "'The", "class'"], "has a quotation mark that your shell does not know."),
        (["–prompt", "The"], "'–prompt' begins with a dash that is not a hyphen."),
        (["—prompt=The"], "'—prompt=The' begins with a dash that is not a hyphen."),
        (["-prompt", "The"], "Options begin with two hyphens: --prompt."),
        (["--prompt", "The", "class"], "A text or a path with spaces needs quotes around it."),
        (["--promt", "The"], "Did you mean --prompt?"),
        (["--empty-stop"], "Unknown option: --empty-stop"),
        (["--no-prompt"], "Unknown option: --no-prompt"),
        (["--no-greedy"], "Unknown option: --no-greedy"),
    ],
    ids=repr,
)
def test_a_command_that_cannot_be_read_says_why(words: list[str], hint: str, cli: Any) -> None:
    done = cli("sample", "first", *words)
    assert done.status == 2 and hint in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("prompt", ["-", "-x", "--stop", "--json=1"])
def test_a_prompt_may_begin_with_hyphens(prompt: str, first: groundling.Run, cli: Any) -> None:
    expected = first.generate(prompt, max_new_tokens=2, seed=1)
    for words in (["--prompt", prompt], [f"--prompt={prompt}"]):
        done = cli("sample", *words, "--max-new-tokens=2", "--seed=1", "first")
        assert done.out == prompt + expected + "\n", done.err


def test_a_separator_may_be_hyphens(cli: Any) -> None:
    Path("a.txt").write_text("one line of words\n---\ntwo\n" * 20)
    done = cli("inspect", "a.txt", "--json", "--document-separator", "---")
    assert json.loads(done.out)["documents"] == 21


def test_an_option_of_another_command_is_not_suggested_for_itself(cli: Any) -> None:
    done = cli("tokenizer", "compare", "shakespeare", "--tokenizer", "byte")
    assert done.status and done.err == "groundling: Unknown option: --tokenizer.\n"


def test_a_printed_command_means_the_same_text() -> None:
    for text in ("\\n", "a\\\\", "\n\n", "\\"):
        words = flags(CorpusSettings(document_separator=text))
        assert words[0] == "--document-separator" and unescaped(words[1]) == text
