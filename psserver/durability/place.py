"""Whether a folder may be a data directory: it must not be a part of another one."""

from collections.abc import Iterator
from pathlib import Path

from psserver.durability.checkpoints import FOLDER, is_part
from psserver.durability.disk import Disk
from psserver.durability.ending import Ending
from psserver.durability.errors import DataDirectoryError
from psserver.durability.segments import LOG_FOLDER


def require_own(disk: Disk, folder: Path) -> None:
    """Check that a folder neither is nor has a part of another data directory.

    Raises:
        DataDirectoryError: It does.
        OSError: It cannot be read.
    """
    for part in _parts(disk, folder):
        raise DataDirectoryError(
            f"data_dir: expected a folder of its own, got {folder}, which {part}"
        )


def _parts(disk: Disk, folder: Path) -> Iterator[str]:
    for name in filter(is_part, disk.names(folder)):
        yield f"has {name} of another data directory"
    for part in (FOLDER, LOG_FOLDER):
        if _is_data_directory(disk, folder / part):
            yield f"has another data directory for its {part}"
        if folder.name == part and _is_data_directory(disk, folder.parent):
            yield f"is the {part} of the data directory {folder.parent}"


def _is_data_directory(disk: Disk, folder: Path) -> bool:
    try:
        return Ending.read(disk, folder) is not None
    except OSError:  # Somebody else's file of that name, or nobody's to read.
        return False
