"""Built-in corpora, files, folders, archives and pipes: any number of them, found and read as one `Source`."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from wcmatch import glob as wcglob

from groundling import storage
from groundling.config import CorpusSettings, did_you_mean, slip
from groundling.data.compression import members
from groundling.data.documents import Document, read_documents, read_entries
from groundling.data.files import TextFile, file_at, shown
from groundling.data.folders import GLOB, Found, model_in
from groundling.data.formats import Reading, is_packed
from groundling.data.progress import Notice, silent
from groundling.data.shards.kept import Kept
from groundling.escape import command, quoted

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

CorpusPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Input:
    """A file, folder or name that was given: its name, the address that finds it again, and where its files end among
    those of all inputs."""

    name: str
    address: str
    end: int


@dataclass(frozen=True)
class Source:
    """A corpus before it is tokenized.

    `addresses` find it again: names such as `shakespeare`, absolute paths, or file URLs of paths that are not UTF-8.
    `notices` are sentences for the user about what was found.
    """

    name: str
    addresses: tuple[str, ...]
    files: tuple[TextFile, ...]
    reading: Reading = Reading()  # noqa: RUF009  (frozen)
    notices: tuple[str, ...] = ()
    kept: tuple[Kept, ...] | None = None
    """Which documents of each of its shards are read, if copies are left out: see data/shards/duplicates.py."""
    inputs: tuple[Input, ...] = ()
    """Each file, folder or name that was given."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def corpus(self) -> str | tuple[str, ...]:
        """The address, or the addresses of several inputs, as a run's settings hold them."""
        return self.addresses[0] if len(self.addresses) == 1 else self.addresses

    @property
    def parts(self) -> list[Source]:
        """Each input as a text of its own."""
        ends = [0, *(each.end for each in self.inputs)]
        return [
            Source(each.name, (each.address,), self.files[start : each.end], self.reading)
            for each, start in zip(self.inputs, ends, strict=False)
        ]

    @property
    def plain_path(self) -> str | None:
        """The path of the text if it is one plain file, neither compressed nor with entries."""
        only = self.files[0] if len(self.files) == len(self.addresses) == 1 else None
        path = self.addresses[0]
        return path if only and only.format == "text" and os.path.isfile(path) and not is_packed(only) else None

    def idle_separator(self, n_documents: int) -> str:
        """A sentence for the user if they named a separator, but the text has only so many documents without it."""
        separator = self.reading.document_separator
        has_others = n_documents > len(self.files) or any(file.format != "text" for file in self.files)
        if has_others or separator in ("", CorpusSettings.document_separator):
            return ""
        windows = separator.replace("\n", "\r\n")
        hint = f" If lines end in CR LF, use {windows!r}." if "\n" in separator and "\r" not in separator else ""
        return f"--document-separator {separator!r} separates nothing: each file is one document.{hint}"

    def documents(
        self, file: TextFile, notice: Notice = silent, progress: Callable[[int], None] = silent,
        skipped: Callable[[int], None] | None = None,
    ) -> Iterator[Document]:  # fmt: skip
        """The documents of one of the files, as `read_documents` gives them."""
        return read_documents(file, file.format, self.reading, notice, progress, skipped)

    def entries(
        self, file: TextFile, notice: Notice = silent, progress: Callable[[int], None] = silent
    ) -> Iterator[tuple[str, Any]]:
        """The entries of one of the files, as `read_entries` gives them."""
        return read_entries(file, file.format, self.reading, notice, progress)


def find_source(
    corpus: CorpusPath | Sequence[CorpusPath],
    settings: CorpusSettings = CorpusSettings(),  # noqa: B008  (frozen)
    stored: bool = False,
    entries: bool = False,
) -> Source:
    """Built-in corpora (`shakespeare`, `python-docs`), files, folders, archives, or `-` for standard input.

    A file or folder of that name comes before a built-in corpus, unless the folder is a run. With `stored`, `corpus`
    is the address in a run's record: there a built-in name always means the corpus, whatever the working directory.
    With `entries`, files hold entries with several fields, such as conversations: see data/conversations.py.

    Raises FileNotFoundError, PermissionError, ConnectionError or ValueError, each with a sentence for the user.
    """
    paths = [corpus] if isinstance(corpus, str | os.PathLike) else corpus
    if not isinstance(paths, Sequence) or not all(isinstance(each, str | os.PathLike) for each in paths):
        raise TypeError(f"A corpus is a path or a list of paths, not {type(corpus).__name__}.")
    names = [os.fspath(each) for each in paths]
    if not names or not all(names):
        raise ValueError("The corpus name is empty. Give a file, a folder, or a built-in corpus.")
    if settings.glob is not None and not any(_may_be_folder(name) for name in names):
        raise ValueError(
            f"--glob chooses files of a folder, but {shown(names[0])} is not a folder. If the shell replaced the "
            "pattern by file names, put it in quotes: --glob '*.txt'."
        )
    found = Found(Reading(settings.format, settings.field, settings.document_separator, entries), settings.glob)
    with _readable_errors():
        parts = [part for name in names for part in _add(name, found, stored)]
    if not found.files:
        chosen = f" that match {settings.glob!r}" if settings.glob else ""
        where = f"The folder {parts[0].address} has" if len(parts) == 1 else "The inputs have"
        raise ValueError(f"{where} no text files{chosen}.{found.without}")
    name = parts[0].name if len(parts) == 1 else f"{parts[0].name} and {len(parts) - 1} more"
    counted = found.left_out or (len(found.files) > 1 and not (len(parts) == 1 and parts[0].name in _NAMED))
    notices = (found.summary,) if counted else ()
    addresses = tuple(part.address for part in parts)
    return Source(name, addresses, tuple(found.files), found.reading, notices, inputs=tuple(parts))


def _add(name: str, found: Found, stored: bool) -> list[Input]:
    """Add the files of an input to `found`. It is several inputs if it is a pattern that the shell did not expand."""
    path = _path(name)
    exists = _exists(path)
    if name in _NAMED and (stored or not exists or model_in(path)):
        found.files += _NAMED[name]()
        return [Input(name, name, len(found.files))]
    if name == "-":
        if sys.stdin is None:
            raise ValueError("Standard input is closed. Give the path of a file.")
        return [_add_pipe(sys.stdin.buffer.read(), "standard input", found)]
    if not exists:
        matching = sorted(wcglob.glob(str(path), flags=GLOB)) if _is_pattern(name) else []
        if not matching:
            raise FileNotFoundError(_missing(name))
        return [part for each in matching for part in _add(each, found, stored)]
    if os.path.isdir(path):
        path = path.resolve()
        if what := model_in(path):
            raise ValueError(f"{shown(name)} is {_written(what, name)}")
        found.add_folder(path)
        return [Input(shown(path.name) or "folder", _address(path), len(found.files))]
    if path.is_file():
        path = path.resolve()
        found.add_file(path, shown(name))
        return [Input(_stem(shown(path.name)), _address(path), len(found.files))]
    if path.is_fifo() or (path.is_char_device() and (path.samefile(os.devnull) or _is_terminal(path))):
        return [_add_pipe(path.read_bytes(), shown(name), found)]
    broken = path.is_symlink() and not path.exists()
    raise ValueError(f"{shown(name)} is {'a dead link' if broken else 'neither a file nor a folder'}.")


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Give errors of the system as sentences."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise  # one of our own
        what = "The text" if error.filename is None else f"{shown(error.filename):.200}"
        raise type(error)(f"{what} cannot be read: {error.strerror.lower()}.") from None


def is_there(address: str) -> bool:
    """Whether there is a file or folder at an address of a `Source`. Built-in names are none."""
    return _exists(_path(address))


def _exists(path: Path) -> bool:
    """Raises PermissionError where a folder does not let us look."""
    try:
        path.lstat()
    except PermissionError:
        raise PermissionError(f"{shown(path)} cannot be read: permission denied.") from None
    except (OSError, ValueError):  # missing, a name that is too long, or with a NUL
        return False
    return True


def _is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[{")


def _may_be_folder(name: str) -> bool:
    """Whether `--glob` can choose from an input: a folder, a zip file, or a pattern."""
    path = _path(name)
    return _is_pattern(name) or os.path.isdir(path) or (os.path.isfile(path) and members(path, shown(name)) is not None)


def _written(what: str, name: str) -> str:
    """The end of a sentence on a folder that a program wrote, with what helps."""
    if what == "cache":
        return "a cache, not a text. Give the text itself."
    if what in ("run", "checkpoint"):
        return f"a {what}, not a text. To train from its weights, give a text and --init-from {quoted(name)}."
    article = "an" if what == "export" else "a"
    return (
        f"{article} {what}, not a text. To train it further: `{command('import', name)}`, then a text and --init-from."
    )


def _path(name: str) -> Path:
    """The path that `name` means: with `~`, as a file URL, or in another Unicode normal form than on the disk."""
    if name.startswith("file://"):
        address = urlsplit(name).path
        return Path(url2pathname(address) if os.name == "nt" else unquote(address, errors="surrogateescape"))
    path = Path(os.path.expanduser(name))
    if not os.path.lexists(path):
        wanted = unicodedata.normalize("NFC", path.name)
        with suppress(OSError):
            return next((p for p in path.parent.iterdir() if unicodedata.normalize("NFC", p.name) == wanted), path)
    return path


def _address(path: Path) -> str:
    """The path, or its file URL if its name is not UTF-8, which JSON could not hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return str(path)


def _stem(name: str) -> str:
    """A file's name without the ending of its kind: `book` for `book.txt.gz`."""
    for packed in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        name = name.removesuffix(packed) or name
    return name.rsplit(".", 1)[0] or name


def _missing(name: str) -> str:
    if len(name) > 500 or "\n" in name:
        return f"The corpus is the path of a file, not a text: there is no file {shown(name[:50])!r}... Save it first."
    if not name.startswith("file://") and (explanation := slip(name)):
        return f"There is no corpus {shown(name)!r}: {explanation}"
    siblings = os.listdir(Path(name).parent) if Path(name).parent.is_dir() else []
    hint = did_you_mean(Path(name).name, [*_NAMED, *siblings]) or f"; built-in corpora: {', '.join(_NAMED)}"
    return f"There is no corpus {shown(name)!r}: no such file or folder{shown(hint)}."


def _is_terminal(path: Path) -> bool:
    with path.open("rb", buffering=0) as device:
        return device.isatty()


def _add_pipe(content: bytes, name: str, found: Found) -> Input:
    """A pipe's content, saved in the cache under the hash of its content, so that you can resume the run."""
    if not content:
        raise ValueError(f"{name[0].upper()}{name[1:]} is empty. Pipe a text into it, or give a file.")
    path = storage.cache_folder() / "stdin" / f"{hashlib.sha256(content).hexdigest()[:16]}.txt"
    storage.make_folder(path.parent)
    storage.write_file(path, content)
    found.add_file(path, name)
    return Input("stdin", str(path), len(found.files))


def _shakespeare() -> list[TextFile]:
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
    except (requests.RequestException, ImportError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, requests.RequestException):
            raise  # the disk's
        if isinstance(error, ValueError) and "hash" in str(error):
            raise ValueError(
                f"The download from {SHAKESPEARE_URL} is not Tiny Shakespeare (its SHA-256 differs), and was deleted."
            ) from None
        # Also a proxy that requests does not know, or certificates that are not there.
        why = (
            ""
            if isinstance(error, requests.RequestException) and not isinstance(error, ValueError)
            else f" ({error!s:.200})"
        )
        raise ConnectionError(
            f"Tiny Shakespeare is not in {folder} and cannot be downloaded from {SHAKESPEARE_URL}{why}."
        ) from None
    return [file_at(Path(path), "shakespeare", "shakespeare")]


def _python_docs() -> list[TextFile]:
    """The documentation that comes with every Python, one document per topic."""
    from pydoc_data.topics import topics

    texts = {name: topics[name].encode() for name in sorted(topics)}
    return [
        TextFile(f"python-docs: {name}", name, partial(io.BytesIO, text), len(text)) for name, text in texts.items()
    ]


_NAMED: dict[str, Callable[[], list[TextFile]]] = {"shakespeare": _shakespeare, "python-docs": _python_docs}
