"""What goes wrong with a disk, and with the process that uses it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from kit.virtualdisk import Crashed, Operation, VirtualDisk
from simulation.server import FOLDER
from simulation.tasks import stop_here

_ERRORS = (errno.EIO, errno.ENOSPC, errno.EMFILE)
_WRITES = {"create", "rename", "remove", "sync", "sync_folder", "truncate", "write"}


class Faults:
    """A disk that outlasts its server, and fails at moments that nobody knows.

    Attributes:
        disk: The one of the server that runs, or starts next.
        troubles: How many faults there have been that a server may complain of.
        has_struck: Whether an operation has failed as it was to.
    """

    def __init__(self, random: Random) -> None:
        self.troubles = 0
        self.has_struck = False
        self._random = random
        self._fuse: tuple[int, Exception | Crashed] | None = None
        self.wipe()

    def arm(self, ahead: int, *, is_last: bool) -> None:
        """Let an operation fail, or be the last.

        Args:
            ahead: It is this one of those that follow. One that only reads does not
                fail, but the next one that writes does.
            is_last: Whether the process dies of it.
        """
        failure = (
            Crashed() if is_last else OSError(self._random.choice(_ERRORS), "by plan")
        )
        self._fuse = self.disk.operations + ahead, failure

    def disarm(self) -> None:
        self._fuse = None

    def fill(self) -> None:
        """Leave little room on the disk."""
        self.troubles += 1
        self.disk.capacity = self.disk.used + self._random.randrange(1000)

    def free(self) -> None:
        """Make room again."""
        self.disk.capacity = None

    def wipe(self) -> None:
        """Begin with another disk, on which nothing is."""
        self.disk = VirtualDisk(self._random)
        self.disk.make_folder(FOLDER)
        self.disk.sync_folder(FOLDER.parent)
        self.disk.on_operation = self._watch

    def end(self, *, cut_off: bool) -> None:
        """End the process: kill it, or cut its power off."""
        self.disk = self.disk.crash() if cut_off else self.disk.kill()
        self.disk.on_operation = self._watch
        self.disarm()

    @contextmanager
    def undisturbed(self) -> Iterator[VirtualDisk]:
        """Let nothing fail while somebody else uses the disk."""
        self.free()
        self.disk.on_operation = lambda operation: None
        yield self.disk
        self.disk.on_operation = self._watch

    @contextmanager
    def on_a_copy(self) -> Iterator[VirtualDisk]:
        """Put a copy in the disk's place for a while, on which nothing fails."""
        disk, self.disk = self.disk, self.disk.copy()
        self.disk.capacity = None
        try:
            yield self.disk
        finally:
            self.disk = disk

    def _watch(self, operation: Operation) -> None:
        if self._fuse and operation.number >= self._fuse[0]:
            failure = self._fuse[1]
            if isinstance(failure, Crashed) or operation.kind in _WRITES:
                self.disarm()
                self.has_struck = True
                self.troubles += isinstance(failure, OSError)
                raise failure
        stop_here()
