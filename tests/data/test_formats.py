"""A file is read as what it holds: one text, texts with separators, or the entries of JSON, CSV and Parquet."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import groundling
from groundling.config import CorpusSettings
from groundling.data import files
from groundling.data.compression import NotText
from groundling.data.corpus import Corpus
from groundling.data.documents import _split
from groundling.data.sources import find_source

TEXTS = ["To be, or not to be,\nthat is the question.\n", 'Größe ☃ 𝔘 "quoted", and a tab\t.', "end"]
SEPARATOR = "<|endoftext|>"


def texts(path: Any, notice: Callable[[str], None] = print, **reading: Any) -> list[str]:
    source = find_source(path, CorpusSettings(**reading))
    for sentence in source.notices:
        notice(sentence)
    return ["".join(document.chunks) for file in source.files for document in source.documents(file, notice)]


def csv_of(rows: list[list[str]], delimiter: str = ",") -> str:
    import csv

    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def json_lines(values: list[Any], **options: Any) -> str:
    return "".join(json.dumps(value, **options) + "\n" for value in values)


ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
HOLDS_TEXTS = {
    "JSON Lines": json_lines(ROWS),
    "JSON Lines with blank lines, without a last line end": "\n" + "\n\n".join(map(json.dumps, ROWS)),
    "a JSON list": json.dumps(ROWS),
    "a pretty JSON list": json.dumps(ROWS, indent=2),
    "CSV": csv_of([["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))]),
    "CSV with semicolons": csv_of([["text", "id"], *([text, str(i)] for i, text in enumerate(TEXTS))], ";"),
    "TSV": csv_of([["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))], "\t"),
    "separated text": f"{TEXTS[0]}{SEPARATOR}\n{TEXTS[1]}{SEPARATOR}{TEXTS[2]}",
}  # fmt: skip


@pytest.mark.parametrize("name", ["x.txt", "x.dat", "noending"])
@pytest.mark.parametrize("kind", HOLDS_TEXTS)
@pytest.mark.parametrize("chunk", [1, 7, 4 * 2**20])
def test_documents_are_found_by_what_a_file_holds(
    kind: str, name: str, chunk: int, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = write(name, HOLDS_TEXTS[kind])
    assert texts(path) == TEXTS
    assert texts(write(f"folder/{name}", HOLDS_TEXTS[kind]).parent) == TEXTS


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, "zstd", lambda c: gzip.compress(bz2.compress(c))]
)
def test_compressed_files_are_read_through(pack: Any, write: Callable[..., Path]) -> None:
    if pack == "zstd":
        name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        pack = pytest.importorskip(name).compress
    for kind in ("JSON Lines", "separated text"):
        packed = pack(HOLDS_TEXTS[kind].encode())
        assert texts(write("x.txt", packed)) == TEXTS
        with pytest.raises(OSError, match=r"cut\.txt is damaged: its compressed data is incomplete or wrong\.$"):
            texts(write("cut.txt", packed[:-9]))


def test_without_zstd_the_extra_is_named(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r'pip install "groundling\[zstd\]", or unpack it first: `zstd -d \S*x\.txt`\.'
    ):
        texts(write("x.txt", b"\x28\xb5\x2f\xfd" + bytes(20)))


def zipped(members: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_a_zip_file_is_a_folder(write: Callable[..., Path]) -> None:
    inside = {
        "b.txt": TEXTS[1],
        "a/x.jsonl": json_lines(ROWS[:1]),
        "empty.txt": "",
        "p.png": b"\x89PNG\0",
        "__MACOSX/._b": "no",
    }
    path, notices = write("my.zip", zipped(inside)), list[str]()
    assert texts(path, notices.append) == TEXTS[:2]
    left_out = "1 hidden (my.zip/__MACOSX/._b), 1 empty (my.zip/empty.txt), 1 binary (my.zip/p.png)."
    assert re.fullmatch(rf"Reading 2 files \(\d+ bytes\)\. Left out 3: {re.escape(left_out)}", notices[0])
    assert find_source(path).name == "my"
    assert texts(path, glob="*.jsonl") == TEXTS[:1]
    write("folder/c.txt", TEXTS[2])
    write("folder/b.zip", path.read_bytes())
    assert texts("folder") == TEXTS
    damaged = bytearray(zipped({"x.txt": TEXTS[0] * 99}))
    damaged[60] ^= 255
    with pytest.raises(OSError, match=r"bad\.zip/x\.txt is damaged: its compressed data"):
        texts(write("bad.zip", bytes(damaged)))


TEXT_FILES = {
    "poem.txt": "[Enter Hamlet]\n{aside} To be",
    "prose.txt": "This text, and that text, are long, as texts are.\nSome, but not all, are text, you see.\n",
    "main.c": '{\n  "a";\n}\n',
    "paper.tex": "{\\bf text}\n\\begin{document}",
    "notes.md": '["a", "b"] is a list in Python\n',
    "play.xml": "<play><speech>text</speech></play>",
    "list.txt": "text\nmore\n",
    "quotes.txt": '"text"\n"more"\n',
    "dict.py": '{"a": 1,\n "b": 2}\nprint()\n',
    "template.txt": '{"key": value}\n',
    "titles.txt": "title; text; note\nnow; then; here\n",
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_a_text_that_looks_like_data_stays_a_text(name: str, write: Callable[..., Path]) -> None:
    assert texts(write(name, TEXT_FILES[name])) == [TEXT_FILES[name]]


def office(mark: str, mimetype: str | None = None) -> bytes:
    first = {"mimetype": mimetype} if mimetype else {"[Content_Types].xml": "<x/>"}
    return zipped({**first, mark: "<x/>"}, zipfile.ZIP_STORED)


NO_TEXTS = {
    "page.html": ("<!-- saved -->\n<!DOCTYPE html>\n<html><body>Hi</body></html>", "HTML", r"`pandoc -f html -t plain"),
    "page": ("<HTML><p>Hi</p></HTML>", "HTML", "--format text"),
    "part.htm": ("<p>Hi</p>", "HTML", "pandoc"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(50), "PDF", r"To take its text out: `pdftotext \S*a\.pdf`"),
    "a.docx": (office("word/document.xml"), "Word (DOCX)", "`pandoc -f docx"),
    "a.epub": (office("OEBPS/a.xhtml", "application/epub+zip"), "EPUB", "`pandoc -f epub"),
    "a.odt": (office("content.xml", "application/vnd.oasis.opendocument.text"), "OpenDocument", "`pandoc -f odt"),
    "a.rtf": ("{\\rtf1 Hi}", "RTF", "`pandoc -f rtf"),
    "a.tar": (bytes(257) + b"ustar\0" + bytes(300), "tar archive", r"To unpack it: `tar -xf \S*a\.tar`"),
    "a.tgz": (gzip.compress(bytes(257) + b"ustar\0" + bytes(300)), "tar archive", "`tar -xf"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "7z archive", "`7z x"),
    "a.ipynb": (json.dumps({"cells": [], "nbformat": 4}, indent=1), "notebook", "`jupyter nbconvert --to markdown"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0", "binary", "is a binary file, not text"),
    "a.json": (json.dumps({"name": "x", "text": ["y"]}, indent=1), "JSON object", "--format text"),
    "b.jsonl": (json_lines([{"body": "x", "n": 1}]), "JSON Lines without the field 'text'", "it has: body, n. Choose"),
    "c.json": (json.dumps([{"body": "x"}]), "JSON without the field 'text'", "--field"),
    "d.csv": ("body,n\nx,1\n", "CSV without the field 'text'", "it has: body, n"),
    "f.json": ('{"data": [{"text": "x"}]}', "JSON object", "--format text"),
    "g.json": ("[[1], [2]]", "JSON list without texts", "is a JSON list, but not of objects or strings"),
    "h.ipynb": (json.dumps({"cells": [], "nbformat": 4}), "notebook", "is a notebook, not plain text"),
    "a.xlsx": (office("xl/workbook.xml"), "Excel (XLSX)", "`soffice --headless --convert-to csv"),
    "a.pptx": (office("ppt/presentation.xml"), "PowerPoint (PPTX)", "is PowerPoint"),
    "a.pt": (zipped({"model/data.pkl": "\x80", "model/version": "3"}), "binary", "is a binary file"),
    "e.tsv": ("body\tn\nx\t1\n", "TSV without the field 'text'", "--field"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_named_with_what_helps(name: str, write: Callable[..., Path]) -> None:
    content, what, advice = NO_TEXTS[name]
    with pytest.raises(NotText, match=advice) as refused:
        find_source(write(name, content))
    assert refused.value.what == what
    write(f"folder/{name}", content)
    write("folder/text.txt", TEXTS[0])
    notices: list[str] = []
    assert texts("folder", notices.append) == TEXTS[:1]
    assert f"Left out 1: 1 {what}" in notices[0]
    if "--format text" in str(refused.value):
        content = content.decode() if isinstance(content, bytes) else content
        assert texts(write(name, content), format="text") == [content]


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="pandoc is not here")
@pytest.mark.parametrize("kind", ["html", "docx", "epub", "odt", "rtf"])
def test_the_command_takes_the_text_out(kind: str, write: Callable[..., Path]) -> None:
    source = write("it's a.md", "# Title\n\nSome *text* here.\n")
    made = source.with_suffix(f".{kind}")
    subprocess.run(
        ["pandoc", "-s", "--metadata", "title=T", str(source), "-o", str(made)], check=True, capture_output=True
    )
    with pytest.raises(NotText) as refused:
        find_source(made)
    command = re.search(r"`(.*?)`", str(refused.value))[1]  # type: ignore[index]
    subprocess.run(shlex.split(command), check=True)
    assert "Some text here." in texts(f"{made}.txt")[0]


def test_the_field_may_be_another_or_inside(write: Callable[..., Path]) -> None:
    write("a.jsonl", json_lines([{"data": {"body": text}, "text": "no"} for text in TEXTS]))
    assert texts("a.jsonl", field="data.body") == TEXTS
    write("a.csv", csv_of([["body", "n"], ["x", "1"], ["y\nz", "2"]]))
    assert texts("a.csv", field="body") == ["x", "y\nz"]
    write("a.json", json.dumps(TEXTS))
    assert texts("a.json") == TEXTS


def test_what_programs_write_besides_the_standards_is_read(write: Callable[..., Path]) -> None:
    pretty = "\n".join(json.dumps({"text": text}, indent=2) for text in TEXTS)  # as `jq .` does
    for name in ("a.jsonl", "b.json", "c.txt"):
        assert texts(write(name, pretty)) == TEXTS
        assert texts(write(name, pretty.replace("\n", ""))) == TEXTS
    long = "".join(json.dumps({"text": text * 2**17}, indent=2) for text in TEXTS)  # more than a chunk
    assert texts(write("d.json", long), format="json") == [text * 2**17 for text in TEXTS]
    assert texts(write("e.jsonl", json_lines([{"text": "x"}])[:-2] + ', "n": ' + 5000 * "9" + "}\n")) == ["x"]
    for mark in ";,":  # the first line that Excel reads
        table = csv_of([["text", "n"], ["x", "1"], ["sep=x", "2"]], mark)
        assert texts(write("f.csv", f"sep={mark}\r\n{table}")) == ["x", "sep=x"]


def test_columns_may_have_spaces_long_texts_and_quotes(write: Callable[..., Path]) -> None:
    assert texts(write("a.csv", f"\nid, text\n1,{2**18 * 'x'}\n")) == [2**18 * "x"]
    assert texts(write("a.tsv", 'id\ttext\n1\t"Hi," she said\n2\t"x\n')) == ['"Hi," she said', '"x']
    assert texts(write("b.tsv", 'id\ttext\n1\t"two\nlines"\n2\t"x"\n')) == ["two\nlines", "x"]


@pytest.mark.parametrize("kind", HOLDS_TEXTS)
def test_every_format_can_be_tokenized(kind: str, write: Callable[..., Path]) -> None:
    corpus = Corpus.open(write("x.txt", HOLDS_TEXTS[kind]), CorpusSettings(tokenizer="byte"))
    assert corpus.n_documents == 3 and corpus.n_characters == sum(map(len, TEXTS))


def test_entries_without_text_are_counted(write: Callable[..., Path]) -> None:
    notices: list[str] = []
    path = write("a.jsonl", json_lines([{"text": "x"}, {"text": None}, {"text": ""}, {"text": "y"}]))
    assert texts(path, notices.append) == ["x", "y"]
    assert notices == [f"Skipped 2 entries of {path} without text."]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": "y\n', "a.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", '{"text": ' + 10**5 * "[", "a.jsonl, line 1 is not valid JSON: nested too deeply."),
        ("a.jsonl", "7\n8\n", "a.jsonl, line 1: neither a JSON object nor a string."),
        (
            "a.jsonl",
            '{"text": "x"}\n{"body": "y"}\n',
            "line 2 has no field 'text'; it has: body. Give every entry this field, or use --format text to read",
        ),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": ["y"]}\n',
            "line 2: the field is a list, not text. Choose another with --field, or use --format text to read",
        ),
        ("a.json", '{"text": "x"} {"text": "y"} 7', "a.json is not valid JSON after entry 2."),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', "a.jsonl, line 2: the field is a number"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": "\\ud83d"}\n', "a.jsonl, line 3: half of a UTF-16 pair"),
        ("a.jsonl", '{"text": "x"}\n7\n', "a.jsonl, line 2: neither a JSON object nor a string."),
        ("a.json", '[{"text": "x"}, {"text": "y"', "a.json is not valid JSON in entry 2"),
        ("a.json", '[{"text": "x"}] and more', "a.json is not valid JSON after the list."),
        ("a.json", '[{"text": "x"} {"text": "y"}]', "a.json is not valid JSON after entry 1."),
        ("a.json", '[{"text": "x"},]', "a.json is not valid JSON in entry 2: Expecting value."),
        ("a.json", '[{"text": "x"}', "a.json is not valid JSON after entry 1."),
        ("a.csv", "id,text\n1,x\n2\n", "a.csv, line 3 has 1 columns instead of 2."),
        (
            "a.csv",
            "id,text\n1,x, and y\n",
            "a.csv, line 2 has 3 columns instead of 2. Put quotes around texts with ','",
        ),
        ("a.csv", 'id,text\n1,"x\n2,y\n', "a.csv, line 4 is not valid CSV: unexpected end of data."),
        ("a.csv", "text,text\nx,y\n", "a.csv has several columns 'text'."),
    ],
)
def test_a_fault_names_file_and_line(name: str, content: str, sentence: str, write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        texts(write(name, content))


def test_parquet_is_read_by_column(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": [*TEXTS, None] * 700, "n": range(2800)})
    parquet.write_table(table, tmp_path / "x.txt", row_group_size=500)
    assert texts("x.txt") == TEXTS * 700
    corpus = Corpus.open("x.txt", CorpusSettings(tokenizer="byte"))
    assert corpus.n_documents == 2100 and corpus.n_characters == 700 * sum(map(len, TEXTS))
    with pytest.raises(NotText, match=r"Parquet without the field 'body'; it has: text, n\."):
        texts("x.txt", field="body")
    with pytest.raises(ValueError, match="row 1: the field is a number"):
        texts("x.txt", field="n")
    with pytest.raises(OSError, match=r"cut\.txt is damaged: it cannot be read as Parquet"):
        texts(write("cut.txt", Path("x.txt").read_bytes()[:-50]))
    with pytest.raises(NotText, match=r"x\.gz is Parquet inside a compressed file\. Unpack it first\."):
        texts(write("x.gz", gzip.compress(Path("x.txt").read_bytes())))
    parquet.write_table(pyarrow.table({"text": [str(i) * 30 for i in range(999)]}), "y.txt", use_dictionary=False)
    flipped = bytearray(Path("y.txt").read_bytes())
    flipped[1000:1500] = bytes(range(250)) * 2
    with pytest.raises(OSError, match=r"flip\.txt is damaged: it cannot be read as Parquet \(Corrupt snappy"):
        texts(write("flip.txt", bytes(flipped)))
    parquet.write_table(pyarrow.table({"data": [{"text": text} for text in TEXTS]}), "z.txt")
    assert texts("z.txt", field="data.text") == TEXTS
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotText, match=r'pip install "groundling\[parquet\]"'):
        texts("x.txt")


pieces = st.sampled_from([SEPARATOR, SEPARATOR[:5], SEPARATOR[5:], "\n", "\r\n", "x"])


@given(parts=st.lists(pieces, max_size=12), cuts=st.lists(st.integers(0, 99), max_size=4))
@settings(max_examples=300)
def test_separators_are_found_wherever_chunks_are_cut(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(borders)]
    joined = "".join(piece + "\0" * ends for piece, ends in _split(iter(chunks), SEPARATOR))
    mark = re.escape(SEPARATOR)
    assert joined == re.sub(rf"((?<=\n)|\A){mark}(\r?\n|\Z)|{mark}", "\0", text)


def test_separated_documents_end_and_that_is_said_once(write: Callable[..., Path]) -> None:
    notices: list[str] = []
    write("stories/1.txt", f"one\n{SEPARATOR}\ntwo\n{SEPARATOR}\n{SEPARATOR}\n")
    write("stories/2.txt", "three---four")
    source = find_source("stories")
    corpus = groundling.data.corpus.prepare(source, CorpusSettings(), notice=notices.append)
    assert notices[1:] == [f"{SEPARATOR!r} ends a document (--document-separator '' turns this off)."]
    assert corpus.n_documents == 3 and corpus.tokenizer.end_of_text_id is not None
    assert [corpus.document_name(source, i) for i in range(3)] == ["1.txt, document 1", "1.txt, document 2", "2.txt"]
    assert texts("stories", document_separator="---") == [Path("stories/1.txt").read_text(), "three", "four"]
    assert texts("stories", document_separator="") == [Path(f"stories/{i}.txt").read_text() for i in (1, 2)]
    alone = Corpus.open("stories/2.txt")
    assert alone.n_documents == 1 and alone.tokenizer.end_of_text_id is None
    other = Corpus.open("stories/2.txt", CorpusSettings(document_separator="---"))
    assert other.n_documents == 2 and other.fingerprint == alone.fingerprint  # kept apart in the cache


def test_a_separator_that_separates_nothing_is_said(write: Callable[..., Path]) -> None:
    def notices(separator: str) -> list[str]:
        said: list[str] = []
        settings = CorpusSettings(document_separator=separator)
        groundling.data.corpus.prepare(find_source("a.txt", settings), settings, notice=said.append)
        return said

    write("a.txt", "one\r\n\r\ntwo---three")
    nothing = "separates nothing: each file is one document."
    for _ in range(2):  # also when the tokens come from the cache
        assert notices("</s>") == [f"--document-separator '</s>' {nothing}"]
    windows = r" If lines end in CR LF, use '\r\n\r\n'."
    assert notices("\n\n") == [f"--document-separator {chr(39)}\\n\\n{chr(39)} {nothing}{windows}"]
    assert not any("nothing" in sentence for each in ("---", "\r\n\r\n", SEPARATOR, "") for sentence in notices(each))
