"""A disk in memory that forgets what was not synced, and fails by plan."""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from kit.volume import File, Folder, Volume, error, require_replaceable
from pswire.body import Buffer


class Crashed(BaseException):
    """The process has died; as nothing of it goes on, nothing should catch this."""


class Operation(NamedTuple):
    """What is about to be done.

    Attributes:
        number: How many operations there have been, this one included.
        kind: The `Disk`'s or the `Writer`'s method. To remove a folder is an operation
            for every name in it too; to truncate a file for good is two.
        path: Of the file or folder; to rename, the old one.
    """

    number: int
    kind: str
    path: Path


Plan = Callable[[Operation], None]


def failing(number: int, failure: BaseException) -> Plan:
    """Make a plan by which one operation fails, counted from 1."""

    def plan(operation: Operation) -> None:
        if operation.number == number:
            raise failure

    return plan


class VirtualDisk:
    """A `Disk` on which the same operations, in one thread, always do the same.

    Attributes:
        on_operation: Is told every operation before it is done, and may fail it: with
            an OSError, or with `Crashed`, after which there are no more. A write that
            fails has written some of its bytes.
        capacity: How many bytes all files may have; None: any number. A write that is
            too much writes what fits.
        operations: How many there have been.
    """

    def __init__(
        self,
        random: Random,
        *,
        capacity: int | None = None,
        volume: Volume | None = None,
    ) -> None:
        """Start with an empty disk, or with what another one has left.

        Args:
            random: Chooses what is lost.
            capacity: See above.
            volume: What is on the disk; None: nothing.
        """
        self.on_operation: Plan = lambda operation: None
        self.capacity = capacity
        self.operations = 0
        self._random = random
        self._is_dead = False
        # Guards all that is above but the plan, and the volume with all that is in it.
        self._lock = threading.RLock()
        self._volume = volume or Volume()

    @property
    def used(self) -> int:
        """How many bytes all files have."""
        return self._volume.nbytes()

    def kill(self) -> "VirtualDisk":
        """End the process; return the disk for the next one, with all as it is."""
        with self._lock:
            self._is_dead = True
            return self._followed_by(self._volume)

    def crash(self) -> "VirtualDisk":
        """Lose power; return the disk for the next process, with what has lasted."""
        with self._lock:
            self._is_dead = True
            return self._followed_by(self._volume.lasting(self._random))

    def copy(self) -> "VirtualDisk":
        """Return a disk for a trial, of which this one will not know."""
        with self._lock:
            return self._followed_by(deepcopy(self._volume))

    # What a `Disk` does

    def create(self, path: Path) -> "VirtualWriter":
        with self.operation("create", path):
            folder, file = self._volume.folder(path.parent), File()
            if path.name in folder.names:
                raise error(errno.EEXIST, path)
            self._volume.change((folder, path.name, file))
            return VirtualWriter(self, path, file)

    def names(self, folder: Path) -> list[str]:
        with self.operation("names", folder):
            try:
                return sorted(self._volume.folder(folder).names)
            except FileNotFoundError:
                return []

    def nbytes(self, path: Path) -> int:
        with self.operation("nbytes", path):
            return len(self._volume.file(path).data)

    def read(self, path: Path, start: int, nbytes: int) -> bytes:
        with self.operation("read", path):
            return self._volume.file(path).data[start : start + nbytes]

    def make_folder(self, folder: Path) -> None:
        if not self._exists(folder.parent):
            self.make_folder(folder.parent)
        with self.operation("make_folder", folder):
            parent = self._volume.folder(folder.parent)
            there = parent.names.get(folder.name)
            if isinstance(there, File):
                raise error(errno.EEXIST, folder)
            if there is None:
                self._volume.change((parent, folder.name, Folder()))

    def rename(self, old: Path, new: Path) -> None:
        with self.operation("rename", old):
            source = self._volume.folder(old.parent)
            target = self._volume.folder(new.parent)
            node, there = self._volume.node(old), target.names.get(new.name)
            if there is node:
                return
            if old in new.parents:
                raise error(errno.EINVAL, new)
            require_replaceable(there, node, new)
            self._volume.change((source, old.name, None), (target, new.name, node))

    def remove(self, path: Path) -> None:
        node = self._volume.node(path)
        emptied = [node] if isinstance(node, Folder) else []
        for folder in emptied:
            for name in list(folder.names):
                self.remove(path / name)
        with self.operation("remove", path):
            parent = self._volume.folder(path.parent)
            self._volume.change((parent, path.name, None), after=emptied)

    def truncate(self, path: Path, nbytes: int) -> None:
        writer = VirtualWriter(self, path, self._volume.file(path))
        writer.truncate(nbytes)
        writer.sync()

    def sync(self, path: Path, start: int) -> None:
        file = self._volume.file(path)
        with self.operation("sync", path):
            file.write_again(start)

    def sync_folder(self, folder: Path) -> None:
        with self.operation("sync_folder", folder):
            self._volume.sync(self._volume.folder(folder))

    # For its writers

    @contextmanager
    def operation(
        self, kind: str, path: Path, half: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Do something, unless the plan fails it.

        Args:
            kind: See `Operation`.
            path: Likewise.
            half: Does what is done if the plan fails it.
        """
        with self._lock:
            self._require_alive()
            self.operations += 1
            operation = Operation(self.operations, kind, path)
        try:
            self.on_operation(operation)
        except BaseException as failure:
            with self._lock:
                self._require_alive()
                half()
                self._is_dead = isinstance(failure, Crashed)
            raise
        with self._lock:
            self._require_alive()
            yield

    def some_of(self, data: bytes) -> bytes:
        """Choose how much of some bytes is written by a write that fails."""
        return data[: self._random.randint(0, len(data))]

    def fitting(self, data: bytes) -> bytes:
        """Return as much of some bytes as there is room for."""
        if self.capacity is None:
            return data
        return data[: max(0, self.capacity - self._volume.nbytes())]

    def _followed_by(self, volume: Volume) -> "VirtualDisk":
        return VirtualDisk(self._random, capacity=self.capacity, volume=volume)

    def _exists(self, path: Path) -> bool:
        try:
            self._volume.node(path)
        except FileNotFoundError:
            return False
        return True

    def _require_alive(self) -> None:
        if self._is_dead:
            raise Crashed


class VirtualWriter:
    """A `Writer` to a `VirtualDisk`."""

    def __init__(self, disk: VirtualDisk, path: Path, file: File) -> None:
        self._disk = disk
        self._path = path
        self._file: File | None = file

    def write(self, buffers: Sequence[Buffer]) -> None:
        data, file = b"".join(buffers), self._opened()
        half = partial(file.append, self._disk.some_of(data))
        with self._disk.operation("write", self._path, half):
            fitting = self._disk.fitting(data)
            file.append(fitting)
        if len(fitting) < len(data):
            raise error(errno.ENOSPC, self._path)

    def sync(self) -> None:
        file = self._opened()
        try:
            with self._disk.operation("sync", self._path):
                file.sync()
        except OSError:
            file.has_failed = True
            raise

    def truncate(self, nbytes: int) -> None:
        file = self._opened()
        with self._disk.operation("truncate", self._path):
            file.truncate(nbytes)

    def close(self) -> None:
        self._opened()
        self._file = None

    def _opened(self) -> File:
        if self._file is None:
            raise error(errno.EBADF, self._path)
        return self._file
