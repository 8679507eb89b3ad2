"""Nothing that is saved is ever found in half."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from groundling import storage

CONTENT = {"weights.bin": b"\x00\x01" * 5000, "state.json": b'{"step": 3}'}
ABOUT = {"step": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder."""
    path = tmp_path / "saved" / "step-3"
    with storage.new_folder(path, ABOUT) as temporary:
        fill(temporary)
    return path


def fill(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)


def test_a_published_folder_has_all_its_files_and_proves_it(folder: Path) -> None:
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != storage.MANIFEST} == CONTENT
    assert storage.verify(folder) == storage.read_manifest(folder) == ABOUT
    assert [p.name for p in folder.parent.iterdir()] == ["step-3"]


def test_what_is_learned_while_filling_stands_in_the_manifest(tmp_path: Path) -> None:
    about: dict[str, int] = {}
    with storage.new_folder(tmp_path / "new", about):
        about["tokens"] = 7
    assert storage.verify(tmp_path / "new") == {"tokens": 7}


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    parent = tmp_path / "saved"

    def fail() -> None:
        with storage.new_folder(parent / "x") as new:
            fill(new)
            raise failure

    with pytest.raises(failure):
        fail()
    assert list(parent.iterdir()) == []


def test_what_is_published_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="never overwritten"), storage.new_folder(folder):
        pytest.fail("the body must not run")
    assert storage.verify(folder) == ABOUT


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def lose_the_race() -> None:
        with storage.new_folder(path) as new:
            (new / "mine").write_text("mine")
            path.mkdir()
            (path / "theirs").write_text("theirs")

    with pytest.raises(OSError):
        lose_the_race()
    assert [p.name for p in path.iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced")
def test_every_file_is_on_the_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sync, on_disk = tmp_path / "x", os.fsync, set[int]()

    def record(handle: int) -> None:
        sync(handle)
        if not path.exists():
            on_disk.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(storage.os, "fsync", record)
    with storage.new_folder(path) as new:
        fill(new)
    assert on_disk == {file.stat().st_ino for file in (path, *path.iterdir())}


def test_a_truncated_file_is_found_even_without_hashing(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(CONTENT["weights.bin"][:-1])
    for check in (storage.read_manifest, storage.verify):
        with pytest.raises(ValueError, match=r"weights\.bin is damaged: it has 9999 bytes instead of 10000"):
            check(folder)


def test_a_flipped_bit_is_found(folder: Path) -> None:
    content = bytearray(CONTENT["weights.bin"])
    content[1234] ^= 1
    (folder / "weights.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.bin is damaged: its content differs from what was saved"):
        storage.verify(folder)


@pytest.mark.parametrize("name", ["state.json", storage.MANIFEST])
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for check in (storage.read_manifest, storage.verify):
        with pytest.raises(ValueError, match=f"is incomplete: .*{name}"):
            check(folder)


def test_a_folder_that_does_not_exist_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is incomplete"):
        storage.verify(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../outside.txt", "..", "", "/etc/hostname"])
def test_a_manifest_cannot_point_outside_its_folder(folder: Path, name: str) -> None:
    outside = folder.parent / "outside.txt"
    outside.write_text("secret")
    manifest = storage.read_checksummed(folder / storage.MANIFEST)
    manifest["files"][name] = {"bytes": 6, "sha256": storage.sha256(outside)}
    storage.write_checksummed(folder / storage.MANIFEST, manifest)
    with pytest.raises(ValueError, match="is incomplete"):
        storage.verify(folder)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "{}", '{"files": {}}', '{"about": {}, "files": []}', '{"about": 1, "files": {}}',
        '{"about": {}, "files": {"state.json": 5}}', '{"about": {}, "files": {"state.json": {}}}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_a_sentence_with_its_name(folder: Path, content: str | bytes) -> None:
    (folder / storage.MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        storage.read_manifest(folder)


@pytest.mark.parametrize("content", ["Größe ☃ 𝔘\r\n", b"\x00\xff\r\n"])
def test_a_file_holds_what_was_written(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("old and much longer than what comes")
    storage.write_file(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []
    storage.write_file(path, "old")
    sync = os.fsync
    monkeypatch.setattr(storage.os, "fsync", lambda handle: (seen.append(path.read_text()), sync(handle)))
    storage.write_file(path, "new")
    assert seen[0] == "old" and path.read_text() == "new"


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    storage.write_file(path, "old")

    class Full(storage.Disk):
        def write(self, path: Path, content: bytes) -> None:
            super().write(path, content[:1])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "disk", Full())
    monkeypatch.setattr(storage.retry, "WAITS", (0.0,))
    with pytest.raises(OSError, match=r"cannot be written: no space left on device\. It needs 3 bytes, and .* free"):
        storage.write_file(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_line_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuttering(storage.Disk):
        def write(self, path: Path, content: bytes) -> None:
            super().write(path, content[:5])
            if len(content) > 5:
                raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "disk", Stuttering())
    monkeypatch.setattr(storage.retry, "WAITS", (0.0,) * 9)
    path = tmp_path / "metrics.jsonl"
    storage.append_json(path, {"step": 1, "loss": 2.5})
    storage.append_json(path, {"step": 2})
    assert storage.read_json_lines(path) == [{"step": 1, "loss": 2.5}, {"step": 2}]


def test_damaged_lines_are_left_out_where_someone_is_told(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.write_bytes(b'{"step": 1}\n\0\0\0{"step": 2}\n5\n{"step": 3}\n')
    assert storage.read_json_lines(path, said.append) == [{"step": 1}, {"step": 3}]
    assert ["line 2" in said[0], "line 3" in said[1], len(said)] == [True, True, 2]


def test_what_was_verified_is_hashed_again_only_if_it_was_touched(folder: Path) -> None:
    hashed, real = [], storage.sha256
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "sha256", lambda path: (hashed.append(path.name), real(path))[1])
        assert storage.verify_once(folder) == storage.verify_once(folder) == ABOUT
        assert sorted(hashed) == sorted(CONTENT)
        content = CONTENT["weights.bin"]
        (folder / "weights.bin").write_bytes(b"\x01" + content[1:])
        os.utime(folder / "weights.bin", ns=(0, 0))
        with pytest.raises(ValueError, match="is damaged"):
            storage.verify_once(folder)


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"text": "é\n\u2028", "numbers": [1, 2.5, None, True], "nested": {"a": []}}
    storage.write_json(tmp_path / "x.json", value)
    assert storage.read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xff", b"not json"])
def test_damaged_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        storage.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo', '{"step": 3}', "\0\0\0"])
def test_json_lines_leave_out_a_torn_last_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2}\n' + torn)
    assert storage.read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_json_lines_of_no_file_are_none(tmp_path: Path) -> None:
    assert storage.read_json_lines(tmp_path / "metrics.jsonl") == []


def test_json_lines_damaged_in_the_middle_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        storage.read_json_lines(path)


def test_json_lines_read_the_nan_that_a_diverged_run_wrote(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"loss": math.nan}) + "\n")
    assert math.isnan(storage.read_json_lines(path)[0]["loss"])


def test_sweep_takes_leftovers_and_nothing_else(folder: Path) -> None:
    parent = folder.parent
    (parent / ".tmp-step-4-123").mkdir()
    (parent / ".tmp-step-4-123" / "weights.bin").write_bytes(b"half")
    (parent / ".tmp-last.json-123").write_text("{")
    (parent / ".hidden").write_text("the user's own")
    (parent / "last.json").write_text("{}")
    storage.remove_temporary(parent)
    assert sorted(p.name for p in parent.iterdir()) == [".hidden", "last.json", "step-3"]
    assert storage.verify(folder) == ABOUT


def test_sweep_of_one_name_leaves_what_others_are_writing(tmp_path: Path) -> None:
    for name in (".tmp-a-999999991", ".tmp-a-999999992", ".tmp-ab-999999991", ".tmp-b-999999991"):
        (tmp_path / name).mkdir()
    storage.remove_temporary(tmp_path, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-ab-999999991", ".tmp-b-999999991"]


def test_sweep_of_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    storage.remove_temporary(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_removed_folder_is_gone_and_can_be_made_again(folder: Path) -> None:
    storage.remove_folder(folder)
    assert list(folder.parent.iterdir()) == []
    storage.remove_folder(folder)  # once more is no error
    with storage.new_folder(folder) as new:
        fill(new)
    assert storage.verify(folder) == {}


def test_what_is_removed_loses_its_name_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(storage.Disk):
        def delete(self, path: Path) -> None:
            raise PermissionError

    monkeypatch.setattr(storage, "disk", Stuck())
    storage.remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    storage.remove_temporary(folder.parent)
    assert list(folder.parent.iterdir()) == []


def test_sealed_json_comes_back_and_no_byte_of_it_can_change(tmp_path: Path) -> None:
    path, value = tmp_path / "x.json", {"checkpoint": "step-000400", "größe": [1, 2.5, None], "nested": {"a": {}}}
    storage.write_checksummed(path, value)
    assert storage.read_checksummed(path) == value
    assert storage.read_json(path)["checkpoint"] == "step-000400"  # it is plain JSON for everyone else
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            storage.read_checksummed(path)


def test_a_folder_is_made_with_those_above_it_and_each_name_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    class Listening(storage.Disk):
        def sync(self, path: Path) -> None:
            synced.append(path.relative_to(tmp_path).as_posix())

    monkeypatch.setattr(storage, "disk", Listening())
    storage.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir() and synced == [".", "a", "a/b"]
    storage.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 3


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    """`groundling report` beside training: its page is not to be taken for what a killed process left."""
    mine, dead = tmp_path / f".tmp-report.html-{os.getppid()}", tmp_path / ".tmp-report.html-999999999"
    for path in (mine, dead):
        path.write_text("half a page")
    storage.remove_temporary(tmp_path)
    assert mine.exists() and not dead.exists()
