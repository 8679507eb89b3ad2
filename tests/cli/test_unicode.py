"""Prompts and texts that look like the training text, but are written in other characters."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import groundling
from conftest import Run as Cli
from groundling.cli.chat import Session
from groundling.config import Sampling
from groundling.run.run import Run
from groundling.training.events import Notice
from tiny import TINY

TEXT = 'Ein Café, größer und schöner: "für dich", sagte er.\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("unicode")
    (folder / "t.txt").write_text(TEXT * 40, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        patch.setenv("GROUNDLING_RUNS", str(folder / "runs"))
        settings = TINY | {"steps": 2, "warmup_steps": 0, "n_layer": 1}
        return groundling.train(folder / "t.txt", name="u", on_event=lambda _: None, **settings)


def test_a_prompt_in_another_form_is_converted_and_said(run: Run, cli: Cli) -> None:
    made = [
        cli("sample", run.folder, "--prompt", prompt, "--seed", 1, "--json")
        for prompt in ("Café", unicodedata.normalize("NFD", "Café"))
    ]
    assert json.loads(made[0].out)[0]["text"] == json.loads(made[1].out)[0]["text"]
    assert "The prompt was converted to the Unicode form NFC" not in made[0].err
    assert made[1].err.count("note: The prompt was converted to the Unicode form NFC, as the tokenizer knows it:") == 1


def test_a_chat_says_it_and_a_server_does_the_same(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(run, Sampling(seed=1), 5, {})
    assert session.take(unicodedata.normalize("NFD", "Café"))
    assert capsys.readouterr().err.count("note: The prompt was converted to the Unicode form NFC") == 1
    loaded_model = pytest.importorskip("groundling.web.loaded_model")
    (served,) = loaded_model.open_runs([run])
    assert served.prompt_ids("Cafe\u0301\r\n") == run.tokenizer.encode("Café\n")


def test_a_prompt_with_a_look_alike_is_refused_with_one_that_works(run: Run, cli: Cli) -> None:
    refused = cli("sample", run.folder, "--prompt", "“für")
    assert refused.status == 1 and """The vocabulary has '"' (U+0022): write '"für', or drop""" in refused.err
    assert cli("sample", run.folder, "--prompt", '"für').status == 0


def test_a_text_in_another_form_is_refused_with_a_command_that_converts_it(run: Run, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "nfd.txt"
    path.write_text(unicodedata.normalize("NFD", TEXT * 3), encoding="utf-8")
    refused = cli("eval", run.folder, "--text", path)
    assert "The vocabulary has it in the Unicode form NFC" in refused.err
    command = refused.err.partition("To write a converted copy: `")[2].partition("`")[0]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    path.write_text(TEXT * 3, encoding="utf-8")
    converted, composed = (
        json.loads(cli("eval", run.folder, "--text", file, "--json").out) for file in (tmp_path / "nfd.clean.txt", path)
    )
    assert converted["loss"] == composed["loss"] and converted["notes"] == []


def test_an_evaluation_says_what_it_left_out(run: Run, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("€1 " + TEXT * 2, encoding="utf-8")
    made = cli("eval", run.folder, "--text", tmp_path / "x.txt", "--unknown", "skip")
    assert "note: 2 characters of the text were dropped (--unknown skip), so nothing counts them." in made.err


def test_a_tokenizer_that_normalizes_is_said(write: Callable[..., Path], cli: Cli) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    path = write("theirs.json", made.to_str())
    sentence = "The tokenizer normalizes texts (NFC, Lowercase): one that would not decode to itself is refused."
    shown = cli("tokenizer", "show", path, "--text", "small")
    assert shown.status == 0 and f"note: {sentence}" in shown.err
    refused = cli("tokenizer", "show", path, "--text", "Big")
    assert "This tokenizer changes the text (NFC, Lowercase): 'Big' at position 0 would not decode" in refused.err
    text = write("small.txt", "only small letters\n" * 60)
    settings = TINY | {"steps": 1, "warmup_steps": 0, "n_layer": 1, "tokenizer": str(path)}
    said: list[Any] = []
    trained = groundling.train(text, name="t", on_event=said.append, **settings)
    assert [event.sentence for event in said if isinstance(event, Notice) and "normalizes" in event.sentence] == [
        sentence
    ]
    big = write("big.txt", "Only small letters\n" * 30)
    evaluated = cli("eval", trained.folder, "--text", big, "--unknown", "skip")
    assert "note: The figures are about the text as the tokenizer changes it (NFC, Lowercase)." in evaluated.err
