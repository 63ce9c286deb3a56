"""What durability asks of a file system, and the real one."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pswire.body import CHUNK_NBYTES, Buffer

_MAX_BUFFERS = 1024  # Of one call: Linux takes no more.


class Writer(Protocol):
    """A new file, which is written from its beginning on."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append bytes; after an error nobody knows how many of them.

        Raises:
            OSError: The file system does not take them.
        """

    def sync(self) -> None:
        """Return once all that has been written outlasts a loss of power.

        Raises:
            OSError: It may not, and to try again would prove nothing.
        """

    def truncate(self, nbytes: int) -> None:
        """Forget all but the first bytes."""

    def close(self) -> None: ...


class Disk(Protocol):
    """A file system: what is not synced may be lost in a crash, wholly or in part."""

    def create(self, path: Path) -> Writer:
        """Make a file that only its owner reads; it must not be there yet."""

    def names(self, folder: Path) -> list[str]:
        """Return what is in a folder, sorted: nothing if there is no folder."""

    def nbytes(self, path: Path) -> int:
        """Return a file's size in bytes."""

    def read(self, path: Path, start: int, nbytes: int) -> bytes:
        """Return some of a file's bytes; fewer if it ends before."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder that only its owner opens, unless it is there.

        Those that it lies in are made too; whether their names last is for the caller
        to see to.
        """

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or a folder another name, at once or not at all."""

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it."""

    def truncate(self, path: Path, nbytes: int) -> None:
        """Forget all but a file's first bytes, for good."""

    def sync(self, path: Path, start: int) -> None:
        """Return once a file's bytes from `start` on outlast a loss of power.

        Whoever wrote them may have failed to sync them. The operating system takes what
        it could not write for written, so this writes the same bytes once more.
        """

    def sync_folder(self, folder: Path) -> None:
        """Return once the names in a folder outlast a loss of power."""


class RealDisk:
    """The file system of this machine."""

    def create(self, path: Path) -> Writer:
        return _RealWriter(path)

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def nbytes(self, path: Path) -> int:
        return path.stat().st_size

    def read(self, path: Path, start: int, nbytes: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            parts = []
            while nbytes and (part := file.read(nbytes)):
                parts.append(part)
                nbytes -= len(part)
        return b"".join(parts)

    def make_folder(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in missing:
            self.sync_folder(each.parent)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def truncate(self, path: Path, nbytes: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, nbytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, path: Path, start: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            while data := os.pread(descriptor, CHUNK_NBYTES, start):
                start += os.pwrite(descriptor, data, start)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _RealWriter:
    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, buffers: Sequence[Buffer]) -> None:
        rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while rest:
            written = os.writev(self._descriptor, rest[:_MAX_BUFFERS])
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = rest[0][written:]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def truncate(self, nbytes: int) -> None:
        os.ftruncate(self._descriptor, nbytes)

    def close(self) -> None:
        os.close(self._descriptor)
