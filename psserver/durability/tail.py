"""The segment that the log writes, its newest."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psserver.changes import Applied, Change
from psserver.durability.disk import Disk
from psserver.durability.errors import DiskFailedError, DiskFullError
from psserver.durability.frame import Place
from psserver.durability.records import Start, encode
from psserver.durability.segments import Segment, segments
from pswire.body import Buffer

_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM}


class Tail:
    """Writes a segment: whenever a call ends, what it has taken is on the disk.

    Nothing of what it has refused with `DiskFullError` is. `DiskFailedError` is final.

    Attributes:
        step: The step after its last record, in steps.
        number: Its own; all before have lesser ones.
    """

    def __init__(
        self, disk: Disk, folder: Path, start: Start, step: int, number: int
    ) -> None:
        """Create the file; `begin` comes next.

        Args:
            disk: Has the folder, or will.
            folder: Of the log.
            start: What it begins with.
            step: The step before its first record, in steps.
            number: The least that it may get.

        Raises:
            DiskFullError: There is no file.
        """
        self.step = step
        self._disk = disk
        self._folder = folder
        self._mark = start.mark
        self._start = encode(start, step=step, place=Place())
        self._nbytes = 0  # That are on the disk.
        try:
            disk.make_folder(folder)
            newest = max((s.number for s in segments(disk, folder)), default=0)
            self.number = max(number, newest + 1)
            self._path = Segment.named(folder, self.number, step).path
            self._writer = disk.create(self._path)
        except OSError as error:
            raise DiskFullError(folder, _size(self._start), error) from error

    @property
    def has_begun(self) -> bool:
        """Whether it can take records."""
        return self._nbytes > 0

    @property
    def is_empty(self) -> bool:
        """Whether it has not taken any."""
        return self._nbytes <= _size(self._start)

    def begin(self) -> None:
        """Let it have a name that lasts, and its START.

        Raises:
            DiskFullError: It has not begun, but may when it is tried again.
            DiskFailedError: Nobody knows.
        """
        self._sync_names(self._folder.parent)
        self._sync_names(self._folder)
        self._append(self._start)

    def append(self, changes: Sequence[Change]) -> int:
        """Return how many bytes some changes take, once they are on the disk.

        Raises:
            DiskFullError: None of them is, or will be.
            DiskFailedError: Nobody knows.
        """
        step, nbytes, buffers = self.step, 0, list[Buffer]()
        for change in changes:
            step = change.step if isinstance(change, Applied) else step
            place = Place(self._mark, self._nbytes + nbytes, self._nbytes)
            record = encode(change, step=step, place=place)
            nbytes += _size(record)
            buffers += record
        self._append(buffers)
        self.step = step
        return nbytes

    def close(self) -> None:
        """Let go of the file."""
        self._writer.close()

    def _append(self, buffers: Sequence[Buffer]) -> None:
        try:
            self._writer.write(buffers)
        except OSError as error:
            with _final(self._path):
                if error.errno not in _NO_ROOM:
                    raise
                self._writer.truncate(self._nbytes)
                # A later segment may be on the disk before these bytes are gone.
                self._writer.sync()
            raise DiskFullError(self._path, _size(buffers), error) from error
        with _final(self._path):
            self._writer.sync()
        self._nbytes += _size(buffers)

    def _sync_names(self, folder: Path) -> None:
        try:
            self._disk.sync_folder(folder)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:  # Nothing has been asked of the disk.
                raise DiskFullError(folder, _size(self._start), error) from error
            raise _failed(folder, error) from error


@contextmanager
def _final(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: OSError) -> DiskFailedError:
    return DiskFailedError(f"{path}: expected a disk that keeps all, got {error}")


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(map(len, buffers))
