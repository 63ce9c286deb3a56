"""What goes wrong with a disk, and with the process that uses it."""

import errno
from random import Random

from kit.virtualdisk import Crashed, Operation, Plan, VirtualDisk
from simulation.server import FOLDER

_WRITES = {"create", "rename", "remove", "sync", "sync_folder", "truncate", "write"}


class Faults:
    """A disk that outlasts its server, and fails at moments that nobody knows.

    Attributes:
        disk: The one of the server that runs, or starts next.
        meanwhile: Is told each operation before it is done, unless it fails.
        troubles: How many faults there have been that a server may complain of.
        has_struck: Whether an operation has failed as it was to.
    """

    def __init__(self, random: Random) -> None:
        self.disk = VirtualDisk(random)
        self.disk.make_folder(FOLDER)
        self.disk.sync_folder(FOLDER.parent)
        self.meanwhile: Plan = lambda operation: None
        self.troubles = 0
        self.has_struck = False
        self._random = random
        self._fuse: tuple[int, Exception | Crashed] | None = None

    def arm(self, ahead: int, *, is_last: bool) -> None:
        """Let an operation fail, or be the last.

        Args:
            ahead: It is this one of those that follow. One that only reads does not
                fail, but the next one that writes does.
            is_last: Whether the process dies of it.
        """
        failure = Crashed() if is_last else OSError(errno.EIO, "by plan")
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

    def end(self, *, cut_off: bool) -> None:
        """End the process: kill it, or cut its power off."""
        self.disk = self.disk.crash() if cut_off else self.disk.kill()
        self.disk.on_operation = self._watch
        self.disarm()

    def damage(self) -> None:
        """Change a bit of the newest checkpoint."""
        self.disk.on_operation = lambda operation: None
        self.free()
        folder = FOLDER / "checkpoints"
        newest = max(
            n for n in self.disk.names(folder) if n.replace("-step-", "").isdigit()
        )
        names = self.disk.names(folder / newest)
        path = folder / newest / self._random.choice(names)
        data = bytearray(self.disk.read(path, 0, self.disk.nbytes(path)))
        data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        self.disk.remove(path)
        writer = self.disk.create(path)
        writer.write([bytes(data)])
        writer.sync()
        self.disk.sync_folder(path.parent)
        self.disk.on_operation = self._watch

    def _watch(self, operation: Operation) -> None:
        if self._fuse and operation.number >= self._fuse[0]:
            failure = self._fuse[1]
            if isinstance(failure, Crashed) or operation.kind in _WRITES:
                self.disarm()
                self.has_struck = True
                self.troubles += isinstance(failure, OSError)
                raise failure
        self.meanwhile(operation)
