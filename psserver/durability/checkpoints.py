"""The checkpoints of a data directory: the newest good one counts."""

import errno
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from psserver.checkpoint import Checkpoint
from psserver.durability import folder as files
from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError
from psserver.durability.manifest import Manifest
from psserver.durability.room import require_room

FOLDER = "checkpoints"
"""Where in a data directory they are."""

_NAME = re.compile(r"([0-9]{8,18})-step-([0-9]{1,19})")
_SAVING, _DELETING, _BROKEN = ".saving-", ".deleting-", ".broken"

_log = logging.getLogger("psserver")


class Checkpoints:
    """Numbered folders, one a checkpoint; a folder has its name only once it is whole.

    Whoever holds the data directory's lock saves, loads the newest and prunes, in one
    thread at a time. Nothing else changes anything, so anybody may call it.
    """

    def __init__(
        self, disk: Disk, folder: Path, clock: Callable[[], float] = time.time
    ) -> None:
        """Touch nothing yet.

        Args:
            disk: Where they are.
            folder: That which has them, or will have them.
            clock: Tells the time, in seconds since 1970.
        """
        self._disk = disk
        self._folder = folder
        self._clock = clock
        self._good: dict[str, tuple[int, int]] = {}  # See `before_newest`.
        self.set_aside = 0
        """Those that were found corrupt."""

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    @property
    def good(self) -> list[int]:
        """The steps of those that this has read in whole, in steps, newest first."""
        newest_first = sorted(self._good, key=_number, reverse=True)
        return [self._good[name][0] for name in newest_first]

    @property
    def before_newest(self) -> tuple[int, int] | None:
        """The step and the `log_from` of the good one before the newest."""
        names = sorted(self._good, key=_number)
        return self._good[names[-2]] if len(names) > 1 else None

    @property
    def lacks_newest(self) -> bool:
        """Whether the last one that was saved has been put aside as corrupt."""
        return _number(self.find(None)) + 1 < self._next_number()

    def names(self) -> list[str]:
        """Return those that there are, oldest first."""
        found = filter(_NAME.fullmatch, self._disk.names(self._folder))
        return sorted(found, key=_number)

    def find(self, which: str | None) -> str:
        """Return one's name.

        Args:
            which: That name, or a step; of several the newest. None: of all.

        Raises:
            DataDirectoryError: There is none.
        """
        for name in reversed(self.names()):
            if which is None or which in (name, name.rpartition("-")[2]):
                return name
        known = " or ".join(self.names()) or "a checkpoint"
        raise DataDirectoryError(
            f"{self._folder}: expected {known}, got {which or 'none'}"
        )

    def load(self, name: str, now: float) -> Checkpoint:
        """Read one; `now` is in seconds.

        Raises:
            OSError: The disk does not give it.
            DataDirectoryError: There is none of this name, or a byte of it is not as
                it was written.
        """
        path = self._path(name)
        found = files.read(self._disk, path, now)
        self._good[path.name] = found.step, found.log_from
        return found

    def load_newest(self, now: float) -> Checkpoint | None:
        """Read the newest good one, and put those aside that are newer and broken.

        Args:
            now: Seconds.

        Returns:
            None: there has never been any.

        Raises:
            OSError: The disk does not do what is asked.
            DataDirectoryError: There are some, and all are broken; they stay as they
                are.
        """
        self._clean()
        broken: dict[str, str] = {}
        for name in reversed(self.names()):
            try:
                newest = self.load(name, now)
            except OSError as error:
                if not _is_damage(error):
                    raise  # It may be whole: somebody has to see to it.
                broken[name] = str(error)
            else:
                self._put_aside(broken)
                # Who saved it may have died before its name was on the disk.
                self._disk.sync_folder(self._folder)
                return newest
        self._require_none(broken)
        return None

    def newest_age_s(self) -> float:
        """Return how long ago the newest one was saved, in seconds, by the clock."""
        saved = datetime.fromisoformat(self.describe(self.names()[-1]).saved)
        return max(0.0, self._clock() - saved.timestamp())

    def describe(self, name: str) -> Manifest:
        """Return what one is, without a look at its arrays; see `load`."""
        return files.describe(self._disk, self._path(name))

    def verify(self, name: str) -> Manifest:
        """Return what one is, after a look at all of it; see `load`."""
        return files.verify(self._disk, self._path(name))

    def nbytes(self, name: str) -> int:
        """Return how much one takes, in bytes; see `load`."""
        return files.nbytes(self._disk, self._path(name))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one, read it again, and return where it is.

        Raises:
            OSError: The disk does not take it, or gives back something else: it is
                as if nothing had been saved, unless the last sync has failed.
            ValueError: A slot's dtype is none that can be written.
        """
        self._disk.make_folder(self._folder)
        self._disk.sync_folder(self._folder.parent)
        self._clean()
        name = f"{self._next_number():08}-step-{checkpoint.step}"
        aside, path = self._folder / f"{_SAVING}{name}", self._folder / name
        try:
            self._write(aside, checkpoint)
            self._disk.rename(aside, path)
        except Exception:
            with suppress(OSError):
                self._disk.remove(aside)  # Of a full disk it may be the most.
            raise
        self._disk.sync_folder(self._folder)
        self._good[name] = checkpoint.step, checkpoint.log_from
        return path

    def require_room(self) -> None:
        """Check that there can be any.

        Raises:
            OSError: There cannot: there is no room, or no permission.
        """
        self._disk.make_folder(self._folder)
        require_room(self._disk, self._folder, 0)

    def prune(self, keep: int) -> None:
        """Remove all but the newest.

        Args:
            keep: How many stay.

        Raises:
            OSError: The disk does not do it.
        """
        names = self.names()
        old = names[: max(0, len(names) - keep)]
        for name in old:
            self._good.pop(name, None)
            self._rename(name, f"{_DELETING}{name}")
        if old:
            # A crash must not bring back one that has been removed in part.
            self._disk.sync_folder(self._folder)
            self._clean()

    def _path(self, name: str) -> Path:
        return self._folder / self.find(name)

    def _next_number(self) -> int:
        """Return one that nothing has, be it broken."""
        return 1 + max(map(_number, self._disk.names(self._folder)), default=0)

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        moment = datetime.fromtimestamp(self._clock(), UTC).replace(tzinfo=None)
        saved = f"{moment.isoformat(timespec='seconds')}Z"
        files.write(self._disk, folder, checkpoint, saved)
        try:
            files.verify(self._disk, folder)
        except DataDirectoryError as error:
            raise OSError(errno.EIO, f"read back: {error}") from error

    def _clean(self) -> None:
        for name in self._disk.names(self._folder):
            if name.startswith((_SAVING, _DELETING)):
                with suppress(OSError):  # Nobody looks at it: the next one may do it.
                    self._disk.remove(self._folder / name)

    def _rename(self, old: str, new: str) -> None:
        self._disk.rename(self._folder / old, self._folder / new)

    def _put_aside(self, broken: Mapping[str, str]) -> None:
        self.set_aside += len(broken)
        for name, why in broken.items():
            _log.error(
                "checkpoint %s is corrupt, and one before it is used: %s",
                *(name, why),
                extra={"event": "checkpoint_corrupt", "checkpoint": name, "error": why},
            )
            self._good.pop(name, None)
            self._rename(name, f"{name}{_BROKEN}")

    def _require_none(self, broken: Mapping[str, str]) -> None:
        """Check that there is nothing that a fresh start would leave behind."""
        found = [*broken.values()]
        for name in self._disk.names(self._folder):
            if name.endswith(_BROKEN):
                found.append(f"{self._folder / name}: put aside as corrupt")
        if found:
            raise DataDirectoryError(
                f"{self._folder}: expected a good checkpoint, got none: "
                + "; ".join(found)
            )


def is_part(name: str) -> bool:
    """Say whether a name is that of a checkpoint, or of a file in one."""
    return bool(_NAME.fullmatch(name)) or name in files.NAMES


def _is_damage(error: OSError) -> bool:
    """Say whether bytes are lost, rather than kept from us."""
    lost = (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return isinstance(error, DataDirectoryError) or error.errno in lost


def _number(name: str) -> int:
    found = _NAME.match(name)
    return int(found[1]) if found else 0
