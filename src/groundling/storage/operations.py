"""All operations that change the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class Disk:
    """All operations that change the disk. A crash comes before, after or in the middle of one."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def write(self, path: Path, content: bytes | bytearray) -> None:
        """Append to a file. Create it if it does not exist."""
        with path.open("ab") as file:
            file.write(content)

    def fill(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let a library write a new file itself, if passing its content would take twice the memory."""
        write(path)

    def sync(self, path: Path) -> None:
        """Flush a file's content, or the names in a folder, to the disk."""
        if path.is_dir() and os.name == "nt":
            return  # Windows cannot sync a folder. Its renames are journalled.
        # Windows only syncs handles that are open for writing.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise") and not path.is_dir():
                with suppress(OSError):
                    # Drop it from the page cache, so that reading it back reads the disk.
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Atomically. A file at `new` is replaced, but not a folder with content."""
        os.replace(old, new)

    def delete(self, path: Path) -> None:
        """Delete a file or an empty folder."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
