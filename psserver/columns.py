"""A large array that changes by rows, and cuts of it that stay as they are."""

import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from pswire.body import InPieces
from pswire.layout import ArraySpec
from pswire.memory import zeros
from pswire.rows import Ids

_PIECE_NBYTES = 2**20  # So little is copied at once that pushes wait for nothing.
_FEW = 64  # Rows.


class Column:
    """The rows of one array; nobody has views of them. Whoever owns it guards it.

    Attributes:
        cuts: Those that somebody has.
    """

    def __init__(self, spec: ArraySpec) -> None:
        """Take memory for rows, all zero.

        Args:
            spec: The array's.
        """
        self.spec = spec
        self._rows = zeros(spec.nbytes).view(spec.dtype).reshape(spec.shape)
        self.cuts = WeakSet[Cut]()

    def fill(self, start: int, rows: npt.NDArray[Any]) -> None:
        """Set rows for the first time: there is no cut yet."""
        self._rows[start : start + len(rows)] = rows

    def read(self, ids: Ids) -> npt.NDArray[Any]:
        """Return a copy of some rows."""
        return self._rows[ids]

    def write(self, ids: Ids, rows: npt.NDArray[Any]) -> None:
        """Replace some rows, whose ids rise."""
        for cut in self.cuts:
            cut.put_aside(ids)
        self._rows[ids] = rows

    def cut(self, lock: threading.Lock) -> "Cut":
        """Return the array as it is; what it takes lasts as long as somebody has it.

        Args:
            lock: Guards this column; the cut takes it to be read.
        """
        cut = Cut(self.spec, self._rows, lock)
        self.cuts.add(cut)
        return cut


class Cut(InPieces):
    """A column at one moment, to be read once, in pieces.

    Nothing is copied for it but the rows that are replaced before they were read.
    """

    def __init__(
        self, spec: ArraySpec, rows: npt.NDArray[Any], lock: threading.Lock
    ) -> None:
        """Share a column's rows; `Column.cut` does.

        Args:
            spec: The array's.
            rows: The column's own.
            lock: Guards them, and all fields of this.
        """
        self.shape, self.dtype, self.nbytes = spec.shape, spec.dtype, spec.nbytes
        self._rows = rows
        self._lock = lock
        self._next = 0  # The first row that has not been read.
        self._is_lost = False
        # Of each row, where it was put aside, counted from 1; 0: it was not.
        self._places: Ids | None = None
        self._aside = rows[:0]
        self._count = 0

    def put_aside(self, ids: Ids) -> None:
        """Keep rows, whose ids rise, that are about to be replaced; with the lock."""
        ids = ids[np.searchsorted(ids, self._next) :]
        if not len(ids) or self._is_lost:
            return
        try:
            self._keep(ids)
        except (MemoryError, OSError):  # The push goes on; who reads this is told.
            self._is_lost = True

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes; called without the lock.

        Raises:
            MemoryError: There was none to put rows aside.
        """
        if not self.nbytes:
            return
        step = max(1, _PIECE_NBYTES // (self.nbytes // len(self._rows)))
        for start in range(0, len(self._rows), step):
            with self._lock:
                piece = self._read(start, start + step)
            yield piece.reshape(-1).view(np.uint8).data

    def _keep(self, ids: Ids) -> None:
        if self._places is None:
            # Pages that nobody touches take no memory.
            self._places = zeros(8 * len(self._rows)).view(np.int64)
        ids = ids[self._places[ids] == 0]
        end = self._count + len(ids)
        if end > len(self._aside):
            grown = np.empty((max(_FEW, 2 * end), *self.shape[1:]), self.dtype)
            grown[: self._count] = self._aside[: self._count]
            self._aside = grown
        self._aside[self._count : end] = self._rows[ids]
        self._places[ids] = np.arange(self._count + 1, end + 1)
        self._count = end

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        if self._is_lost:
            raise MemoryError("rows: expected memory to put some aside, got none")
        piece = self._rows[start:stop].copy()
        if self._places is not None:
            places = self._places[start:stop]
            (old,) = places.nonzero()
            piece[old] = self._aside[places[old] - 1]
        self._next = stop
        return piece
