"""Whether a disk has room, found out by use of it."""

from pathlib import Path

from psserver.durability.disk import Disk
from psserver.durability.errors import DiskFullError

PROBE = "probe"
"""The name of a file that is there while room is looked for."""

_PIECE = bytes(2**20)


def require_room(disk: Disk, folder: Path, nbytes: int) -> None:
    """Check that there is room for a file of so many bytes, rounded up to mebibytes.

    Args:
        disk: Has the folder.
        folder: Where the file is to be for a while; one thread at a time may use it.
        nbytes: Of the file.

    Raises:
        DiskFullError: There is not, or nobody can tell now.
    """
    pieces = [_PIECE] * max(1, -(-nbytes // len(_PIECE)))
    path = folder / PROBE
    try:
        if PROBE in disk.names(folder):
            disk.remove(path)  # Of a server that was killed.
        writer = disk.create(path)
        try:
            disk.remove(path)  # Its bytes are there until it is closed, or a kill.
            writer.write(pieces)
            writer.sync()  # Some file systems look for room no sooner.
        finally:
            writer.close()
    except OSError as error:
        raise DiskFullError(path, len(pieces) * len(_PIECE), error) from error
