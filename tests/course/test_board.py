"""The class competition: who is honest is ranked, and who is not is refused, with the reason."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import groundling
from groundling import storage
from groundling.__main__ import main
from groundling.course import board as boards
from groundling.course.board import Board, Verdict, board_page, ranked, submissions
from groundling.course.submission import Entry, check_rules, read, submit, train_command
from groundling.data.progress import silent
from groundling.model.weights_file import weights_hash
from groundling.run.run import Run
from tiny import TINY

SETTINGS = TINY | {
    "steps": 12, "eval_every": 4, "checkpoint_every": 4, "sample_every": 0, "dropout": 0.1, "sample_prompt": "a\n",
}  # fmt: skip
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Path]:
    """A text, a run on it, and its submission."""
    place = tmp_path_factory.mktemp("class")
    text = place / "prose.txt"
    text.write_text(prose, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(place / "cache"))
        run = groundling.train(text, name="ada", out=place / "runs", on_event=silent, **SETTINGS)
        submit(run, "Ada", place / "ada.submission", "The ", 40, seed=1)
    return place


@pytest.fixture
def room(place: Path, tmp_path: Path) -> Path:
    """A teacher's folder with the honest submission."""
    shutil.copytree(place / "ada.submission", tmp_path / "room" / "ada.submission")
    return tmp_path / "room"


def forged(room: Path, name: str, edit: Edit = silent, file: str = "submission.json") -> Path:
    """A copy with a changed file, and the manifest that fits it: who makes a folder can do that too."""
    folder = shutil.copytree(room / "ada.submission", room / f"{name}.submission")
    value = json.loads((folder / file).read_text(encoding="utf-8"))
    edit(value)
    (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return sealed(folder)


def sealed(folder: Path) -> Path:
    manifest = storage.read_checksummed(folder / storage.MANIFEST)
    files = {name: storage.file_record(folder / name) for name in manifest["files"]}
    storage.write_checksummed(folder / storage.MANIFEST, manifest | {"files": files})
    return folder


def verdicts(room: Path, text: Path, retrain: bool = False) -> dict[str, Verdict]:
    return {each.path.removesuffix(".submission"): each for each in Board(str(text), retrain).verdicts(room)}


def test_a_submission_opens_as_a_run_and_has_neither_text_nor_paths(room: Path, place: Path) -> None:
    folder = room / "ada.submission"
    run, told = groundling.load(folder), read(folder)
    assert run.generate("The ", max_new_tokens=40, seed=1, top_k=50) == told.poem.text
    assert told.weights == weights_hash(Run(place / "runs" / "ada").checkpoint) == weights_hash(folder)
    assert not any(str(place).encode() in path.read_bytes() for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "manifest.json", "model.safetensors", "state.json", "submission.json", "tokenizer.json",
    }  # fmt: skip


def test_lies_and_damage_are_refused_with_the_reason(room: Path, place: Path) -> None:
    forged(room, "loss", lambda value: value.update(bits_per_byte=1.5))
    forged(room, "poem", lambda value: value["poem"].update(text="A rose is a rose."))
    forged(room, "text", lambda value: value.update(fingerprint="0" * 64))
    forged(room, "form", lambda value: value["poem"]["sampling"].update(temperature=-1))
    forged(room, "rules", lambda value: value["settings"]["text"].update(val_fraction=0.01), "config.json")
    changed = forged(room, "weights")
    tensors = load_file(changed / "model.safetensors")
    tensors["ln_f.weight"] += 0.01
    save_file(tensors, changed / "model.safetensors")
    sealed(changed)
    damaged = forged(room, "damage") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    linked = forged(room, "link") / "tokenizer.json"
    linked.unlink()
    linked.symlink_to(place / "prose.txt")
    (room / "empty.submission").mkdir()
    found = verdicts(room, place / "prose.txt")
    reasons = {
        "loss": "It claims 1.5000 bits per byte, and has ",
        "poem": "Its model writes another poem from this prompt and seed.",
        "text": "It was trained on another text than the board's, prose.",
        "form": "submission.json is not valid: poem.sampling: value error, --temperature must be at least 0",
        "rules": "was trained on a part of the last 10% of the text",
        "weights": "Its weights are not the ones that submission.json names.",
        "damage": "model.safetensors is damaged: its content differs from what was saved.",
        "link": "is a link that leads out of its folder",
        "empty": "empty.submission has no submission.json.",
    }
    assert found.keys() == {"ada", *reasons}
    for name, reason in reasons.items():
        assert reason in found[name].refused
    honest = found["ada"]
    assert (honest.refused, honest.loss_verdict, honest.poem_verdict) == ("", "same to the bit", "same")
    assert honest.copied_words == "nothing"
    assert honest.poem == read(room / "ada.submission").poem.text


def test_another_kind_of_machine_is_compared_within_a_tolerance(room: Path, place: Path) -> None:
    def elsewhere(value: dict[str, Any]) -> None:
        value["bits"]["processor"] = "another"
        value["bits_per_byte"] += 5e-5
        value["poem"]["text"] = value["poem"]["text"][:7] + "☃" + value["poem"]["text"][8:]

    forged(room, "far", elsewhere)
    found = verdicts(room, place / "prose.txt")["far"]
    assert found.loss_verdict == "same within 0.0001 (another kind of machine)"
    assert found.poem_verdict == "differs from character 8 on (another kind of machine)"
    assert "☃" not in found.poem


def test_training_again_gives_the_same_bits_or_tells(room: Path, place: Path) -> None:
    forged(room, "seed", lambda value: value["settings"]["training"].update(seed=7), "config.json")
    forged(room, "short", lambda value: _by_the_clock(value, 6), "config.json")
    forged(room, "clock", lambda value: _by_the_clock(value, 12), "config.json")
    found = verdicts(room, place / "prose.txt", retrain=True)
    assert found["ada"].training_verdict == "same to the bit"
    assert found["seed"].refused == "Trained again from its settings and seed, it has other weights."
    assert "bits per byte (its schedule followed the clock). 0.05 would be allowed." in found["short"].refused
    assert found["clock"].training_verdict == "same within 0.05 (its schedule followed the clock)"


def _by_the_clock(value: dict[str, Any], steps: int) -> None:
    value["settings"]["training"] |= {"minutes": 1.0, "steps": steps, "learning_rate": 2.9e-3}


def test_the_command_trains_it_again(room: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = read(room / "ada.submission")
    assert told.command == train_command(Run(place / "runs" / "ada").config)
    monkeypatch.chdir(place)
    monkeypatch.setenv("GROUNDLING_RUNS", str(room / "runs"))
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(told.command)[1:])
    assert not ended.value.code
    assert weights_hash(groundling.load("prose").checkpoint) == told.weights


def test_a_stopped_board_continues(room: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged(room, "bob", lambda value: value.update(author="Bob"))
    checked, original = list[str](), Board._checked

    def stopped_at_bob(self: Board, path: Path, *others: Any) -> Verdict:
        checked.append(path.name)
        if len(checked) == 2:
            raise KeyboardInterrupt
        return original(self, path, *others)

    monkeypatch.setattr(Board, "_checked", stopped_at_bob)
    with pytest.raises(KeyboardInterrupt):
        verdicts(room, place / "prose.txt")
    first = verdicts(room, place / "prose.txt")
    assert checked == ["ada.submission", "bob.submission", "bob.submission"]
    assert verdicts(room, place / "prose.txt") == first
    assert [each.same_as for each in ranked(list(first.values()))] == ["Bob", "Ada"]


def test_a_copied_poem_is_told(room: Path, place: Path, prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = prose[1000:1100]
    monkeypatch.setattr(Entry, "stream", lambda *_: iter([copied]))
    forged(room, "copy", lambda value: value["poem"].update(text=copied))
    found = verdicts(room, place / "prose.txt")["copy"]
    assert found.copied_words == "word for word"
    assert found.pieces == [(copied, True)]
    assert dataclasses.replace(found, copied=0.25).copied_words == "25%"


def test_a_tokenizer_that_leaves_text_out_is_refused(room: Path, place: Path) -> None:
    board = Board(str(place / "prose.txt"))
    board.end = board.end.replace(b"e", b"E")
    (found,) = board.verdicts(room)
    assert found.refused == "Its tokenizer changes the text, so its loss cannot be compared."


def test_who_cannot_take_part_is_told(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place / "runs" / "ada", tmp_path / "runs" / "ada")
    run = Run(folder)
    with pytest.raises(ValueError, match="not the best checkpoint"):
        submit(Run(folder, folder / "checkpoints" / "step-000008"), "Ada")
    with pytest.raises(ValueError, match="--author must have 1 to 100 characters"):
        submit(run, " ")
    with pytest.raises(ValueError, match="--max-new-tokens must be at most 5,000"):
        submit(run, "Ada", max_new_tokens=5001)
    config = run.config
    for reason, other in {
        "was made by sft": dataclasses.replace(config, task="sft"),
        "continues another run": dataclasses.replace(
            config, training=dataclasses.replace(config.training, init_from="x")
        ),
        "tokenizer that was not learned": dataclasses.replace(
            config, text=dataclasses.replace(config.text, tokenizer="bpe")
        ),
    }.items():
        changed = Run(folder)
        changed.record = run.record.model_copy(update={"settings": other})
        with pytest.raises(ValueError, match=f"The run ada cannot take part: it .*{reason}"):
            check_rules(changed)
    (folder / "result.json").unlink()
    with pytest.raises(ValueError, match="The run ada is not finished"):
        submit(Run(folder), "Ada")
    assert not list(tmp_path.glob("*.submission"))


def test_the_commands(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["course", *map(str, words)])
        return int(ended.value.code or 0), *capsys.readouterr()

    run, room = place / "runs" / "ada", tmp_path / "room"
    room.mkdir()
    author = "<b>Ada</b> \u202eL."
    status, out, _ = said("submit", run, "--author", author, "--prompt", "The ", "--max-new-tokens", 20, "--out", room)
    assert status == 0
    assert out.startswith("The ")
    (folder,) = submissions(room)
    assert folder.name == "b-ada-b-l.submission"
    assert said("submit", run, "--author", author, "--out", room)[0] == 1, "a submission was overwritten"
    (room / "lost.submission").mkdir()
    status, out, err = said("board", room, "--text", place / "prose.txt", "--html", "board.html")
    assert status == 0
    assert "<b>Ada</b> \ufffdL." in out
    assert "✗ lost (lost.submission) is refused. lost.submission has no submission.json." in out
    assert "checking b-ada-b-l.submission (1 of 2)" in err
    page = Path("board.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Ada&lt;/b&gt; \ufffdL." in page
    assert "http" not in page.replace("http-equiv", "")
    first, second = json.loads(said("board", room, "--text", place / "prose.txt", "--json")[1])
    assert (first["author"], second["author"]) == (author, "lost")
    status, _, err = said("board", tmp_path / "nowhere", "--text", place / "prose.txt")
    assert status == 1
    assert "is not a folder. Give the folder with the submissions." in err


def test_a_stopped_board_says_the_same_command(
    room: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: Board, folder: Path) -> Iterator[Verdict]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Board, "verdicts", stopped)
    words = [
        "course",
        "board",
        str(room),
        "--text",
        str(place / "prose.txt"),
        "--html",
        "b.html",
        "--retrain",
        "--json",
    ]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    said = capsys.readouterr().err.split("`")[1]
    assert shlex.split(said) == ["groundling", *words]


def test_a_board_without_an_honest_one_is_a_page_too() -> None:
    page = board_page([Verdict("a.submission", "a", refused="It lies.")], "text")
    assert "No submission has passed the checks." in page
    assert "It lies." in page


def test_a_damaged_cache_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    for content in (b"", b"{}", b'{"format": 1, "verdict": {"path": "a"}}'):
        file.write_bytes(content)
        assert boards._kept(file) is None
