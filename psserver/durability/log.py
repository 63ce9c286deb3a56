"""The log: every change of a model, on the disk before anybody is told of it."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psserver.changes import Applied, Change
from psserver.durability.disk import Disk, Writer
from psserver.durability.errors import DiskFailedError, DiskFullError
from psserver.durability.records import Start, encode
from psserver.durability.segments import Segment, first_needed, segments
from pswire.body import Buffer

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PROBE = "probe"
_PROBE_NBYTES = 2**20


class Log:
    """Writes a folder's newest segment; its owner guards all but `remove_covered`.

    All that was written is on the disk whenever a call ends, but for one that raises
    `DiskFailedError`. That is final: a sync that has told of an error once does not
    tell again, so no later one would prove anything.

    Attributes:
        nbytes: The size of the records since the last `begin`.
        syncs: How many times a segment was synced.
    """

    def __init__(self, disk: Disk, folder: Path, generation: str) -> None:
        """Touch nothing; `begin` comes first.

        Args:
            disk: Has the folder, or will.
            folder: Of the log alone.
            generation: The history that steps count in.
        """
        self.nbytes = 0
        self.syncs = 0
        self._disk = disk
        self._folder = folder
        self._start = Start(generation)
        self._failure = ""
        self._turns = False
        self._step = 0
        self._path = folder  # Of the newest segment, as the next two.
        self._writer: Writer | None = None
        self._start_nbytes = self._nbytes = 0

    def begin(self, step: int) -> None:
        """Start a segment for what comes after a step.

        Raises:
            DiskFullError: The log goes on as it was.
            DiskFailedError: It takes nothing any more.
        """
        self._require_no_failure()
        self._turns = False
        self._open(step)
        self.nbytes = 0

    def turn(self) -> None:
        """Have the next `write` begin a segment; any thread may ask for that.

        Who then cuts a checkpoint has all whom the segments from its step on may lack.
        """
        self._turns = True

    def write(self, changes: Sequence[Change]) -> None:
        """Return once changes are on the disk.

        Raises:
            DiskFullError: None of them is, or will be.
            DiskFailedError: Nobody knows, and no more are taken.
        """
        self._require_no_failure()
        if not changes:
            return
        if self._turns:
            self.begin(self._step)
        writer = self._writer or self._open(self._step)
        step, buffers = self._step, list[Buffer]()
        for change in changes:
            step = change.step if isinstance(change, Applied) else step
            buffers += encode(change, step=step, synced=self._nbytes)
        with self._undone_if_full(self._path, buffers, self._forget_batch):
            writer.write(buffers)
        self._sync(writer)
        self._step = step
        self._nbytes += _size(buffers)
        self.nbytes += _size(buffers)

    def probe(self) -> None:
        """Check that there is room again: for a mebibyte.

        Raises:
            DiskFullError: There is not.
            DiskFailedError: The log takes nothing any more.
        """
        self._require_no_failure()
        path = self._folder / _PROBE
        with self._fatal(path):
            self._remove(path)  # Of a server that was killed.
        self._create(path, [bytes(_PROBE_NBYTES)]).close()
        with self._fatal(path):
            self._remove(path)

    def remove_covered(self, step: int) -> None:
        """Remove what nobody needs who has a checkpoint of a step.

        Raises:
            OSError: Some of it is still there, which does no harm.
        """
        found = segments(self._disk, self._folder)
        first = first_needed(found, step)
        for segment in found:
            if first is not None and segment.step < first:
                self._disk.remove(segment.path)

    def close(self) -> None:
        """Let go of the newest segment."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _require_no_failure(self) -> None:
        if self._failure:
            raise DiskFailedError(self._failure)

    def _open(self, step: int) -> Writer:
        with self._fatal(self._folder):
            self._disk.make_folder(self._folder)
            self._disk.sync_folder(self._folder.parent)
            number = max(
                (s.number for s in segments(self._disk, self._folder)), default=0
            )
        path = Segment.named(self._folder, number + 1, step).path
        start = encode(self._start, step=step, synced=0)
        writer = self._create(path, start)
        with self._fatal(path):
            self.close()
        self._path, self._writer, self._step = path, writer, step
        self._start_nbytes = self._nbytes = _size(start)
        self._sync(writer)
        with self._fatal(self._folder):
            self._disk.sync_folder(self._folder)
        return writer

    def _create(self, path: Path, buffers: Sequence[Buffer]) -> Writer:
        with self._undone_if_full(path, buffers, lambda: self._remove(path)):
            writer = self._disk.create(path)
            try:
                writer.write(buffers)
            except OSError:
                writer.close()
                raise
        return writer

    def _remove(self, path: Path) -> None:
        if path.name in self._disk.names(self._folder):
            self._disk.remove(path)
            # Else it may come back, with a step that the log has long gone past.
            self._disk.sync_folder(self._folder)

    def _forget_batch(self) -> None:
        assert self._writer
        self._writer.truncate(self._nbytes)
        # The next segment may be on the disk before these bytes are gone from it.
        self._sync(self._writer)
        if self._nbytes > self._start_nbytes:
            self.close()  # It may be the file that is too large.

    def _sync(self, writer: Writer) -> None:
        with self._fatal(self._path):
            writer.sync()
        self.syncs += 1

    @contextmanager
    def _undone_if_full(
        self, path: Path, buffers: Sequence[Buffer], undo: Callable[[], None]
    ) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with self._fatal(path):
                if error.errno not in _FULL:
                    raise
                undo()
            raise DiskFullError(
                f"{path}: expected room for {_size(buffers)} bytes, got {error}"
            ) from error

    @contextmanager
    def _fatal(self, path: Path) -> Iterator[None]:
        try:
            yield
        except DiskFailedError:
            raise
        except OSError as error:
            self._failure = f"{path}: expected a disk that keeps all, got {error}"
            raise DiskFailedError(self._failure) from error


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(map(len, buffers))
