"""The kinds of records in the log.

| kind | header | body |
|---|---|---|
| 1 START | the format's version in 4 bytes, little-endian; the generation | a mark |
| 2 JOINED | a `JoinRequest` of parameter_server.proto: who has joined | |
| 3 APPLIED | the `PushHeader` of a push that was applied | as it travelled |
| 4 LESSENED | of one that counts less: in what, see below; then as 3 | likewise |
| 5 MEAN | of several that made a step together: each as 3, see below | the mean |

A START is the first record of every file, and no other; what its mark is for says
`frame`. The step of a JOINED is that of the record before it, that of an APPLIED,
LESSENED or MEAN one more. Of a PushHeader `served_at`, `held_s` and
`snapshot_wire_dtype` are left out; a push that was compensated is kept as it was then,
unencoded. What a LESSENED counts less in has 12 bytes, little-endian: its factor, a
double, and how many variables it was applied without, which are neither in its header
nor in its body. Before each PushHeader of a MEAN is its size in 4 bytes, little-endian;
they are in the order in which they have come.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from psserver.changes import Applied, Change, Joined
from psserver.durability.frame import MARK_NBYTES, Place, Record, framed
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Assembly, Buffer, cut
from pswire.encoding import PLAIN
from pswire.layout import Layout
from pswire.values import PushHeader

_FORMAT = 2
"""Rises when an older program cannot read what a newer one writes: since 2 a push may
have been applied with less than all that there are variables of."""
_READABLE = (1, _FORMAT)
_VERSION = struct.Struct("<I")
_LESSENED = struct.Struct("<dI")
_SIZE = struct.Struct("<I")


class Kind(enum.IntEnum):
    """What a record is."""

    START = 1
    JOINED = 2
    APPLIED = 3
    LESSENED = 4
    MEAN = 5


@dataclass(frozen=True, slots=True)
class Start:
    """What a file begins with.

    Attributes:
        generation: The history that its steps count in.
        mark: Of all its other frames.
    """

    generation: str
    mark: bytes


def encode(said: Start | Change, *, step: int, place: Place) -> Sequence[Buffer]:
    """Return a record's bytes; a large body is not copied.

    Args:
        said: What it is of.
        step: The step after it, in steps.
        place: Where it is to lie.
    """
    kind, header, body = _parts(said)
    return framed(kind, header, body, step=step, place=place)


def decode(record: Record, trainable: Layout) -> Start | Change:
    """Read a whole record.

    Args:
        record: It; its body must not be written any more.
        trainable: The layout of a push that names none.

    Raises:
        ParameterServerError: It is of another model.
        ValueError: It is of another version.
        DecodeError: Its header is none.
    """
    match record.frame.kind:
        case Kind.START:
            return _start(record.header, bytes(record.body.data))
        case Kind.JOINED:
            joined = pb.JoinRequest.FromString(record.header)
            return Joined(joined.worker, joined.session, joined.rejoin)
        case Kind.APPLIED:
            return _applied(record, record.header, trainable)
        case Kind.LESSENED:
            return _lessened(record, trainable)
        case Kind.MEAN:
            return _mean(record, trainable)
    known = ", ".join(map(str, map(int, Kind)))
    raise ValueError(f"kind: expected one of {known}, got {record.frame.kind}")


def _parts(said: Start | Change) -> tuple[Kind, bytes, Sequence[Buffer]]:
    match said:
        case Start(generation, mark):
            return Kind.START, _VERSION.pack(_FORMAT) + generation.encode(), [mark]
        case Joined(worker, session, rejoin):
            joined = pb.JoinRequest(worker=worker, session=session, rejoin=rejoin)
            return Kind.JOINED, joined.SerializeToString(), ()
        case Applied(_, header, body, factor, dropped_variables, others):
            told = _header(header)
            pieces = [piece for _, piece in cut(body.layout, body)]
            if others:
                headers = [told, *map(_header, others)]
                sized = [_SIZE.pack(len(each)) + each for each in headers]
                return Kind.MEAN, b"".join(sized), pieces
            if factor == 1.0 and not dropped_variables:
                return Kind.APPLIED, told, pieces
            less = _LESSENED.pack(factor, dropped_variables)
            return Kind.LESSENED, less + told, pieces


def _header(header: PushHeader) -> bytes:
    kept = replace(header, served_at=None, held_s=0.0, snapshot_encoding=PLAIN)
    return kept.to_proto().SerializeToString()


def _start(header: bytes, mark: bytes) -> Start:
    if len(header) < _VERSION.size:
        raise ValueError("format: expected a number, got none")
    (version,) = _VERSION.unpack_from(header)
    if version not in _READABLE:
        known = " or ".join(map(str, _READABLE))
        raise ValueError(f"format: expected {known}, got {version}, of another asyncps")
    if len(mark) != MARK_NBYTES:
        raise ValueError(f"mark: expected {MARK_NBYTES} bytes, got {len(mark)}")
    return Start(header[_VERSION.size :].decode(), mark)


def _lessened(record: Record, trainable: Layout) -> Applied:
    header = record.header
    if len(header) < _LESSENED.size:
        raise ValueError(f"factor: expected {_LESSENED.size} bytes, got {len(header)}")
    factor, dropped_variables = _LESSENED.unpack_from(header)
    applied = _applied(record, header[_LESSENED.size :], trainable)
    return replace(applied, factor=factor, dropped_variables=dropped_variables)


def _mean(record: Record, trainable: Layout) -> Applied:
    headers, rest = list[bytes](), record.header
    while rest:
        if len(rest) < _SIZE.size:
            raise ValueError(f"size: expected {_SIZE.size} bytes, got {len(rest)}")
        end = _SIZE.size + _SIZE.unpack_from(rest)[0]
        if len(rest) < end:
            raise ValueError(f"header: expected {end} bytes, got {len(rest)}")
        headers.append(rest[_SIZE.size : end])
        rest = rest[end:]
    if not headers:
        raise ValueError("headers: expected some, got none")
    first, *others = headers
    applied = _applied(record, first, trainable)
    return replace(applied, others=tuple(map(_pushed, others)))


def _pushed(told: bytes) -> PushHeader:
    return PushHeader.from_proto(pb.PushHeader.FromString(told))


def _applied(record: Record, told: bytes, trainable: Layout) -> Applied:
    header = _pushed(told)
    assembly = Assembly(header.body_layout(trainable))
    assembly.add(0, record.body.data)
    return Applied(record.frame.step, header, assembly.finish())
