"""What a file holds: one plain text, entries of JSON, CSV or Parquet, or no text at all.

A format is recognized by a file's content. `--format` sets it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from groundling.data.compression import NeedsExtra, NotText
from groundling.data.files import TextFile, decoded_start, read_bytes
from groundling.escape import quoted

_HEAD = 2**16  # bytes that decide on the format
_CUT = _HEAD // 4  # characters; with so many, the head may have been cut off, even if each took four bytes
_LONGEST_FIRST_LINE = 2**26
_SAMPLE = 50  # lines that decide how a table is written
_DELIMITERS = {"csv": ",;|\t", "tsv": "\t"}
_OBJECT = re.compile(r'\{\s*"[^"\n]*"\s*:')
# Python refuses integers of more than 4,300 digits.
JSON = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 1000 else float(digits))
_PART = re.compile(r"[\\\w.+-]*\s*")  # of a JSON number, name or escape
_HTML = re.compile(r"(<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Reading:
    """How files become documents: the settings of that name."""

    format: str = "text"
    field: str | None = None
    document_separator: str = ""
    entries: bool = False
    """Read entries with all their fields, such as conversations, instead of the text in one field."""

    @property
    def wanted(self) -> str:
        return self.field or "text"


def detect(file: TextFile, reading: Reading) -> str:
    """The format of a file, from its first bytes.

    Raises NotText if it holds no text, or JSON or CSV without the field. A file of JSON settings or HTML among source
    code would be text too, but among articles it would be noise: so it is left out and counted, and `--format text`
    reads everything as it is.
    """
    format = reading.format if reading.format not in ("auto", "text") else _detected(file, reading)
    if format == "text" and reading.entries:
        if not _head(file, _HEAD).strip():
            raise NotText(f"{file.name} is empty.", "no text")
        raise NotText(
            f"{file.name} is plain text, not conversations in JSON Lines, JSON, CSV or Parquet.", "plain text"
        )
    return format


def _detected(file: TextFile, reading: Reading) -> str:
    head = _head(file, _HEAD)
    if reading.format == "text":
        decoded_start(file, head)  # raises NotText if it is binary
        return "text"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise NotText(
            f"{file.name} is a pointer to a file in Git LFS, not the file itself. To fetch it: `git lfs pull`.",
            "Git LFS pointer",
        )
    if what := _binary(head):
        return _checked_parquet(file, reading) if what == "Parquet" else _refuse(file, what)
    text, name = decoded_start(file, head).lstrip(), file.name.lower()
    if _HTML.match(text) or (text.startswith("<") and name.endswith((".html", ".htm"))):
        _refuse(file, "HTML")
    if text.startswith("{\\rtf"):
        _refuse(file, "RTF")
    if text.startswith("["):
        return _json_list(file, text, reading)
    if _OBJECT.match(text) or (text and name.endswith(_JSON_LINES)):
        return _json_object(file, text, reading)
    return _table(file, decoded_start(file, head), reading)


def _head(file: TextFile, n: int, line: bool = False) -> bytes:
    """The first `n` bytes or more; or less if a `line` that is not empty is complete."""
    head = bytearray()
    for chunk in read_bytes(file):
        head += chunk
        if len(head) >= n or (line and b"\n" in head.lstrip()):
            break
    return bytes(head)


_BINARIES = (
    (b"%PDF-", "PDF"), (b"PAR1", "Parquet"), (b"\xd0\xcf\x11\xe0", "old Word or Excel file"),
    (b"7z\xbc\xaf", "7z archive"), (b"Rar!", "rar archive"), (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"\x1f\x9d", "compressed with compress"),
)  # fmt: skip
_JSON_LINES = (".jsonl", ".ndjson")
_ZIPPED = {
    b"epub+zip": "EPUB", b"META-INF/container.xml": "EPUB", b"word/": "Word (DOCX)", b"xl/": "Excel (XLSX)",
    b"ppt/": "PowerPoint (PPTX)", b"opendocument.text": "OpenDocument", b"mimetype": "binary",
    b"META-INF/": "binary", b"/data.pkl": "binary", b"": "zip archive",
}  # fmt: skip
_ADVICE = {
    "PDF": "pdftotext {file}", "EPUB": "pandoc -f epub -t plain {file} -o {text}",
    "Word (DOCX)": "pandoc -f docx -t plain {file} -o {text}",
    "OpenDocument": "pandoc -f odt -t plain {file} -o {text}", "HTML": "pandoc -f html -t plain {file} -o {text}",
    "RTF": "pandoc -f rtf -t plain {file} -o {text}", "notebook": "jupyter nbconvert --to markdown {file}",
    "tar archive": "tar -xf {file}", "7z archive": "7z x {file}", "rar archive": "unrar x {file}",
    "zip archive": "unzip {file}", "compressed with lz4": "lz4 -d {file} {text}",
    "compressed with compress": "uncompress {file}", "Excel (XLSX)": "soffice --headless --convert-to csv {file}",
    "old Word or Excel file": "soffice --headless --convert-to txt:Text {file}",
}  # fmt: skip


def _binary(head: bytes) -> str | None:
    """What a file is that is not text, or None."""
    if head.startswith(b"PK\x03\x04"):
        return next(what for mark, what in _ZIPPED.items() if mark in head)
    if head[257:262] == b"ustar":
        return "tar archive"
    return next((what for start, what in _BINARIES if head.lstrip(b"\r\n").startswith(start)), None)


def _refuse(file: TextFile, what: str) -> NoReturn:
    if what == "binary":
        raise NotText(f"{file.name} is a binary file, not text.", what)
    article = "an " if what[0] == "o" else "a " if what[0] in "nrtz7" else ""
    if what not in _ADVICE:
        raise NotText(f"{file.name} is {article}{what}, not plain text.", what)
    verb = "To unpack it" if "archive" in what or "compressed" in what else "To take its text out"
    command = _ADVICE[what].format(file=quoted(file.name), text=quoted(f"{file.name}.txt"))
    as_it_is = " To train on it as it is, use --format text." if what in ("HTML", "RTF", "notebook") else ""
    if is_packed(file) and what != "tar archive":
        raise NotText(f"{file.name} is {article}{what} inside a compressed file. Unpack it first.{as_it_is}", what)
    raise NotText(f"{file.name} is {article}{what}, not plain text. {verb}: `{command}`.{as_it_is}", what)


def is_packed(file: TextFile) -> bool:
    """Whether a file is compressed or in an archive."""
    with file.open() as opened:
        return not isinstance(opened, io.BufferedReader)


def _json_object(file: TextFile, text: str, reading: Reading) -> str:
    """Text that begins with a JSON object: JSON Lines if its first line is one, or a single object, or code."""
    line, _, more = decoded_start(file, _head(file, _LONGEST_FIRST_LINE, line=True)).lstrip().partition("\n")
    by_name = file.name.lower().endswith(_JSON_LINES)
    try:
        value = JSON.decode(line)
    except (ValueError, RecursionError):
        if (first := _first_of_several(text)) is not None:
            return _checked_field(file, first, reading, "json", "JSON")
        if by_name:
            return "jsonl"  # reading it tells the line
        if not file.name.lower().endswith(".json") and not _is_json(text):
            return "text"
    else:
        if by_name or more.strip() or reading.entries or look_up(value, reading.wanted) is not None:
            return _checked_field(file, value, reading, "jsonl", "JSON Lines")
    if reading.entries:
        return "json"
    if '"nbformat":' in text or file.name.endswith(".ipynb"):
        _refuse(file, "notebook")
    raise NotText(
        f"{file.name} is a JSON object, not a list of documents. To train on it as it is, use --format text.",
        "JSON object",
    )


def _first_of_several(text: str) -> Any:
    """The first of several JSON objects without a list around them, as `jq` prints them. None if there are not."""
    with suppress(ValueError, RecursionError):
        value, end = JSON.raw_decode(text)
        if text[end:].lstrip()[:1] == "{":
            return value
    return None


def _is_json(text: str) -> bool:
    """Whether text is JSON values, perhaps cut off, and not code that begins like one."""
    try:
        _, end = JSON.raw_decode(text)
    except ValueError as error:
        return is_cut(error, text)
    except RecursionError:
        return True
    return text[end:].lstrip()[:1] in ("", "{", "[")


def is_cut(error: Exception, text: str) -> bool:
    """Whether more text could turn what `json` could not decode into valid JSON."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or _PART.fullmatch(text, error.pos) is not None
    )


def _json_list(file: TextFile, text: str, reading: Reading) -> str:
    """Text that begins with a bracket: JSON by its name, or if it continues as a list of objects."""
    is_json = file.name.lower().endswith((".json", *_JSON_LINES))
    start = len(text) - len(text[1:].lstrip())
    if not is_json and not _OBJECT.match(text, start):
        return "text"
    try:
        first = JSON.raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return "json" if is_json or len(text) >= _CUT else "text"  # a long entry, or no JSON at all
    if not isinstance(first, dict | str):
        raise NotText(
            f"{file.name} is a JSON list, but not of objects or strings. To train on it as it is, use --format text.",
            "JSON list without texts",
        )
    return _checked_field(file, first, reading, "json", "JSON")


@dataclass(frozen=True)
class Table:
    """How a file of CSV or TSV is written."""

    columns: list[str]
    delimiter: str
    quoting: Any
    """`csv.QUOTE_MINIMAL` or `csv.QUOTE_NONE`."""
    is_regular: bool
    """Whether there are several columns, named without spaces around, and the first rows have as many."""


def table_in(text: str, wanted: str, format: str) -> Table:
    """The table at the beginning of a text: with the delimiter that gives the wanted column, or most columns."""
    csv.field_size_limit(2**31 - 1)  # of the longest text; a C long has no more on Windows
    is_cut = len(text) >= _CUT
    lines = [line + "\n" for line in text.lstrip("\r\n").split("\n", _SAMPLE)[: -1 if is_cut else _SAMPLE]]
    tables = [_table_with(lines or [text], delimiter, is_cut) for delimiter in _DELIMITERS[format]]
    return max(tables, key=lambda table: (wanted in table.columns, len(table.columns)))


def is_row(row: list[str]) -> bool:
    """Whether a row is neither empty nor the line `sep=;` that Excel reads before the first one."""
    line = "".join(row)
    return bool(row) and not (line.startswith("sep=") and len(line) <= 5)


def _table_with(lines: list[str], delimiter: str, is_cut: bool) -> Table:
    rows, quoting = list[list[str]](), csv.QUOTE_MINIMAL
    try:
        rows.extend(row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row)
    except csv.Error:  # the end of the sample, or quotes that are part of a text, as is usual with tabs only
        fields = [line.count("\t") for line in lines if line.strip()]
        if delimiter == "\t" and min(fields) == max(fields) > 0:
            rows, quoting = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()], csv.QUOTE_NONE
    rows = rows[not is_row(rows[0]) :] if rows else []
    columns = [name.strip() for name in rows[0]] if rows else []
    is_regular = (
        len(columns) > 1
        and rows[0] == columns  # prose has spaces after its commas
        and all(len(row) == len(columns) for row in rows[:4])
        and (is_cut or len(rows) > 1)
    )
    return Table(columns, delimiter, quoting, is_regular)


def _table(file: TextFile, text: str, reading: Reading) -> str:
    """CSV if the first line names the field among several columns and the next have as many, or by its name."""
    named = next((kind for kind in ("csv", "tsv") if file.name.lower().endswith(f".{kind}")), None)
    table = table_in(text, reading.wanted, named or "csv")
    has_columns = bool(table.columns) if reading.entries else reading.wanted in table.columns
    if has_columns and (named or table.is_regular):
        return "tsv" if table.delimiter == "\t" else "csv"
    if named and text.strip():
        if not table.columns:
            return named  # reading it tells the fault
        refuse_without_field(file, table.columns, reading, named.upper())
    return "text"


def _checked_field(file: TextFile, value: Any, reading: Reading, format: str, called: str) -> str:
    fits = reading.entries or not isinstance(value, dict) or reading.wanted in value
    if not fits and look_up(value, reading.wanted) is None:
        refuse_without_field(file, list(value), reading, called)
    return format


def refuse_without_field(file: TextFile, fields: list[str], reading: Reading, called: str) -> NoReturn:
    some = ", ".join(fields[:10]) + (", …" if len(fields) > 10 else "") or "no fields"
    raise NotText(
        f"{file.name} is {called} without the field {reading.wanted!r}; it has: {some:.300}. Choose one with --field, "
        "or use --format text to read the file as it is.",
        f"{called} without the field {reading.wanted!r}",
    )


def look_up(value: Any, field: str) -> Any:
    """A field of a JSON object, or `a.b` for a field `b` in a field `a`. None if there is none."""
    if isinstance(value, dict) and field in value:
        return value[field]
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def parquet_file(file: TextFile) -> Any:
    """The file, opened by pyarrow. Raises NotText without pyarrow, OSError if it is damaged."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise NeedsExtra(
            f'{file.name} is Parquet. To read it: pip install "groundling[parquet]".', "Parquet, which needs pyarrow"
        ) from None
    if is_packed(file):
        raise NotText(f"{file.name} is Parquet inside a compressed file. Unpack it first.", "compressed Parquet")
    with damaged_parquet(file):
        return parquet.ParquetFile(file.open())


@contextmanager
def damaged_parquet(file: TextFile) -> Iterator[None]:
    """Turns the errors of pyarrow into one with the file's name."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's
            raise
        raise OSError(f"{file.name} is damaged: it cannot be read as Parquet ({error!s:.200}).") from None


def _checked_parquet(file: TextFile, reading: Reading) -> str:
    with suppress(OSError):  # an error when it is read
        check_column(file, parquet_file(file), reading)
    return "parquet"


def check_column(file: TextFile, table: Any, reading: Reading) -> None:
    columns = table.schema_arrow.names
    if not reading.entries and reading.wanted not in columns and reading.wanted.split(".")[0] not in columns:
        refuse_without_field(file, columns, reading, "Parquet")
