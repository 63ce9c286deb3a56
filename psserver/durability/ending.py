"""How the last server of a data directory kept it, and whether it could say goodbye."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from psserver.durability import sealed
from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError
from psserver.durability.jsonfields import get

NAME = "state.json"

_MODES = ("checkpoint", "log")


@dataclass(frozen=True, slots=True)
class Ending:
    """What a data directory's last server had written down of itself.

    Attributes:
        mode: Its durability: `checkpoint` or `log`.
        has_model: Whether a checkpoint had been saved.
        generation: The history it ended with; empty while it runs.
        step: The step it ended at, all of which is in a checkpoint; -1 while it runs.
    """

    mode: str
    has_model: bool = False
    generation: str = ""
    step: int = -1

    @classmethod
    def read(cls, disk: Disk, folder: Path) -> Self | None:
        """Return what is written in a data directory; None: nothing.

        Raises:
            DataDirectoryError: It is not what was written.
            OSError: It cannot be read.
        """
        if NAME not in disk.names(folder):
            return None
        path = folder / NAME
        try:
            data = sealed.decode(disk.read(path, 0, disk.nbytes(path)))
            return cls(
                mode=get(data, "mode", str),
                has_model=get(data, "has_model", bool),
                generation=get(data, "generation", str),
                step=get(data, "step", int),
            )
        except ValueError as error:
            raise DataDirectoryError(
                f"{path}: expected how the last server ended, got something else: "
                f"{error}; to go on without it, move it away, it alone"
            ) from error

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            known = ", ".join(_MODES)
            raise ValueError(f"mode: expected one of {known}, got {self.mode!r}")

    def write(self, disk: Disk, folder: Path) -> None:
        """Write it down in place of what was there, for good."""
        fresh = folder / f"{NAME}.new"
        if fresh.name in disk.names(folder):
            disk.remove(fresh)
        writer = disk.create(fresh)
        try:
            writer.write([sealed.encode(asdict(self))])
            writer.sync()
        finally:
            writer.close()
        disk.rename(fresh, folder / NAME)
        disk.sync_folder(folder)
