"""Built-in corpora, files, folders and standard input, each read as a `Source` of documents.

Text must be valid UTF-8. Anything else is an error with file, line and offset, never repaired silently: the model
would learn a wrong character and generate it.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import io
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import BinaryIO

from groundling import storage
from groundling.config import did_you_mean
from groundling.data.progress import Notice, silent

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

CHUNK = 4 * 2**20  # bytes read at once: memory does not grow with the corpus
_MOST_UNPACKED = 200  # times; text compresses to a tenth at best, a file made to fill a disk to a thousandth
_SNIFF = 8192  # a NUL byte this early means that the file is not UTF-8 text

_BOMS = (
    (codecs.BOM_UTF8, "utf-8", "a UTF-8 byte-order mark, which is dropped"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32 text"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16 text"),
)


@dataclass(frozen=True)
class Document:
    """One text."""

    name: str
    open: Callable[[], BinaryIO]
    """Opens its bytes, uncompressed."""
    size: int
    """Bytes on the disk, for progress only: a compressed file counts compressed."""
    on_read: Callable[[bytes], None] | None = None
    """Gets the SHA-256 of the bytes when `read_bytes` has read them all."""


@dataclass(frozen=True)
class Source:
    """A corpus before it is tokenized.

    `address` finds it again: a name such as `shakespeare`, or an absolute path. `notices` are sentences for the user
    about how it was read.
    """

    name: str
    address: str
    documents: tuple[Document, ...]
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(document.size for document in self.documents)


def find_source(corpus: str | os.PathLike[str], glob: str | None = None, stored: bool = False) -> Source:
    """A built-in corpus (`shakespeare`, `python-docs`), a file (`.gz` too), a folder, or `-` for standard input.

    A file or folder of that name comes before a built-in corpus, unless the folder is a run. With `stored`, `corpus`
    is the address in a run's record: there a built-in name always means the corpus, whatever the working directory.

    Raises FileNotFoundError, PermissionError, ConnectionError or ValueError, each with a sentence for the user.
    """
    name = os.fspath(corpus)
    if not name:
        raise ValueError("The corpus name is empty. Give a file, a folder, or a built-in corpus.")
    path = Path(name).expanduser()
    built_in = name in _NAMED and (stored or not os.path.exists(path) or (path / "checkpoints").is_dir())
    if not built_in and os.path.isdir(path):  # pathlib's own raise OSError for a name that is too long
        return _folder(path.resolve(), glob)
    if glob is not None:
        raise ValueError(f"--glob chooses files of a folder, but {name} is not a folder.")
    if built_in:
        return _NAMED[name]()
    if name == "-":
        return _standard_input()
    if not os.path.exists(path):
        hint = did_you_mean(name, list(_NAMED)) or f"; built-in corpora: {', '.join(_NAMED)}"
        raise FileNotFoundError(f"There is no corpus {name!r}: no such file or folder{hint}.")
    if not path.is_file():
        raise ValueError(f"{name} is neither a file nor a folder.")
    path = path.resolve()
    return Source(path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name, str(path), (_file(path, name),))


def _file(path: Path, name: str) -> Document:
    return Document(name, lambda: _open_file(path, name), path.stat().st_size)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except PermissionError:
        raise PermissionError(f"{name} cannot be read: permission denied.") from None


def _folder(path: Path, glob: str | None) -> Source:
    """Every text file below `path`, in sorted order, without hidden ones."""
    files, skipped = [], []
    for parent, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    documents = []
    for file in sorted(files, key=lambda file: file.relative_to(path).as_posix()):
        name = file.relative_to(path).as_posix()
        if not file.is_file() or (glob and not (fnmatch(name, glob) or fnmatch(file.name, glob))):
            continue
        document = _file(file, str(file))
        if document.size == 0 or (not glob and _is_binary(document)):
            skipped.append(name)
        else:
            documents.append(document)
    if not documents:
        chosen = f" that match {glob!r}" if glob else ""
        raise ValueError(f"The folder {path} has no text files{chosen}.")
    some = ", ".join(skipped[:3]) + (" and others" if len(skipped) > 3 else "")
    notice = f"Skipped {len(skipped)} empty or binary file(s) in the folder: {some}."
    return Source(path.name or "folder", str(path), tuple(documents), (notice,) if skipped else ())


def _refuse(error: OSError) -> None:
    raise type(error)(f"{error.filename} cannot be read: {(error.strerror or 'unknown error').lower()}.") from None


def _is_binary(document: Document) -> bool:
    try:
        with document.open() as file:
            start = file.read(_SNIFF)
    except (OSError, EOFError, zlib.error):
        return False  # an unreadable file is an error later, when it is read; do not skip it silently
    return b"\0" in start and not start.startswith(tuple(bom for bom, _, _ in _BOMS))


def _standard_input() -> Source:
    """Standard input, saved in the cache under the hash of its content, so that you can resume the run."""
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError("Standard input is empty. Pipe a text into it, or give a file.")
    path = storage.cache_folder() / "stdin" / f"{hashlib.sha256(content).hexdigest()[:16]}.txt"
    storage.make_folder(path.parent)
    storage.write_file(path, content)
    return Source("stdin", str(path), (_file(path, "standard input"),))


def _shakespeare() -> Source:
    """Tiny Shakespeare, 1.1 MB, downloaded once. Its hash is checked each time."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    folder = storage.cache_folder() / "corpora"
    try:
        path = pooch.retrieve(
            SHAKESPEARE_URL, f"sha256:{SHAKESPEARE_SHA256}", fname="shakespeare.txt", path=folder,
            downloader=pooch.HTTPDownloader(timeout=20),
        )  # fmt: skip
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise ValueError(
            f"The download from {SHAKESPEARE_URL} is not Tiny Shakespeare (its SHA-256 differs), and was deleted."
        ) from None
    except requests.RequestException:
        raise ConnectionError(
            f"Tiny Shakespeare is not in {folder} and cannot be downloaded from {SHAKESPEARE_URL}."
        ) from None
    return Source("shakespeare", "shakespeare", (_file(Path(path), "shakespeare"),))


def _python_docs() -> Source:
    """The documentation that comes with every Python, one document per topic."""
    from pydoc_data.topics import topics

    texts = {name: topics[name].encode() for name in sorted(topics)}
    documents = [Document(f"python-docs: {name}", partial(io.BytesIO, text), len(text)) for name, text in texts.items()]
    return Source("python-docs", "python-docs", tuple(documents))


_NAMED: dict[str, Callable[[], Source]] = {"shakespeare": _shakespeare, "python-docs": _python_docs}


def read_bytes(document: Document) -> Iterator[bytes]:
    """The document's bytes in chunks. Raises OSError with a sentence if they cannot all be read."""
    n_bytes, digest = 0, hashlib.sha256()
    try:
        with document.open() as file:
            while chunk := file.read(CHUNK):
                n_bytes += len(chunk)
                if n_bytes > _MOST_UNPACKED * max(document.size, 2**20):
                    raise OSError(
                        f"{document.name} grows to more than {_MOST_UNPACKED} times its size when unpacked, which no "
                        "text does. If you do want to read it, unpack it first."
                    )
                if document.on_read:
                    digest.update(chunk)
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise OSError(f"{document.name} is damaged: it is not a complete gzip file.") from None
    if document.on_read:
        document.on_read(digest.digest())


class HashingSource:
    """A source that hashes what is read from it, to check afterwards that it was the expected text."""

    def __init__(self, source: Source) -> None:
        self._digests = [b""] * len(source.documents)  # if a document is read twice, the last time counts
        documents = (
            dataclasses.replace(document, on_read=partial(self._digests.__setitem__, i))
            for i, document in enumerate(source.documents)
        )
        self.source = dataclasses.replace(source, documents=tuple(documents))

    def check(self, fingerprint: str) -> None:
        """Raise ValueError if the bytes that were read are not the text with this fingerprint."""
        if hashlib.sha256(b"".join(self._digests)).hexdigest() != fingerprint:
            raise ValueError(
                f"The text {self.source.name} was changed while it was read. Run the same command again when no "
                "program writes to it."
            )


def read_text(document: Document, notice: Notice = silent, progress: Callable[[int], None] = silent) -> Iterator[str]:
    """The document's text in chunks, decoded strictly. Line ends stay as they are.

    `progress` gets the number of bytes of each chunk, after the chunk was used.
    Raises ValueError with file, line and offset of the first byte that is not UTF-8.
    """
    decoder: codecs.IncrementalDecoder | None = None
    offset, line = 0, 1  # of the next byte to decode
    for chunk in itertools.chain(read_bytes(document), [b""]):  # the empty one is the end
        n_bytes = len(chunk)
        if decoder is None:
            encoding, skip = _detect(document, chunk, notice)
            decoder = codecs.getincrementaldecoder(encoding)()
            chunk, offset = chunk[skip:], skip
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=n_bytes == 0)
        except UnicodeDecodeError as error:
            raise _undecodable(document, error, encoding, offset - pending, line) from None
        if n_bytes:
            yield text
            progress(n_bytes)
        offset += len(chunk)
        line += text.count("\n")


def _detect(document: Document, start: bytes, notice: Notice) -> tuple[str, int]:
    """The encoding, and the length of the byte-order mark to skip."""
    for bom, encoding, what in _BOMS:
        if start.startswith(bom):
            notice(f"{document.name} begins with {what}." if encoding == "utf-8" else f"{document.name} is {what}.")
            return encoding, len(bom)
    head = start[:_SNIFF]
    if b"\0" in head:
        half = len(head) // 2
        if half and max(head[0::2].count(0), head[1::2].count(0)) > 0.7 * half:
            raise ValueError(
                f"{document.name} looks like UTF-16 text without a byte-order mark. Convert it to UTF-8 first."
            )
        raise ValueError(f"{document.name} is a binary file, not text.")
    return "utf-8", 0


def _undecodable(document: Document, error: UnicodeDecodeError, encoding: str, base: int, line: int) -> ValueError:
    line += error.object[: error.start].decode(encoding).count("\n")
    byte = error.object[error.start]
    return ValueError(
        f"{document.name} is not valid {encoding.upper()}: byte 0x{byte:02X} in line {line}, at offset "
        f"{base + error.start}. Convert the file to UTF-8, or fix that byte."
    )
