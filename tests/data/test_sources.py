"""Text from everywhere: found, decoded strictly, or refused in one clear sentence."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import random
import re
import socket
import subprocess
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data import files, sources
from groundling.data.files import TextFile, read_bytes, read_text
from groundling.data.sources import Source, find_source

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"


def text_of(source: Source, notice: Callable[[str], None] = print) -> list[str]:
    return ["".join(document.chunks) for file in source.files for document in source.documents(file, notice)]


def file_of(path: Path) -> TextFile:
    return find_source(path).files[0]


# --- Tiny Shakespeare, from a server of our own


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Serves `content`, counts `requests`; the program believes that it is where Tiny Shakespeare lies."""
    state = SimpleNamespace(content=TEXT.encode(), requests=0, status=200, promised=None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            self.send_response(state.status)
            self.send_header("Content-Length", str(state.promised or len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(sources, "SHAKESPEARE_URL", f"http://127.0.0.1:{http.server_port}/input.txt")
        monkeypatch.setattr(sources, "SHAKESPEARE_SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
        yield state
        http.shutdown()
        thread.join()


def cached() -> list[Path]:
    folder = storage.cache_folder() / "corpora"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_shakespeare_is_downloaded_once(server: SimpleNamespace) -> None:
    first = find_source("shakespeare")
    assert (first.name, first.addresses, text_of(first)) == ("shakespeare", ("shakespeare",), [TEXT])
    assert text_of(find_source("shakespeare")) == [TEXT]
    assert server.requests == 1
    assert [path.name for path in cached()] == ["shakespeare.txt"]


@pytest.mark.parametrize("content", [TEXT.upper().encode(), b"", b"<html>Please log in to the wireless network</html>"])
def test_tampered_shakespeare_is_refused_and_not_kept(server: SimpleNamespace, content: bytes) -> None:
    server.content = content
    with pytest.raises(ValueError, match=r"is not Tiny Shakespeare \(its SHA-256 differs\), and was deleted\.$"):
        find_source("shakespeare")
    assert cached() == []


def test_a_damaged_shakespeare_in_the_cache_is_downloaded_again(server: SimpleNamespace) -> None:
    find_source("shakespeare")
    cached()[0].write_text(TEXT[:-10])
    assert text_of(find_source("shakespeare")) == [TEXT]
    assert server.requests == 2


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("HTTP_PROXY", "socks5://127.0.0.1:1", r" \(Missing dependencies for SOCKS support\.\)"),
        ("HTTP_PROXY", "nonsense://x", r" \(.*\)"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConnectionError, match=rf"cannot be downloaded from \S*{why}\.$"):
        find_source("shakespeare")


@pytest.mark.parametrize("failure", ["not found", "cut off"])
def test_a_failed_download_is_one_sentence_and_not_kept(server: SimpleNamespace, failure: str) -> None:
    if failure == "not found":
        server.status = 404
    else:
        server.promised = 10 * len(TEXT)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded from http://127\.0\.0\.1:\d+/input\.txt\.$"):
        find_source("shakespeare")
    assert cached() == []


def test_offline_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:  # bound and not listening: nothing answers there
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(sources, "SHAKESPEARE_URL", f"http://127.0.0.1:{free.getsockname()[1]}/input.txt")
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match=r"^Tiny Shakespeare is not in .* cannot be downloaded from .*\.$"):
            find_source("shakespeare")
        assert time.monotonic() - begun < 5
    assert cached() == []


def test_what_was_downloaded_once_is_there_offline(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    find_source("shakespeare")
    monkeypatch.setattr(sources, "SHAKESPEARE_URL", "http://127.0.0.1:1/input.txt")
    assert text_of(find_source("shakespeare")) == [TEXT]


def test_a_folder_of_ones_own_goes_before_a_name(write: Callable[..., Path]) -> None:
    write("shakespeare/sonnet.txt", "Shall I compare thee")
    assert text_of(find_source("shakespeare")) == ["Shall I compare thee"]


def test_python_docs_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    source = find_source("python-docs")
    texts = text_of(source)
    assert len(texts) > 50 and source.size == sum(len(text.encode()) for text in texts) > 400_000
    assert any("assignment" in text.lower() for text in texts)


# --- files


def test_a_file_is_one_document(write: Callable[..., Path]) -> None:
    path = write("plays/hamlet.act1.txt", TEXT)
    source = find_source("plays/hamlet.act1.txt")
    assert (source.name, source.addresses) == ("hamlet.act1", (str(path.resolve()),))
    assert text_of(source) == [TEXT]
    assert source.size == len(TEXT.encode()) and source.notices == ()


@pytest.mark.parametrize("given", [str, Path])
def test_a_file_is_given_as_text_or_path(write: Callable[..., Path], given: Callable[[Path], str | Path]) -> None:
    assert text_of(find_source(given(write("a.txt", TEXT)))) == [TEXT]


def test_a_home_folder_is_found_by_its_tilde(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.txt", TEXT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert text_of(find_source("~/a.txt")) == [TEXT]


def test_a_gzip_file_is_read_uncompressed(write: Callable[..., Path]) -> None:
    source = find_source(write("hamlet.txt.gz", gzip.compress(TEXT.encode())))
    assert source.name == "hamlet" and text_of(source) == [TEXT]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_gzip_file_is_refused(write: Callable[..., Path], damage: str) -> None:
    whole = gzip.compress(random.Random(0).randbytes(20_000))
    flipped = bytearray(whole)
    flipped[9000] ^= 0xFF
    content = {"truncated": whole[:-2000], "flipped": flipped}[damage]
    path = write("a.txt.gz", content)
    with pytest.raises(OSError, match=r"a\.txt\.gz is damaged: its compressed data is incomplete or wrong\.$"):
        b"".join(read_bytes(file_of(path)))


def test_one_byte_is_a_text(write: Callable[..., Path]) -> None:
    assert text_of(find_source(write("a.txt", "x"))) == ["x"]


def test_line_ends_and_odd_characters_stay_as_they_are(write: Callable[..., Path]) -> None:
    text = "a\r\nb\rc\n\x85\u2028\ufeffe\u0301 𝔘 \x00"
    write("a.txt", "x" * 9000 + text)  # a NUL byte far from the start is a character like others
    assert text_of(find_source("a.txt")) == ["x" * 9000 + text]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("shakespear", r" \(did you mean 'shakespeare'\?\)"),
        ("Python-doc", r" \(did you mean 'python-docs'\?\)"),
        ("my.txt", "; built-in corpora: shakespeare, python-docs"),
        ("x" * 400, "; built-in corpora: shakespeare, python-docs"),
    ],
)
def test_what_does_not_exist_suggests_what_does(name: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^There is no corpus '{name}': no such file or folder{hint}\.$"):
        find_source(name)


def test_an_empty_name_is_not_the_working_folder(write: Callable[..., Path]) -> None:
    write("private.txt", TEXT)
    with pytest.raises(ValueError, match="corpus name is empty"):
        find_source("")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such devices here")
def test_devices_without_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^/dev/null is empty\. Pipe a text into it, or give a file\.$"):
        find_source("/dev/null")
    with pytest.raises(ValueError, match=r"^/dev/zero is neither a file nor a folder\.$"):
        find_source("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(write: Callable[..., Path]) -> None:
    path = write("a.txt", TEXT)
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"a\.txt cannot be read: permission denied\.$"):
        text_of(find_source(path))


def test_a_refused_permission_is_a_sentence(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_source(write("a.txt", TEXT))

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"^\S*a\.txt cannot be read: permission denied\.$"):
        text_of(source)


@pytest.mark.parametrize("corpus", ["a.txt", "-", "shakespeare", "python-docs"])
def test_a_glob_is_for_folders_only(write: Callable[..., Path], corpus: str) -> None:
    write("a.txt", TEXT)
    with pytest.raises(ValueError, match=rf"--glob chooses files of a folder, but {corpus} is not a folder\."):
        find_source(corpus, CorpusSettings(glob="*.txt"))


# --- folders


@pytest.fixture
def library(write: Callable[..., Path], tmp_path: Path) -> Path:
    for name, content in {
        "b.txt": "B", "a.md": "A", "deep/er/c.txt": "C", "a.d/z.txt": "Z", "notes.txt.gz": gzip.compress(b"N"),
        ".hidden": "no", ".git/config": "no", "deep/.secret/x.txt": "no",
    }.items():  # fmt: skip
        write(f"library/{name}", content)
    return tmp_path / "library"


def names(source: Source, folder: Path) -> list[str]:
    assert [Path(file.name) for file in source.files] == [folder / file.short for file in source.files]
    return [file.short for file in source.files]


def test_a_folder_gives_every_file_below_it_in_sorted_order_without_hidden_ones(library: Path) -> None:
    source = find_source("library")
    assert names(source, library) == ["a.d/z.txt", "a.md", "b.txt", "deep/er/c.txt", "notes.txt.gz"]
    assert text_of(source) == ["Z", "A", "B", "C", "N"]
    assert (source.name, source.addresses) == ("library", (str(library.resolve()),))
    size = sum((library / name).stat().st_size for name in names(source, library))
    hidden = "Left out 3: 3 hidden (.git, .hidden, deep/.secret)."
    assert source.notices == (f"Reading 5 files ({size} bytes). {hidden}",)


@pytest.mark.parametrize(
    ("glob", "chosen"),
    [
        ("*.txt", ["a.d/z.txt", "b.txt", "deep/er/c.txt"]),
        ("c.*", ["deep/er/c.txt"]),
        ("deep/*/*", ["deep/er/c.txt"]),
        ("[ab].[mt]*", ["a.md", "b.txt"]),
        ("**/*.txt", ["a.d/z.txt", "b.txt", "deep/er/c.txt"]),
        ("*.{txt,md}", ["a.d/z.txt", "a.md", "b.txt", "deep/er/c.txt"]),
        ("deep/**/*.txt", ["deep/er/c.txt"]),
        ("./a.*", ["a.md"]),
    ],
)
def test_a_glob_chooses_by_name_or_path(library: Path, glob: str, chosen: list[str]) -> None:
    assert names(find_source(library, CorpusSettings(glob=glob)), library) == chosen


def test_binary_and_empty_files_of_a_folder_are_left_out_and_said(library: Path) -> None:
    (library / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (library / "empty.txt").write_bytes(b"")
    (library / "utf16.txt").write_text("UTF-16 has zero bytes and is text", encoding="utf-16")
    source = find_source(library)
    assert "Left out 5: 3 hidden (" in source.notices[0]
    assert source.notices[0].endswith("1 empty (empty.txt), 1 binary (logo.png).")
    assert [n for n in names(source, library) if "." in n and n.split(".")[0] in ("logo", "empty", "utf16")] == [
        "utf16.txt"
    ]


def test_many_files_left_out_are_counted_and_some_named(library: Path) -> None:
    for i in range(5):
        (library / f"e{i}").touch()
    assert find_source(library).notices[0].endswith("5 empty (e0, e1, e2, …).")


def test_a_binary_file_that_a_glob_asks_for_is_refused_not_skipped(library: Path) -> None:
    (library / "x.dat").write_bytes(b"\0\1\2\3" * 10)
    with pytest.raises(ValueError, match=r"x\.dat is a binary file, not text"):
        text_of(find_source(library, CorpusSettings(glob="*.dat")))


@pytest.mark.parametrize(
    ("glob", "sentence"),
    [
        (None, r"has no text files\. Left out 1: 1 binary \(x\.bin\)\.$"),
        ("*.rst", r"has no text files that match '\*\.rst'\. Left out 1: 1 not ma"),
    ],
)
def test_a_folder_without_text_is_refused(tmp_path: Path, glob: str | None, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.bin").write_bytes(b"\0" * 10)
    with pytest.raises(ValueError, match=sentence):
        find_source(tmp_path / "empty", CorpusSettings(glob=glob))


def test_a_symlink_loop_ends(library: Path) -> None:
    try:
        (library / "deep" / "up").symlink_to(library, target_is_directory=True)
        (library / "self.txt").symlink_to(library / "self.txt")
    except OSError:
        pytest.skip("no symbolic links here")
    source = find_source(library)
    assert len(source.files) == 5
    assert source.notices[0].endswith("1 read already (deep/up), 1 dead link (self.txt).")


def test_a_folder_that_cannot_be_listed_is_not_left_out_in_silence(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match=r"deep cannot be read: permission denied\.$"):
        find_source(library)


# --- standard input


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_standard_input_is_kept_where_its_address_says(pipe: Callable[[bytes], None]) -> None:
    pipe(TEXT.encode())
    source = find_source("-")
    assert text_of(source) == [TEXT] and source.files[0].name == "standard input"
    again = find_source(source.addresses)  # as a run that is continued finds it
    assert text_of(again) == [TEXT]
    assert storage.cache_folder() in Path(source.addresses[0]).parents


def test_the_same_input_is_kept_once(pipe: Callable[[bytes], None]) -> None:
    addresses = set()
    for content in (b"one", b"two", b"one"):
        pipe(content)
        addresses.update(find_source("-").addresses)
    assert len(addresses) == 2
    assert sorted(Path(a).name for a in addresses) == sorted(p.name for p in Path(addresses.pop()).parent.iterdir())


def test_half_a_copy_of_standard_input_is_not_used(pipe: Callable[[bytes], None]) -> None:
    pipe(TEXT.encode())
    kept = Path(find_source("-").addresses[0])
    kept.write_text(TEXT[:20])
    pipe(TEXT.encode())
    assert text_of(find_source("-")) == [TEXT]


def test_empty_standard_input_is_refused(pipe: Callable[[bytes], None]) -> None:
    pipe(b"")
    with pytest.raises(ValueError, match="Standard input is empty"):
        find_source("-")


# --- decoding


@pytest.mark.parametrize("chunk", [5, 7, 8, 4 * 2**20])
@pytest.mark.parametrize(
    ("before", "bad", "offset", "line"),
    [
        ("", b"\xff", 0, 1),
        ("abc\nde\n", b"\xe9t\xe9", 7, 3),
        ("é☃𝔘\n" * 9, b"\x80", 90, 10),
        ("ab\n", b"\xed\xa0\x80", 3, 2),  # a surrogate
        ("ab\n", b"\xc0\xaf", 3, 2),  # an overlong form
    ],
)
def test_the_first_byte_that_is_not_utf8_is_named(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    chunk: int, before: str, bad: bytes, offset: int, line: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = write("a.txt", before.encode() + bad + b" and more\n" * 3)
    with pytest.raises(ValueError) as refused:
        text_of(find_source(path))
    assert str(refused.value) == (
        f"{path} is not valid UTF-8: byte 0x{bad[0]:02X} in line {line}, at offset {offset}. "
        "Convert the file to UTF-8, or fix that byte."
    )


@pytest.mark.parametrize("chunk", [5, 6, 7, 1024])
@pytest.mark.parametrize("cut", [b"\xe2", b"\xe2\x98", b"\xf0\x9d\x94"])
def test_a_character_cut_off_at_the_end_is_named(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, chunk: int, cut: bytes
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = write("a.txt", b"one\ntwo" + cut)
    with pytest.raises(ValueError, match=rf"byte 0x{cut[0]:02X} in line 2, at offset 7\."):
        text_of(find_source(path))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_chunks_give_the_same_text_wherever_they_cut(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file = file_of(write("a.txt", text))
    for chunk in (3, 4, 5, 4096):
        monkeypatch.setattr(files, "CHUNK", chunk)
        assert "".join(read_text(file)) == text


@pytest.mark.parametrize("chunk", [5, 4 * 2**20])
@pytest.mark.parametrize(
    ("bom", "encoding", "said"),
    [
        (codecs.BOM_UTF8, "utf-8", "begins with a UTF-8 byte-order mark, which is dropped."),
        (codecs.BOM_UTF16_LE, "utf-16-le", "is UTF-16 text."),
        (codecs.BOM_UTF16_BE, "utf-16-be", "is UTF-16 text."),
        (codecs.BOM_UTF32_LE, "utf-32-le", "is UTF-32 text."),
        (codecs.BOM_UTF32_BE, "utf-32-be", "is UTF-32 text."),
    ],
)
def test_a_byte_order_mark_is_understood_left_out_and_said(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, chunk: int, bom: bytes, encoding: str, said: str
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path, notices = write("a.txt", bom + "Größe ☃ 𝔘\n".encode(encoding)), list[str]()
    assert text_of(find_source(path), notices.append) == ["Größe ☃ 𝔘\n"]
    assert notices == [f"{path} {said}"]


def test_a_bad_place_in_utf16_is_named_as_well(write: Callable[..., Path]) -> None:
    # U+010A and U+0A0A have the byte of a line feed in them and are none.
    path = write("a.txt", codecs.BOM_UTF16_LE + "Ċ\u0a0a\nab".encode("utf-16-le") + b"\x00\xd8x\x00")
    with pytest.raises(ValueError, match=r"not valid UTF-16-LE: byte 0x00 in line 2, at offset 12\."):
        text_of(find_source(path))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_byte_order_mark_is_refused_by_name(write: Callable[..., Path], encoding: str) -> None:
    with pytest.raises(ValueError, match=r"looks like UTF-16 text without a byte-order mark\. Convert it to UTF-8"):
        text_of(find_source(write("a.txt", TEXT.encode(encoding))))


@pytest.mark.parametrize(
    "content", [b"\x7fELF\x02\x01\x01" + b"\0" * 9 + bytes(range(256)) * 4, b"\0", b"abc\0def\0\xff"]
)
def test_a_binary_file_is_refused_by_name(write: Callable[..., Path], content: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.txt is a binary file, not text\.$"):
        text_of(find_source(write("a.txt", content)))


def test_a_nul_byte_in_a_text_is_named_by_its_place(write: Callable[..., Path]) -> None:
    path = write("it's.txt", b"abc\ndef\0ghi" * 2)
    with pytest.raises(
        ValueError, match=r"it's\.txt has a NUL byte in line 2, at offset 7: it is binary or damaged\."
    ) as refused:
        find_source(path)
    command = re.search("`(.*)`", str(refused.value))[1]  # type: ignore[index]
    subprocess.run(command, shell=True, check=True, executable="/bin/bash")
    assert text_of(find_source("clean.txt")) == ["abc\ndefghi" * 2]


def test_a_pointer_of_git_lfs_is_named(write: Callable[..., Path]) -> None:
    path = write("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(ValueError, match=r"a\.txt is a pointer to a file in Git LFS, .*: `git lfs pull`\.$"):
        find_source(path)


def test_a_text_in_place_of_a_path_is_not_repeated() -> None:
    with pytest.raises(FileNotFoundError, match=r"^The corpus is the path of a file, not a text: .{,120}$"):
        find_source("To be, or not to be\n" * 99)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become someone else")
def test_a_file_in_a_folder_without_rights_is_not_called_missing(write: Callable[..., Path], tmp_path: Path) -> None:
    write("mine/a.txt", TEXT).parent.chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"mine/a\.txt cannot be read: permission denied\.$"):
            find_source("mine/a.txt")
    finally:
        os.seteuid(0)


def test_progress_counts_every_byte(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 7)
    source, counted = find_source(write("a.txt", codecs.BOM_UTF8 + "☃𝔘é\n".encode() * 5)), list[int]()
    for _ in read_text(source.files[0], progress=counted.append):
        pass
    assert sum(counted) == source.size and max(counted) <= 7


def test_a_name_means_the_corpus_where_a_run_of_that_name_lies(write: Callable[..., Path]) -> None:
    """`groundling eval shakespeare` in the folder of runs must not read the logs of that run."""
    write("python-docs/notes.txt", "my own")
    assert find_source("python-docs").addresses != ("python-docs",)  # a folder of one's own goes before a name, ...
    assert find_source("python-docs", stored=True).addresses == ("python-docs",)  # but not where a run has stored it
    write("python-docs/checkpoints/last.json", "{}")
    assert find_source("python-docs").addresses == ("python-docs",)


# --- several inputs, and what is no text


def test_several_inputs_are_one_text_in_their_order(library: Path, write: Callable[..., Path]) -> None:
    first = write("x.txt", "X")
    source = find_source([library / "deep", "x.txt", library / "a.md", "x.txt"])
    assert text_of(source) == ["C", "X", "A"]
    assert source.name == "deep and 3 more"
    assert source.addresses == (str(library / "deep"), str(first), str(library / "a.md"), str(first))
    assert source.notices == ("Reading 3 files (3 bytes). Left out 2: 1 hidden (.secret), 1 read already (x.txt).",)
    assert text_of(find_source(source.addresses, stored=True)) == ["C", "X", "A"]


def test_a_pattern_that_the_shell_left_alone_is_expanded(library: Path) -> None:
    assert text_of(find_source("library/**/*.txt")) == ["Z", "B", "C"]
    assert text_of(find_source(["library/{a,b}.*", "library/deep"])) == ["Z", "A", "B", "C"]
    with pytest.raises(FileNotFoundError, match=r"no corpus 'library/\*\.rst': it is a pattern that no file matches"):
        find_source("library/*.rst")


def test_a_name_with_a_pattern_in_it_is_that_file(write: Callable[..., Path]) -> None:
    write("a[1].txt", "one")
    write("a1.txt", "no")
    assert text_of(find_source("a[1].txt")) == ["one"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_in_either_normal_form(write: Callable[..., Path], form: str) -> None:
    write(unicodedata.normalize(form, "Café.txt"), TEXT)
    for given_form in ("NFC", "NFD"):
        assert text_of(find_source(unicodedata.normalize(given_form, "Café.txt"))) == [TEXT]


def test_links_are_followed_once(library: Path, write: Callable[..., Path]) -> None:
    write("outside/one.txt", "1")
    write("outside/sub/two.txt", "2")
    (library / "linked").symlink_to(library.parent / "outside", target_is_directory=True)
    (library / "deep" / "same.txt").symlink_to(library / "b.txt")
    (library / "other.txt").symlink_to(library.parent / "outside" / "one.txt")
    source = find_source(library, CorpusSettings(glob="*.txt"))
    assert names(source, library) == ["a.d/z.txt", "b.txt", "deep/er/c.txt", "linked/one.txt", "linked/sub/two.txt"]
    assert "2 read already (deep/same.txt, other.txt)" in source.notices[0]


def test_what_programs_wrote_is_no_text(library: Path, write: Callable[..., Path]) -> None:
    for name in (
        "node_modules/left/pad.js", "pkg/__pycache__/x.txt", "env/pyvenv.cfg", "env/lib/x.py", "c/CACHEDIR.TAG",
        "c/x.txt", "runs/it/metrics.jsonl", "runs/my/config.json", "runs/my/metrics.jsonl", "gpt2/config.json",
        "gpt2/model.safetensors", "gpt2/merges.txt",
    ):  # fmt: skip
        write(f"library/{name}", "not for the model")
    with storage.new_folder(library / "export") as folder:
        (folder / "README.md").write_text("a card")
    source = find_source(library)
    assert text_of(source) == ["Z", "A", "B", "C", "N"]
    told = source.notices[0]
    for reason in ("1 node_modules", "1 __pycache__ (pkg/__pycache__)", "1 virtual environment (env)", "1 cache (c)",
                   "2 runs (runs/it, runs/my)", "1 model (gpt2)", "1 export,"):  # fmt: skip
        assert reason in told, reason
    for name, sentence in (
        ("runs/my", r"a run, not a text\. To train from its weights, .* --init-from \S*runs/my\.$"),
        ("gpt2", r"a model, not a text\. To train it further: `groundling import \S*gpt2`, then"),
        ("export", r"an export, not a text\. To train it further: `groundling import \S*export`, then"),
    ):
        with pytest.raises(ValueError, match=f"is {sentence}"):
            find_source(library / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_read_like_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(TEXT,))
    writer.start()
    source = find_source("pipe")
    writer.join()
    assert text_of(source) == text_of(find_source(source.addresses, stored=True)) == [TEXT]
    assert source.name == "stdin"


def test_a_file_url_is_a_path(write: Callable[..., Path]) -> None:
    assert text_of(find_source(write("a b#1?.txt", TEXT).as_uri())) == [TEXT]
    with pytest.raises(FileNotFoundError, match=r"There is no corpus 'file:///nope/a\.txt': no such file or folder"):
        find_source("file:///nope/a.txt")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_are_not_utf8_are_read_and_shown(library: Path) -> None:
    (library / os.fsdecode(b"z\xff.txt")).write_text("!")
    source = find_source([library, library / os.fsdecode(b"z\xff.txt")])
    assert text_of(source)[-1] == "!" and source.files[-1].short == "z\ufffd.txt"
    assert source.addresses[1] == (library / os.fsdecode(b"z\xff.txt")).as_uri()
    assert text_of(find_source(source.addresses, stored=True)) == text_of(source)
