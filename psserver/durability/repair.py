"""The repair of a segment whose end was torn."""

import logging
from pathlib import Path

from psserver.durability.disk import Disk
from pswire.body import CHUNK_NBYTES

_log = logging.getLogger("psserver")


def cut_off(disk: Disk, path: Path, start: int, found: str) -> None:
    """Cut off a segment's end, once a copy of it is on the disk.

    Args:
        disk: Has the segment.
        path: Of the segment; the copy lies beside it.
        start: Where the torn end starts, in bytes.
        found: What is there, for the log.

    Raises:
        OSError: It cannot be cut off now; whatever is left can be repaired again.
    """
    nbytes = disk.nbytes(path) - start
    aside = _unused(disk, path)
    _copy(disk, path, start, aside)
    disk.truncate(path, start)
    _log.warning(
        "%s at byte %d: expected a whole record, got %s; the log ends there, and the "
        "%d bytes from there on are now in %s",
        *(path, start, found, nbytes, aside.name),
        extra={
            "event": "log_repaired",
            "path": str(path),
            "offset": start,
            "nbytes": nbytes,
            "aside": str(aside),
        },
    )


def _unused(disk: Disk, path: Path) -> Path:
    names, number = disk.names(path.parent), 1
    aside = path.with_name(f"{path.name}.broken")
    while aside.name in names:
        number += 1
        aside = path.with_name(f"{path.name}.broken.{number}")
    return aside


def _copy(disk: Disk, path: Path, start: int, aside: Path) -> None:
    writer = disk.create(aside)
    try:
        while data := disk.read(path, start, CHUNK_NBYTES):
            writer.write([data])
            start += len(data)
        writer.sync()
    finally:
        writer.close()
    disk.sync_folder(aside.parent)
