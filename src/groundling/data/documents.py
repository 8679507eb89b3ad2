"""Read the documents in a file: texts with separators between them, or the entries of JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from groundling.data.files import TextFile, read_bytes, read_text
from groundling.data.formats import (
    JSON,
    Reading,
    check_column,
    damaged_parquet,
    is_cut,
    is_row,
    look_up,
    parquet_file,
    refuse_without_field,
    table_in,
)
from groundling.data.progress import Notice


@dataclass
class Document:
    """A text in chunks, to be read before the next document."""

    name: str
    chunks: Iterator[str]
    starts: bool = True
    """Whether it starts here. The first of a part of a plain file does not."""
    ends: bool = True
    """Whether it ends here, once the chunks are read. The last of a part of a plain file does not."""


def read_documents(
    file: TextFile, format: str, reading: Reading, notice: Notice, progress: Callable[[int], None],
    skipped: Callable[[int], None] | None = None,
) -> Iterator[Document]:  # fmt: skip
    """The documents of a file. `progress` gets the number of bytes read. `skipped` gets the number of entries without
    text, instead of a notice.

    Raises ValueError or OSError with a sentence that names file and line if something cannot be read.
    """
    if format == "text":
        return _plain(file, read_text(file, notice, progress), reading.document_separator, notice)
    entries = read_entries(file, format, reading, notice, progress)
    return _with_text(entries, file, skipped or (lambda n: notice(skipped_entries(file.name, n))))


def skipped_entries(name: str, n: int) -> str:
    return f"Skipped {n:,} entries of {name} without text."


def read_entries(
    file: TextFile, format: str, reading: Reading, notice: Notice, progress: Callable[[int], None]
) -> Iterator[tuple[str, Any]]:
    """Place and value of each entry of JSON, CSV or Parquet: its wanted field, or all of it with `reading.entries`."""
    if format == "parquet":
        return _parquet(file, reading, progress)
    reader = {"jsonl": _read_json_lines, "json": _read_json, "csv": _read_table, "tsv": _read_table}[format]
    return reader(file, read_text(file, notice, progress), reading, format)


_OR_TEXT = ", or use --format text to read the file as it is."


def _with_text(
    entries: Iterator[tuple[str, Any]], file: TextFile, skipped: Callable[[int], None]
) -> Iterator[Document]:
    """A document for each entry, given as its place in the file and its text. Those without text are counted."""
    without = 0
    for place, text in entries:
        if text is None or text == "":
            without += 1
            continue
        if not isinstance(text, str):
            kinds = {"list": "a list", "dict": "an object", "bytes": "bytes"}
            kind = kinds.get(type(text).__name__, "a number or truth value")
            raise ValueError(
                f"{file.name}, {place}: the field is {kind}, not text. Choose another with --field{_OR_TEXT}"
            )
        if not (text.isascii() or _is_encodable(text)):
            raise ValueError(f"{file.name}, {place}: half of a UTF-16 pair (\\ud800 to \\udfff), not a character.")
        yield Document(f"{file.name}, {place}", iter((text,)))
    if without:
        skipped(without)


def _is_encodable(text: str) -> bool:
    """Several times faster than a search for the characters that are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(file: TextFile, chunks: Iterator[str], separator: str, notice: Notice) -> Iterator[Document]:
    pieces = _split(chunks, separator) if separator else zip(filter(None, chunks), itertools.repeat(False))
    number = 0
    for piece, ends in pieces:  # the first one of a document
        if piece:
            number += 1
            if number == 2:
                notice(f"{separator!r} ends a document (--document-separator '' turns this off).")
            name = file.name if number == 1 else f"{file.name}, document {number:,}"
            document = Document(name, iter((piece,)), starts=number > 1 or file.start == 0)
            if not ends:
                document.chunks = _up_to_separator(piece, pieces, document, file)
            yield document


def _up_to_separator(
    first: str, pieces: Iterator[tuple[str, bool]], document: Document, file: TextFile
) -> Iterator[str]:
    yield first
    for piece, ends in pieces:
        if piece:
            yield piece
        if ends:
            return
    document.ends = file.stop is None


def _split(chunks: Iterator[str], separator: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, each with whether a separator follows it. If one has a line of its own, the line goes."""
    has_lines = separator.startswith("\n") or separator.endswith("\n")
    kept, after_line = "", True  # whether the text so far ends with a line
    for chunk in itertools.chain(chunks, [None]):
        text, at = kept + (chunk or ""), 0
        while (found := text.find(separator, at)) >= 0:
            end = found + len(separator)
            if chunk is not None and end + 2 > len(text):
                break  # the next chunk tells whether the line ends here
            yield text[at:found], True
            own_line = text[found - 1] == "\n" if found > at else after_line
            at, after_line = end, False
            if own_line and not has_lines:
                at += text.startswith("\n", end) or 2 * text.startswith("\r\n", end)
                after_line = at > end or end == len(text)
        safe = len(text) if chunk is None else max(at, found if found >= 0 else len(text) - len(separator) + 1)
        if safe > at:
            yield text[at:safe], False
            after_line = text[safe - 1] == "\n"
        kept = text[safe:]


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    parts = list[str]()
    for chunk in chunks:
        if "\n" not in chunk:
            parts.append(chunk)
            continue
        lines = ("".join(parts) + chunk).split("\n")
        parts = [lines.pop()]
        for line in lines:
            yield line + "\n"
    yield "".join(parts)


def _wanted(value: Any, reading: Reading, file: TextFile, place: str) -> Any:
    field = reading.wanted
    if reading.entries or isinstance(value, str):
        return value
    if isinstance(value, dict) and field in value:
        return value[field]
    if not isinstance(value, dict):
        raise ValueError(f"{file.name}, {place}: neither a JSON object nor a string.")
    if field.split(".")[0] not in value:
        raise ValueError(
            f"{file.name}, {place} has no field {field!r}; it has: {', '.join(value):.300}. "
            f"Give every entry this field{_OR_TEXT}"
        )
    return look_up(value, field)


def _read_json_lines(file: TextFile, chunks: Iterator[str], reading: Reading, format: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(chunks), 1):
        if line and not line.isspace():
            place = f"line {number}"
            try:
                value, end = JSON.raw_decode(line) if line[0] == "{" else (None, 0)
                if line[end:] not in ("\n", "\r\n"):
                    value = JSON.decode(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file.name}, line {number:,} is not valid JSON: {_fault(error)}.") from None
            yield place, _wanted(value, reading, file, place)


def _fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno:,}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


# What precedes an entry of a list, and an object without a list around it.
_FIRST, _NEXT, _NONE, _OBJECT = map(re.compile, (r"\s*\[\s*(\])?", r"\s*(?:,\s*|(\]))", r"(?!)", r"\s*(?={)(\])?"))


def _read_json(file: TextFile, chunks: Iterator[str], reading: Reading, format: str) -> Iterator[tuple[str, Any]]:
    text, at, number, before = "", 0, 0, _FIRST
    for chunk in itertools.chain(chunks, [None]):
        text, at = text[at:] + (chunk or ""), 0
        if before is _FIRST and _OBJECT.match(text):
            before = _OBJECT
        while gap := before.match(text, at):
            if gap[1]:
                at, before = gap.end(), _NONE
                continue
            try:
                value, at = JSON.raw_decode(text, gap.end())
            except (ValueError, RecursionError) as error:
                if chunk is not None and is_cut(error, text):
                    break
                fault = re.sub(" at column .*", "", _fault(error))
                raise ValueError(f"{file.name} is not valid JSON in entry {number + 1:,}: {fault}.") from None
            number, before = number + 1, before if before is _OBJECT else _NEXT
            place = f"entry {number}"
            yield place, _wanted(value, reading, file, place)
        if not gap and (text[at:].strip() or (chunk is None and before not in (_NONE, _OBJECT))):
            what = "after the list" if before is _NONE else f"after entry {number:,}" if number else "as it is no list"
            raise ValueError(f"{file.name} is not valid JSON {what}.")


def _read_table(file: TextFile, chunks: Iterator[str], reading: Reading, format: str) -> Iterator[tuple[str, Any]]:
    head = ""
    for chunk in chunks:
        head += chunk
        if len(head) > 2**16:
            break
    table = table_in(head, reading.wanted, format)
    lines = _lines(itertools.chain([head], chunks))
    rows = csv.reader(lines, delimiter=table.delimiter, quoting=table.quoting, strict=True)
    try:
        columns = [name.strip() for name in next(filter(is_row, rows), [])]
        wanted = columns if reading.entries else [reading.wanted]
        if not set(wanted) <= set(columns):
            refuse_without_field(file, columns, reading, format.upper())
        if twice := next((name for name in wanted if columns.count(name) > 1), None):
            raise ValueError(f"{file.name} has several columns {twice!r}. Rename all but one.")
        column, n_columns = max(map(columns.index, wanted), default=0), len(columns)
        for row in rows:
            if len(row) != n_columns and row and (len(row) <= column or any(row[n_columns:])):
                raise ValueError(
                    f"{file.name}, line {rows.line_num:,} has {len(row)} columns instead of {n_columns}. Put quotes "
                    f"around texts with {table.delimiter!r} in them, or use --format text."
                )
            if row:
                value = dict(zip(columns, row, strict=False)) if reading.entries else row[column]
                yield f"line {rows.line_num}", value
    except csv.Error as error:
        raise ValueError(
            f"{file.name}, line {rows.line_num:,} is not valid {format.upper()}: {error}. Correct the quotes, or use "
            "--format text."
        ) from None


def _parquet(file: TextFile, reading: Reading, progress: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    table = parquet_file(file)
    check_column(file, table, reading)
    stop = file.stop or sys.maxsize
    groups = [i for i, place in enumerate(row_groups(table)) if file.start <= place < stop]
    rows, number = max(1, sum(table.metadata.row_group(i).num_rows for i in groups)), 0
    is_column = reading.wanted in table.schema_arrow.names and not reading.entries  # or inside of one
    columns = None if reading.entries else [reading.wanted]
    with damaged_parquet(file):
        for batch in table.iter_batches(batch_size=1000, row_groups=groups, columns=columns):
            values = batch.column(0) if is_column else batch
            for value in values.to_pylist():
                number += 1
                yield f"row {number}", value if is_column or reading.entries else look_up(value, reading.wanted)
            progress(file.size * batch.num_rows // rows)
    if file.on_read:
        for _ in read_bytes(file):
            pass


def row_groups(table: Any) -> list[int]:
    """The place of each row group of a Parquet file, in bytes."""
    groups = map(table.metadata.row_group, range(table.metadata.num_row_groups))
    return [min((_first_byte(group.column(i)) for i in range(group.num_columns)), default=0) for group in groups]


def _first_byte(column: Any) -> int:
    first: int = column.dictionary_page_offset or column.data_page_offset
    return first
