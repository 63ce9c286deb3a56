"""The frame of every record of the log: how long it is, and whether it is whole.

A record is a frame, a header and a body, one after another, without gaps. A frame has
64 bytes; its integers are unsigned and little-endian:

| at | bytes | what |
|---|---|---|
| 0 | 16 | the mark of its file's frames |
| 16 | 4 | the record's kind; see `records` |
| 20 | 4 | the header's size, in bytes |
| 24 | 8 | the body's size, in bytes |
| 32 | 8 | the step after the record, in steps |
| 40 | 8 | where the record starts in its file, in bytes |
| 48 | 8 | `synced`: the file's first bytes that were known to be on the disk |
| 56 | 4 | zlib's CRC-32 of the header, then the body |
| 60 | 4 | zlib's CRC-32 of the 60 bytes before |

The first record's mark is `asyncps log` and zeros. Its body is the mark of all others:
random bytes, made for this file and never sent to anyone. So nothing that a worker has
sent is a frame, wherever in a file one looks for frames.

`synced` is what tells a loss of power from damage. What is written together is synced
together, so all of it has the same `synced`, and nobody was told of any of it before.
If a record of the last file is not whole, and no later frame's `synced` lies beyond its
start, it is taken for the torn end of what a crash cut short. Otherwise something that
was on the disk is no longer.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from pswire.body import Buffer, Bytes

_FIELDS = struct.Struct("<16sIIQQQQI")
_CRC = struct.Struct("<I")

FRAME_NBYTES = _FIELDS.size + _CRC.size
MARK_NBYTES = 16
FIRST_MARK = b"asyncps log".ljust(MARK_NBYTES, b"\0")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies; without arguments it is a file's first one.

    Attributes:
        mark: Of its file's frames.
        offset: Where it starts in its file, in bytes.
        synced: The bytes of its file that are known to be on the disk.
    """

    mark: bytes = FIRST_MARK
    offset: int = 0
    synced: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What a frame says of its record; see the table above."""

    place: Place
    kind: int
    header_nbytes: int
    body_nbytes: int
    step: int
    crc: int

    @classmethod
    def unpack(cls, data: bytes, mark: bytes) -> "Frame | None":
        """Read a frame that has a mark; None: this is none, or not a whole one."""
        if len(data) != FRAME_NBYTES or not data.startswith(mark):
            return None
        (crc,) = _CRC.unpack_from(data, _FIELDS.size)
        if crc != zlib.crc32(data[: _FIELDS.size]):
            return None
        _, kind, header, body, step, offset, synced, crc = _FIELDS.unpack_from(data)
        return cls(Place(mark, offset, synced), kind, header, body, step, crc)

    def pack(self) -> bytes:
        """Return the bytes that `unpack` reads."""
        place, sizes = self.place, (self.header_nbytes, self.body_nbytes)
        where = (place.offset, place.synced)
        fields = _FIELDS.pack(
            place.mark, self.kind, *sizes, self.step, *where, self.crc
        )
        return fields + _CRC.pack(zlib.crc32(fields))

    @property
    def nbytes(self) -> int:
        """The size of the whole record."""
        return FRAME_NBYTES + self.header_nbytes + self.body_nbytes


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record.

    Attributes:
        offset: Where it starts in its file, in bytes.
        frame: What is in front of it.
        header: Of the kind that the frame names.
        body: Where JAX can use it without a copy.
    """

    offset: int
    frame: Frame
    header: bytes
    body: Bytes


def framed(
    kind: int, header: bytes, body: Sequence[Buffer], *, step: int, place: Place
) -> list[Buffer]:
    """Return the bytes of a record; the body's are not copied."""
    crc = zlib.crc32(header)
    for piece in body:
        crc = zlib.crc32(piece, crc)
    frame = Frame(place, kind, len(header), sum(map(len, body)), step, crc)
    return [frame.pack() + header, *body]
