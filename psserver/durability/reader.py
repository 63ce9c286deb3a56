"""One file of the log, read record by record."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from psserver.durability.disk import Disk
from psserver.durability.frame import FIRST_MARK, FRAME_NBYTES, Frame, Record
from pswire.body import CHUNK_NBYTES, Bytes
from pswire.memory import aligned, fill


class NotWholeError(Exception):
    """A record is not whole; the message says what there is instead."""


class Reader:
    """Reads whole records in order; one of them is in memory at a time.

    Attributes:
        nbytes: The file's size.
        end: Where the last whole record ends, in bytes.
        synced: What that record knew to be on the disk, in bytes.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._window = b""
        self._window_at = 0
        self._mark = FIRST_MARK
        self.nbytes = disk.nbytes(path)
        self.end = 0
        self.synced = 0

    def records(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            NotWholeError: The next one is not whole.
            OSError: The file cannot be read.
        """
        while self.end < self.nbytes:
            record = self._record(self.end)
            yield record
            if not self.end:
                self._mark = bytes(record.body.data)
            self.end += record.frame.nbytes
            self.synced = record.frame.place.synced

    def was_synced(self) -> bool:
        """Say whether what follows `end` may have been on the disk, all of it.

        It was if a later record knew that. Without a file's first record nobody can
        tell; but that one was on the disk before any other was written, so there can
        only be none where there is no room for two.
        """
        if not self.end:
            return self.nbytes >= 2 * FRAME_NBYTES
        return any(later.place.synced > self.end for later in self._frames())

    def _record(self, start: int) -> Record:
        frame = self._frame(start)
        if frame is None:
            raise NotWholeError(self._found(start))
        if start + frame.nbytes > self.nbytes:
            raise NotWholeError(
                f"{self.nbytes - start} bytes of one of {frame.nbytes} bytes"
            )
        header = self._read(start + FRAME_NBYTES, frame.header_nbytes)
        body = self._body(start + FRAME_NBYTES + len(header), frame.body_nbytes)
        crc = zlib.crc32(body.data, zlib.crc32(header))
        if crc != frame.crc:
            raise NotWholeError(f"one of checksum {crc:08x} instead of {frame.crc:08x}")
        return Record(start, frame, header, body)

    def _body(self, start: int, nbytes: int) -> Bytes:
        memory = aligned(nbytes)
        for offset in range(0, nbytes, CHUNK_NBYTES):
            piece = self._read(start + offset, min(CHUNK_NBYTES, nbytes - offset))
            fill(memory[offset : offset + len(piece)], np.frombuffer(piece, np.uint8))
        return memory

    def _found(self, start: int) -> str:
        data = self._read(start, FRAME_NBYTES)
        if not any(data):
            return "zeros"
        if len(data) < FRAME_NBYTES:
            return f"{len(data)} bytes of one"
        return "bytes that begin none"

    def _frame(self, start: int) -> Frame | None:
        return Frame.unpack(self._read(start, FRAME_NBYTES), self._mark)

    def _frames(self) -> Iterator[Frame]:
        start = self.end
        while (start := self._find(start)) < self.nbytes:
            if frame := self._frame(start):
                yield frame
            start += 1

    def _find(self, start: int) -> int:
        while start < self.nbytes:
            self._look_at(start, len(self._mark))
            at = self._window.find(self._mark, start - self._window_at)
            if at >= 0:
                return self._window_at + at
            window_end = self._window_at + len(self._window)
            start = max(start + 1, window_end - len(self._mark) + 1)
        return self.nbytes

    def _read(self, start: int, nbytes: int) -> bytes:
        self._look_at(start, nbytes)
        start -= self._window_at
        return self._window[start : start + nbytes]

    def _look_at(self, start: int, nbytes: int) -> None:
        end = self._window_at + len(self._window)
        if not self._window_at <= start <= start + nbytes <= end:
            self._window = self._disk.read(self._path, start, max(nbytes, CHUNK_NBYTES))
            self._window_at = start
