"""The frame of every record of the log: how long it is, and whether it is whole.

A record is a frame, a header and a body, one after another, without gaps. A frame has
44 bytes; its integers are unsigned and little-endian:

| at | bytes | what |
|---|---|---|
| 0 | 4 | `PSLG` |
| 4 | 4 | the record's kind; see `records` |
| 8 | 4 | the header's size, in bytes |
| 12 | 8 | the body's size, in bytes |
| 20 | 8 | the step after the record, in steps |
| 28 | 8 | `synced`: the file's first bytes that were known to be on the disk |
| 36 | 4 | zlib's CRC-32 of the header, then the body |
| 40 | 4 | zlib's CRC-32 of the 40 bytes before |

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

MAGIC = b"PSLG"

_FIELDS = struct.Struct("<4sIIQQQI")
_CRC = struct.Struct("<I")

FRAME_NBYTES = _FIELDS.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Frame:
    """What a frame says of its record; see the table above."""

    kind: int
    header_nbytes: int
    body_nbytes: int
    step: int
    synced: int
    crc: int

    @classmethod
    def unpack(cls, data: bytes) -> "Frame | None":
        """Read a frame; None: this is none, or not a whole one."""
        if len(data) != FRAME_NBYTES:
            return None
        magic, *fields = _FIELDS.unpack_from(data)
        (crc,) = _CRC.unpack_from(data, _FIELDS.size)
        if magic != MAGIC or crc != zlib.crc32(data[: _FIELDS.size]):
            return None
        return cls(*fields)

    def pack(self) -> bytes:
        """Return the bytes that `unpack` reads."""
        sizes = (self.header_nbytes, self.body_nbytes)
        counts = (self.step, self.synced)
        fields = _FIELDS.pack(MAGIC, self.kind, *sizes, *counts, self.crc)
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
    kind: int, header: bytes, body: Sequence[Buffer], *, step: int, synced: int
) -> list[Buffer]:
    """Return the bytes of a record; the body's are not copied."""
    crc = zlib.crc32(header)
    for piece in body:
        crc = zlib.crc32(piece, crc)
    frame = Frame(kind, len(header), sum(map(len, body)), step, synced, crc)
    return [frame.pack() + header, *body]
