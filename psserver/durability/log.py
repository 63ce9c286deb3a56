"""The log: every change of a model, on the disk before anybody is told of it."""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psserver.changes import Change
from psserver.durability.disk import Disk
from psserver.durability.errors import DiskFailedError, DiskFullError
from psserver.durability.frame import MARK_NBYTES
from psserver.durability.records import Start
from psserver.durability.room import require_room
from psserver.durability.segments import needed, segments
from psserver.durability.tail import Tail


class Log:
    """Writes a folder's segments, one after another.

    All that was written is on the disk whenever a call ends, but for one that raises
    `DiskFailedError`. That is final: a sync that has told of an error once does not
    tell again, so no later one would prove anything.

    Any thread may call anything at any time, but `probe` only one at a time. `begin`,
    `write` and `close` wait for each other, `probe` for them, and the rest for nothing.

    Attributes:
        nbytes: The size of the records since the last `begin` or `turn`.
        syncs: How many times records were synced, all that were written together once.
    """

    def __init__(
        self, disk: Disk, folder: Path, generation: str, number: int = 1
    ) -> None:
        """Touch nothing; `begin` comes first.

        Args:
            disk: Has the folder, or will.
            folder: Of the log alone.
            generation: The history that steps count in.
            number: The least that a segment may get.
        """
        self.nbytes = 0
        self.syncs = 0
        self._disk = disk
        self._folder = folder
        self._generation = generation
        self._number = number - 1  # Of the newest segment.
        self._turns = False
        # Held while the disk is written to; guards all above but `_turns`, and below.
        self._lock = threading.Lock()
        self._step = 0  # The last one, while there is no tail.
        self._tail: Tail | None = None
        self._wanted_nbytes = 0
        self._failure = ""

    def begin(self, step: int) -> None:
        """Start a segment for what comes after a step.

        Raises:
            DiskFullError: The next `write` tries again.
            DiskFailedError: The log takes nothing any more.
        """
        with self._alone():
            self._end_segment()
            self._step = step
            self._begun()

    def turn(self) -> int:
        """Have the next `write` begin a segment, and return the least number it gets.

        Who then cuts a checkpoint has all whom the segments before may have.
        """
        number = self._number + 1  # Read first: another may begin just now.
        self._turns = True
        return number

    def write(self, changes: Sequence[Change]) -> None:
        """Return once changes are on the disk.

        Raises:
            DiskFullError: None of them is, or will be.
            DiskFailedError: Nobody knows, and no more are taken.
        """
        with self._alone():
            if changes:
                self._write(changes)

    def probe(self) -> None:
        """Check that there is room again for what was refused last.

        Raises:
            DiskFullError: There is not, or nobody can tell now.
            DiskFailedError: The log takes nothing any more.
        """
        with self._alone():
            nbytes = self._wanted_nbytes
        require_room(self._disk, self._folder, nbytes)

    def remove_covered(self, step: int, number: int) -> None:
        """Remove what nobody needs who has a checkpoint; see `segments.needed`.

        Raises:
            OSError: Some of it is still there, which does no harm.
        """
        found = segments(self._disk, self._folder)
        kept = needed(found, step, number)
        for segment in found:
            if kept and segment.number < kept[0].number:
                self._disk.remove(segment.path)

    def close(self) -> None:
        """Let go of the newest segment, and take nothing any more."""
        with self._lock:
            self._let_go()
            self._failure = self._failure or f"{self._folder}: the log is closed"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            if self._failure:
                raise DiskFailedError(self._failure)
            try:
                yield
            except DiskFullError as error:
                self._wanted_nbytes = error.nbytes
                raise
            except Exception as error:  # Of the last record there may be a part.
                self._failure = str(error) or repr(error)
                raise

    def _write(self, changes: Sequence[Change]) -> None:
        if self._turns:
            self._end_segment()
        tail = self._begun()
        try:
            self.nbytes += tail.append(changes)
        except DiskFullError:
            if not tail.is_empty:
                self._let_go()  # It may be the file that is too large.
            raise
        self.syncs += 1

    def _begun(self) -> Tail:
        if self._tail is None:
            start = Start(self._generation, secrets.token_bytes(MARK_NBYTES))
            self._tail = Tail(
                self._disk, self._folder, start, self._step, self._number + 1
            )
            self._number = self._tail.number
        if not self._tail.has_begun:
            self._tail.begin()
            self.syncs += 1
        return self._tail

    def _end_segment(self) -> None:
        self._turns = False
        self._let_go()
        self.nbytes = 0

    def _let_go(self) -> None:
        if self._tail:
            self._tail.close()
            self._step = self._tail.step
            self._tail = None
