"""How the last server of a data directory kept it, and whether it could say goodbye."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError

NAME = "state.json"


@dataclass(frozen=True, slots=True)
class Ending:
    """What a data directory's last server had written down of itself.

    Attributes:
        mode: Its durability: `checkpoint` or `log`.
        generation: The history it ended with; empty while it runs.
        step: The step it ended at, all of which is in a checkpoint; -1 while it runs.
    """

    mode: str
    generation: str = ""
    step: int = -1

    @classmethod
    def read(cls, disk: Disk, folder: Path) -> Self | None:
        """Return what is written in a data directory; None: nothing.

        Raises:
            DataDirectoryError: It cannot be understood.
        """
        if NAME not in disk.names(folder):
            return None
        path = folder / NAME
        text = disk.read(path, 0, disk.nbytes(path))
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataDirectoryError(
                f"{path}: expected how the last server ended, got {text[:64]!r}"
            ) from error

    def write(self, disk: Disk, folder: Path) -> None:
        """Write it down in place of what was there, for good."""
        fresh = folder / f"{NAME}.new"
        if fresh.name in disk.names(folder):
            disk.remove(fresh)
        writer = disk.create(fresh)
        try:
            writer.write([json.dumps(asdict(self)).encode() + b"\n"])
            writer.sync()
        finally:
            writer.close()
        disk.rename(fresh, folder / NAME)
        disk.sync_folder(folder)
