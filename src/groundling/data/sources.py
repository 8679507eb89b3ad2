"""Named corpora, files, folders and standard input, all as one thing: a `Source` of documents.

Text is UTF-8, strictly. Whatever is not is refused with the file, line and offset, never repaired in
silence: a wrong character in the training text is a wrong character in everything the model writes.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, cast

from groundling import storage
from groundling.config import did_you_mean

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

CHUNK = 4 * 2**20  # bytes read at once: memory does not grow with the corpus
_MOST_UNPACKED = 200  # times; text shrinks to a tenth at best, and what is made to fill a disk to a thousandth
_SNIFF = 8192  # a NUL byte this early means that a file is not UTF-8 text

_BOMS = (
    (codecs.BOM_UTF8, "utf-8", "a UTF-8 byte-order mark, which is left out"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32 text"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16 text"),
)


@dataclass(frozen=True)
class Document:
    """One text. `open` gives its bytes from the start, uncompressed."""

    name: str
    open: Callable[[], BinaryIO]
    size: int  # bytes, for progress only: a compressed file counts as it lies on the disk


@dataclass(frozen=True)
class Source:
    """A corpus before it is tokenized.

    `address` is what finds it again: a name such as `shakespeare`, or an absolute path. `notices` are
    sentences about how it was read that a user should see.
    """

    name: str
    address: str
    documents: tuple[Document, ...]
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(document.size for document in self.documents)


def find_source(corpus: str | os.PathLike[str], glob: str | None = None, stored: bool = False) -> Source:
    """A name (`shakespeare`, `python-docs`), a file (`.gz` too), a folder, or `-` for standard input.

    A file or folder goes before a name, unless that folder is a run. With `stored`, `corpus` is the address of a run's
    text, where a name is always a name: it must mean the same in every working directory.

    Raises FileNotFoundError, PermissionError, ConnectionError or ValueError, each with a sentence for the user.
    """
    name = os.fspath(corpus)
    if not name:
        raise ValueError("The name of the corpus is empty: give a file, a folder, or the name of a corpus.")
    path = Path(name).expanduser()
    if name in _NAMED and (stored or not os.path.exists(path) or _is_run(path)):
        if glob is not None:
            raise ValueError(f"--glob chooses files of a folder, and {name} is not a folder.")
        return _NAMED[name]()
    if os.path.isdir(path):  # pathlib's own raise OSError for a name that is too long
        return _folder(path.resolve(), glob)
    if glob is not None:
        raise ValueError(f"--glob chooses files of a folder, and {name} is not a folder.")
    if name == "-":
        return _standard_input()
    if not os.path.exists(path):
        known = ", ".join(_NAMED)
        hint = did_you_mean(name, list(_NAMED)) or f"; the corpora with names are {known}"
        raise FileNotFoundError(f"There is no corpus {name!r}: no such file or folder{hint}.")
    if not path.is_file():
        raise ValueError(f"{name} is neither a file nor a folder.")
    path = path.resolve()
    return Source(path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name, str(path), (_file(path, name),))


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def _file(path: Path, name: str) -> Document:
    opener: Callable[[], BinaryIO] = lambda: _open_file(path, name)  # noqa: E731
    return Document(name, opener, path.stat().st_size)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except PermissionError:
        raise PermissionError(f"{name} cannot be read: permission denied.") from None


def _folder(path: Path, glob: str | None) -> Source:
    """Every file below `path` in sorted order; hidden ones, and those that are no text, are left out."""
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
    notices: tuple[str, ...] = ()
    if skipped:
        some = ", ".join(skipped[:3]) + (" and others" if len(skipped) > 3 else "")
        notices = (f"{len(skipped)} empty or binary file(s) of the folder are left out: {some}.",)
    return Source(path.name or "folder", str(path), tuple(documents), notices)


def _refuse(error: OSError) -> None:
    raise type(error)(f"{error.filename} cannot be read: {(error.strerror or 'unknown error').lower()}.") from None


def _is_binary(document: Document) -> bool:
    try:
        with document.open() as file:
            start = file.read(_SNIFF)
    except (OSError, EOFError, zlib.error):
        return False  # what cannot be read is an error when it is read, not a file to skip in silence
    return b"\0" in start and not start.startswith(tuple(bom for bom, _, _ in _BOMS))


def _standard_input() -> Source:
    """Standard input, kept in the cache under the hash of its content, so that a run can be resumed."""
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError("Standard input is empty: there is no text to train on.")
    path = storage.cache_folder() / "stdin" / f"{hashlib.sha256(content).hexdigest()[:16]}.txt"
    storage.make_folder(path.parent)
    storage.write_file(path, content)
    return Source("stdin", str(path), (_file(path, "standard input"),))


def _shakespeare() -> Source:
    """Tiny Shakespeare, 1.1 MB, downloaded once; its hash is checked each time."""
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
            f"What {SHAKESPEARE_URL} sent is not Tiny Shakespeare (its SHA-256 differs), and was thrown away."
        ) from None
    except requests.RequestException:
        raise ConnectionError(
            f"Tiny Shakespeare is not in {folder} and cannot be downloaded from {SHAKESPEARE_URL}."
        ) from None
    return Source("shakespeare", "shakespeare", (_file(Path(path), "shakespeare"),))


def _python_docs() -> Source:
    """The documentation text that every Python ships, one document a topic."""
    from pydoc_data.topics import topics

    texts = {name: topics[name].encode() for name in sorted(topics)}
    documents = tuple(Document(f"python-docs: {name}", _opener(text), len(text)) for name, text in texts.items())
    return Source("python-docs", "python-docs", documents)


def _opener(content: bytes) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(content)


_NAMED: dict[str, Callable[[], Source]] = {"shakespeare": _shakespeare, "python-docs": _python_docs}


def read_bytes(document: Document) -> Iterator[bytes]:
    """The document's bytes in chunks. Raises OSError with a sentence if they cannot be read to the end."""
    n_bytes = 0
    try:
        with document.open() as file:
            while chunk := file.read(CHUNK):
                n_bytes += len(chunk)
                if n_bytes > _MOST_UNPACKED * max(document.size, 2**20):
                    raise OSError(
                        f"{document.name} grows to more than {_MOST_UNPACKED} times its size when it is unpacked, "
                        "which no text does: it is not read. If it is meant, unpack it first."
                    )
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise OSError(f"{document.name} is damaged: it is not a whole gzip file.") from None


class HashingSource:
    """A source that is read through, and remembers what it read: whether that was what it is said to be."""

    def __init__(self, source: Source) -> None:
        self._digests = [hashlib.sha256() for _ in source.documents]
        documents = (self._listened(number, document) for number, document in enumerate(source.documents))
        self.source = dataclasses.replace(source, documents=tuple(documents))

    def _listened(self, number: int, document: Document) -> Document:
        def opened() -> BinaryIO:
            self._digests[number] = hashlib.sha256()  # read a second time, the last time counts
            return cast(BinaryIO, _HashingFile(document.open(), self._digests[number]))

        return dataclasses.replace(document, open=opened)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the bytes that were read, document after document."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()

    def check(self, fingerprint: str) -> None:
        """Raise ValueError if what was read is not the text of this fingerprint."""
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"The text {self.source.name} was changed while it was read. Give the same command again when nothing "
                "writes to it any more."
            )


class _HashingFile:
    """A file of which every byte that is read goes into a digest as well."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash) -> None:
        self._file, self._digest = file, digest

    def read(self, n: int) -> bytes:
        chunk = self._file.read(n)
        self._digest.update(chunk)
        return chunk

    def __enter__(self) -> _HashingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_text(
    document: Document,
    notice: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Iterator[str]:
    """The document's text in chunks, decoded strictly; line ends stay as they are.

    `progress` is told how many bytes each chunk came from, after the chunk was used.
    Raises ValueError naming file, line and offset of the first byte that is not UTF-8.
    """
    encoding = ""
    decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1  # of the next byte to decode
    for chunk in read_bytes(document):
        n_bytes = len(chunk)
        if not encoding:
            encoding, skip = _detect(document, chunk, notice)
            decoder = codecs.getincrementaldecoder(encoding)()
            chunk, offset = chunk[skip:], skip
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise _undecodable(document, error, encoding, offset - pending, line) from None
        yield text
        progress(n_bytes)
        offset += len(chunk)
        line += text.count("\n")
    try:
        pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _undecodable(document, error, encoding, offset - pending, line) from None


def _detect(document: Document, start: bytes, notice: Callable[[str], None]) -> tuple[str, int]:
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
                f"{document.name} looks like UTF-16 text without a byte-order mark; convert it to UTF-8 first."
            )
        raise ValueError(f"{document.name} is a binary file, not text.")
    return "utf-8", 0


def _undecodable(document: Document, error: UnicodeDecodeError, encoding: str, base: int, line: int) -> ValueError:
    line += error.object[: error.start].decode(encoding).count("\n")
    byte = error.object[error.start]
    return ValueError(
        f"{document.name} is not valid {encoding.upper()}: byte 0x{byte:02X} in line {line}, at offset "
        f"{base + error.start}. Convert the file to UTF-8, or repair that place."
    )
