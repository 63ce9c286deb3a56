"""Messages that carry a piece of a body, written and read with one copy each.

The generated classes copy the bytes once into a message, once more out of it, and
again whenever the field is read. What is written here is what they would write; what
is read is read here only if it looks just so, and by them otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Buffer

# A field's tag: its number, times 8, plus 2 for a run of bytes or 0 for a number.
_FIRST, _SECOND, _THIRD = b"\x0a", b"\x12", b"\x1a"
_OFFSET = b"\x10"

_ONE_BYTE = [bytes([number]) for number in range(0x80)]


class _Message(Protocol):
    @classmethod
    def FromString(cls, s: bytes) -> Self: ...  # noqa: N802 - protobuf's name.
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name.


Header = TypeVar("Header", bound=_Message)


@dataclass(frozen=True, slots=True)
class Piece(Generic[Header]):
    """A piece of a body, and in the first one of a call the header.

    Attributes:
        header: None in all but the first piece.
        offset: Of the data in the body, in bytes.
        data: The bytes.
    """

    header: Header | None
    offset: int = 0
    data: Buffer = b""


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A piece of the answer to an exchange.

    Attributes:
        push: What became of the push; None in all but the first piece.
        pull: A piece of the snapshot.
    """

    push: pb.PushReply | None
    pull: Piece[pb.SnapshotHeader]


class PieceCodec(Generic[Header]):
    """Writes and reads a message of the fields header = 1, offset = 2 and data = 3."""

    def __init__(self, message: type[Any], header: type[Header]) -> None:
        self._message = message
        self._header = header

    def encode(self, piece: Piece[Header]) -> bytes:
        return b"".join(self.buffers(piece))

    def buffers(self, piece: Piece[Header]) -> list[Buffer]:
        """Return the message in parts, the data as it is."""
        parts: list[Buffer] = []
        if piece.header is not None:
            header = piece.header.SerializeToString()
            parts += [_FIRST, _varint(len(header)), header]
        if piece.offset:
            parts += [_OFFSET, _varint(piece.offset)]
        if len(piece.data):
            parts += [_THIRD, _varint(len(piece.data)), piece.data]
        return parts

    def decode(self, message: Buffer) -> Piece[Header]:
        """Read a message.

        Raises:
            DecodeError: It is none.
        """
        piece = self._read(memoryview(message))
        if piece is None:
            read = self._message.FromString(bytes(message))
            header = read.header if read.HasField("header") else None
            piece = Piece(header, read.offset, read.data)
        return piece

    def _read(self, view: memoryview) -> Piece[Header] | None:
        header, offset, data = None, 0, view[:0]
        at = 0
        try:
            if view[at : at + 1] == _FIRST:
                size, at = _read_varint(view, at + 1)
                header = self._header.FromString(bytes(view[at : at + size]))
                at += size
            if view[at : at + 1] == _OFFSET:
                offset, at = _read_varint(view, at + 1)
            if view[at : at + 1] == _THIRD:
                size, at = _read_varint(view, at + 1)
                data = view[at : at + size]
                at += size
        except IndexError:
            return None
        return Piece(header, offset, data) if at == len(view) else None


class ExchangeRequestCodec:
    """Writes and reads a push as an ExchangeRequest."""

    def __init__(self) -> None:
        self._push = PieceCodec(pb.PushRequest, pb.PushHeader)

    def encode(self, push: Piece[pb.PushHeader]) -> bytes:
        return b"".join(_nested(_FIRST, self._push.buffers(push)))

    def decode(self, message: bytes) -> Piece[pb.PushHeader]:
        """Read a message.

        Raises:
            DecodeError: It is none.
        """
        push, rest = _field(_FIRST, memoryview(message))
        if push is None or rest:
            request = pb.ExchangeRequest.FromString(message)
            push = memoryview(request.push.SerializeToString())
        return self._push.decode(push)


class ExchangeReplyCodec:
    """Writes and reads a piece of the answer to an exchange."""

    def __init__(self) -> None:
        self._pull = PieceCodec(pb.PullReply, pb.SnapshotHeader)

    def encode(self, exchanged: Exchanged) -> bytes:
        push: list[Buffer] = []
        if exchanged.push is not None:
            push = _nested(_FIRST, [exchanged.push.SerializeToString()])
        return b"".join([*push, *_nested(_SECOND, self._pull.buffers(exchanged.pull))])

    def decode(self, message: bytes) -> Exchanged:
        """Read a message.

        Raises:
            DecodeError: It is none.
        """
        view, push = memoryview(message), None
        first, rest = _field(_FIRST, view)
        if first is not None:
            push = pb.PushReply.FromString(bytes(first))
        pull, rest = _field(_SECOND, rest)
        if pull is None or rest:
            reply = pb.ExchangeReply.FromString(message)
            push = reply.push if reply.HasField("push") else None
            pull = memoryview(reply.pull.SerializeToString())
        return Exchanged(push, self._pull.decode(pull))


def _nested(tag: bytes, parts: Sequence[Buffer]) -> list[Buffer]:
    return [tag, _varint(sum(map(len, parts))), *parts]


def _field(tag: bytes, view: memoryview) -> tuple[memoryview | None, memoryview]:
    """Split a message after its first field; None: that is another, or incomplete."""
    if view[:1] != tag:
        return None, view
    try:
        size, start = _read_varint(view, 1)
    except IndexError:
        return None, view
    end = start + size
    return (view[start:end], view[end:]) if end <= len(view) else (None, view)


def _varint(number: int) -> bytes:
    """Write a number as protobuf does: 7 bits a byte, lowest first."""
    if number <= 0x7F:
        return _ONE_BYTE[number]
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return a number, and where it ends.

    Raises:
        IndexError: The message ends first, or the number is longer than any.
    """
    number = 0
    for shift in range(0, 64, 7):
        digit = view[at]
        at += 1
        number |= (digit & 0x7F) << shift
        if digit < 0x80 and number < 2**64:
            return number, at
    raise IndexError
