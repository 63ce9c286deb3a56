"""Pieces are written and read just as the generated classes would do it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire import methods
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Buffer
from pswire.pieces import Exchanged, Piece, PieceCodec

PIECES: dict[str, tuple[type[Any], type[Any], methods.Codec[Any]]] = {
    "initialize": (
        pb.InitializeRequest,
        pb.InitializeHeader,
        methods.INITIALIZE.request,
    ),
    "push": (pb.PushRequest, pb.PushHeader, methods.PUSH.request),
    "pull": (pb.PullReply, pb.SnapshotHeader, methods.PULL.reply),
}
LAYOUT = pb.Layout(arrays=[pb.ArraySpec(name="w", dtype=pb.FLOAT32, shape=[2, 3])])
HEADERS: dict[type[Any], list[Message | None]] = {
    pb.InitializeHeader: [
        None,
        pb.InitializeHeader(),
        pb.InitializeHeader(session="s" * 200, layout=LAYOUT),
    ],
    pb.PushHeader: [
        None,
        pb.PushHeader(),
        pb.PushHeader(session="é", seq=2**64 - 1, step_read=-1, value=-0.0, nbytes=9),
        pb.PushHeader(generation="g" * 200, layout=LAYOUT),
    ],
    pb.SnapshotHeader: [
        None,
        pb.SnapshotHeader(),
        pb.SnapshotHeader(generation="g", incarnation="i", step=2**63 - 1),
        pb.SnapshotHeader(not_modified=True, layout=LAYOUT),
    ],
}
OFFSETS = st.one_of(
    st.sampled_from([0, 1, 127, 128, 2**14, 2**32, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
SIZES = st.one_of(st.sampled_from([0, 1, 127, 128, 2**14, 70_000]), st.integers(0, 300))
FORMS: list[Callable[[bytes], Buffer]] = [bytes, memoryview]

Content = tuple[Any, ...]


def said(header: Message | None) -> bytes | None:
    """Return a message's bytes, those of its unknown fields too; None stays None."""
    return None if header is None else header.SerializeToString()


def field(message: Any, name: str) -> Any:
    """Return a message's field; None: it is absent."""
    return getattr(message, name) if message.HasField(name) else None


def of_message(message: Any) -> Content:
    """Return what a generated class has read of a message with a piece."""
    return said(field(message, "header")), message.offset, message.data


def of_piece(piece: Piece[Any]) -> Content:
    """Return what our codec has read of the same."""
    return said(piece.header), piece.offset, bytes(piece.data)


@dataclass(frozen=True)
class Way:
    """One kind of message, read by the product and by the generated class."""

    ours: Callable[[bytes], Content]
    theirs: Callable[[bytes], Content]


def _exchanged(exchanged: Exchanged) -> Content:
    return said(exchanged.push), *of_piece(exchanged.pull)


def _piece_way(message: type[Any], codec: methods.Codec[Any]) -> Way:
    return Way(
        lambda data: of_piece(codec.decode(data)),
        lambda data: of_message(message.FromString(data)),
    )


def _their_reply(data: bytes) -> Content:
    reply = pb.ExchangeReply.FromString(data)
    return said(field(reply, "push")), *of_message(reply.pull)


WAYS: dict[str, Way] = {
    **{
        name: _piece_way(message, codec) for name, (message, _, codec) in PIECES.items()
    },
    "exchange request": Way(
        lambda data: of_piece(methods.EXCHANGE.request.decode(data)),
        lambda data: of_message(pb.ExchangeRequest.FromString(data).push),
    ),
    "exchange reply": Way(
        lambda data: _exchanged(methods.EXCHANGE.reply.decode(data)), _their_reply
    ),
}


def outcome(read: Callable[[bytes], Content], message: bytes) -> Content | None:
    """Return what a message holds; None: it is refused."""
    try:
        return read(message)
    except DecodeError:
        return None


def varint(number: int, size: int = 1) -> bytes:
    """Write a number in `size` bytes, or in more if it needs them."""
    digits: list[int] = []
    while number > 0x7F or len(digits) + 1 < size:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def run(number: int, data: bytes, *, tag: int = 1, size: int = 1) -> bytes:
    """Write a field of bytes, its tag and its size in so many bytes."""
    return varint(number << 3 | 2, tag) + varint(len(data), size) + data


def count(number: int, value: int, *, tag: int = 1, size: int = 1) -> bytes:
    """Write a field of a number."""
    return varint(number << 3, tag) + varint(value, size)


@st.composite
def pieces(draw: st.DrawFn, header: type[Any]) -> Piece[Any]:
    """Draw a piece: its header present or absent, its offset and data of any size."""
    data = np.resize(np.arange(251, dtype=np.uint8), draw(SIZES)).tobytes()
    return Piece(
        draw(st.sampled_from(HEADERS[header])),
        draw(OFFSETS),
        draw(st.sampled_from(FORMS))(data),
    )


def written(message: type[Any], piece: Piece[Any]) -> Any:
    """Put a piece into its generated class."""
    return message(header=piece.header, offset=piece.offset, data=bytes(piece.data))


@pytest.mark.parametrize("name", PIECES)
@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_a_piece_is_written_as_the_generated_class_writes_it(
    name: str, data: st.DataObject
) -> None:
    """Byte for byte; read again, it is the same."""
    message, header, codec = PIECES[name]
    piece = data.draw(pieces(header))

    wire = codec.encode(piece)

    assert wire == written(message, piece).SerializeToString()
    assert of_piece(codec.decode(wire)) == of_piece(piece)
    assert (codec.decode(wire).header is None) == (piece.header is None)


@settings(deadline=None, derandomize=True)
@given(piece=pieces(pb.PushHeader))
def test_an_exchange_s_request_is_written_as_its_class_writes_it(
    piece: Piece[pb.PushHeader],
) -> None:
    """A push within a message."""
    request = pb.ExchangeRequest(push=written(pb.PushRequest, piece))

    wire = methods.EXCHANGE.request.encode(piece)

    assert wire == request.SerializeToString()
    assert of_piece(methods.EXCHANGE.request.decode(wire)) == of_piece(piece)


@pytest.mark.parametrize(
    "push",
    [None, pb.PushReply(), pb.PushReply(applied=True, staleness=-1, step=2**40)],
    ids=["none", "empty", "full"],
)
@settings(deadline=None, derandomize=True)
@given(piece=pieces(pb.SnapshotHeader))
def test_an_exchange_s_reply_is_written_as_its_class_writes_it(
    push: pb.PushReply | None, piece: Piece[pb.SnapshotHeader]
) -> None:
    """A verdict that says nothing but zeros is there all the same."""
    reply = pb.ExchangeReply(push=push, pull=written(pb.PullReply, piece))

    wire = methods.EXCHANGE.reply.encode(Exchanged(push, piece))

    got = methods.EXCHANGE.reply.decode(wire)
    assert wire == reply.SerializeToString()
    assert got.push == push
    assert of_piece(got.pull) == of_piece(piece)


HEADER = pb.PushHeader(session="s", seq=300, value=1.5).SerializeToString()
OTHER = pb.PushHeader(session="t", nbytes=7, layout=LAYOUT).SerializeToString()
PIECE = run(1, HEADER) + count(2, 300) + run(3, b"data")
PLAIN: dict[str, bytes] = {
    "nothing": b"",
    "whole": PIECE,
    "header empty": run(1, b""),
    "offset zero": count(2, 0) + run(3, b"data"),
    "data empty": run(1, HEADER) + run(3, b""),
    "reordered": run(3, b"data") + count(2, 300) + run(1, HEADER),
    "data before offset": run(1, HEADER) + run(3, b"data") + count(2, 300),
    "header twice": run(1, HEADER) + run(1, OTHER) + run(3, b"data"),
    "header again at the end": PIECE + run(1, OTHER),
    "offset twice": count(2, 300) + count(2, 5) + run(3, b"data"),
    "data twice": PIECE + run(3, b"last"),
    "data twice, last empty": PIECE + run(3, b""),
    "unknown before": run(9, b"more") + PIECE,
    "unknown within": run(1, HEADER) + count(9, 1) + run(3, b"data"),
    "unknown after": PIECE + count(4, 2**64 - 1),
    "unknown in header": run(1, HEADER + run(99, b"more")) + run(3, b"data"),
    "unknown group": PIECE + b"\x4b" + count(1, 1) + b"\x4c",
    "header of another type": count(1, 5) + run(3, b"data"),
    "offset of another type": run(2, b"x") + run(3, b"data"),
    "data of another type": count(3, 5),
    "fixed data": b"\x1d" + bytes(4),
    "group that never ends": PIECE + b"\x4b",
    "group that never began": PIECE + b"\x4c",
    "field zero": PIECE + count(0, 1),
    "type 6": PIECE + b"\x1e",
    "header of garbage": run(1, b"\xff\xff") + run(3, b"data"),
    "header of no text": run(1, run(1, b"\xff")) + run(3, b"data"),
    "first header of garbage": run(1, b"\xff") + run(1, HEADER),
    "header past the end": b"\x0a\x7f" + HEADER,
    "data past the end": b"\x1a\x05data",
    "data far past the end": b"\x1a" + varint(2**63) + b"data",
    "offset of 2^64-1": count(2, 2**64 - 1) + run(3, b"data"),
    "offset over 2^64": count(2, 2**64 + 5) + run(3, b"data"),
    "offset over 2^69": count(2, 2**69 + 2**63) + run(3, b"data"),
}
PADDED: dict[str, bytes] = {
    f"{what} in {size} bytes": message
    for size in (2, 3, 5, 6, 10, 11)
    for what, message in {
        "header's tag": run(1, HEADER, tag=size) + run(3, b"data"),
        "header's size": run(1, HEADER, size=size) + run(3, b"data"),
        "offset's tag": count(2, 5, tag=size),
        "offset": count(2, 5, size=size) + run(3, b"data"),
        "data's tag": run(3, b"data", tag=size),
        "data's size": run(3, b"data", size=size),
    }.items()
}
MESSAGES = PLAIN | PADDED


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_message_is_read_as_its_class_reads_it(message: bytes) -> None:
    """As a piece of any kind, or nested; what is refused is refused by both."""
    nested = [
        message,
        run(1, message),
        run(2, message),
        run(1, message) + run(2, PIECE),
        run(1, b"") + run(2, message),
        run(1, PIECE) + run(1, message),
        run(2, PIECE) + run(2, message),
        run(2, message) + run(1, message),
        run(1, message) + count(9, 1),
        run(2, message, size=3),
        run(1, message, tag=2, size=10) + run(2, PIECE),
    ]

    for sent in nested:
        got = {name: outcome(way.ours, sent) for name, way in WAYS.items()}

        assert got == {name: outcome(way.theirs, sent) for name, way in WAYS.items()}


def test_the_messages_above_are_both_read_and_refused() -> None:
    """Else comparing would prove nothing."""
    refused = {
        name
        for name, message in PLAIN.items()
        if outcome(WAYS["push"].theirs, message) is None
    }

    assert {"data past the end", "header of garbage", "type 6"} <= refused
    assert refused.isdisjoint(["whole", "reordered", "header twice", "unknown after"])


def _whole_messages() -> Iterator[tuple[str, bytes]]:
    reply = pb.PushReply(applied=True, step=300).SerializeToString()
    snapshot = pb.SnapshotHeader(generation="g", layout=LAYOUT).SerializeToString()
    pull = run(1, snapshot) + run(3, bytes(range(200)))
    for name in ("initialize", "push"):
        yield name, run(1, HEADER) + count(2, 2**64 - 1) + run(3, bytes(range(200)))
    yield "pull", pull
    yield "exchange request", run(1, PIECE + run(9, b"unknown") + run(3, b"more"))
    yield "exchange reply", run(1, reply) + run(2, pull)


@pytest.mark.parametrize(("name", "message"), [*_whole_messages()])
def test_a_message_that_breaks_off_is_read_as_its_class_reads_it(
    name: str, message: bytes
) -> None:
    """Wherever it does: between two fields what is left is a message, too."""
    way = WAYS[name]
    cuts = [message[:end] for end in range(len(message) + 1)]

    got = [outcome(way.ours, cut) for cut in cuts]

    assert got == [outcome(way.theirs, cut) for cut in cuts]
    assert got[-1] is not None
    assert None in got


NUMBERS = st.sampled_from([1, 2, 3, 1, 2, 3, 4, 99])
LENGTHS = st.sampled_from([1, 1, 1, 2, 5, 10, 11])
COUNTS = st.builds(
    lambda number, value, tag, size: count(number, value, tag=tag, size=size),
    NUMBERS,
    st.one_of(OFFSETS, st.integers(2**64, 2**70)),
    LENGTHS,
    LENGTHS,
)
FIXED = st.sampled_from([b"\x09" + bytes(8), b"\x15" + bytes(4), b"\x13", b"\x14"])


def _runs(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    fields = st.lists(inner, max_size=4).map(b"".join)
    return st.builds(
        lambda number, data, tag, size: run(number, data, tag=tag, size=size),
        NUMBERS,
        fields,
        LENGTHS,
        LENGTHS,
    )


LEAVES = st.one_of(
    COUNTS,
    st.builds(run, NUMBERS, st.binary(max_size=5)),
    st.builds(run, NUMBERS, st.sampled_from([HEADER, OTHER, PIECE])),
    FIXED,
)
FIELDS = st.lists(st.recursive(LEAVES, _runs, max_leaves=8), max_size=4).map(b"".join)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(message=st.one_of(FIELDS, FIELDS, st.binary(max_size=20)), cut=st.integers(0, 9))
def test_any_bytes_are_read_as_their_class_reads_them(message: bytes, cut: int) -> None:
    """Fields of any number, type, order and depth, whole or with the end missing."""
    for sent in (message, message[: len(message) - cut]):
        got = {name: outcome(way.ours, sent) for name, way in WAYS.items()}

        assert got == {name: outcome(way.theirs, sent) for name, way in WAYS.items()}


@pytest.mark.parametrize("form", FORMS)
def test_data_is_not_copied_when_it_is_read(form: Callable[[bytes], Buffer]) -> None:
    """It stays where the message is."""
    codec = PieceCodec(pb.PushRequest, pb.PushHeader)
    wire = form(PIECE)

    piece = codec.decode(wire)

    assert bytes(piece.data) == b"data"
    whole, data = (np.frombuffer(buffer, np.uint8) for buffer in (wire, piece.data))
    assert np.shares_memory(whole, data)


def test_data_is_not_copied_when_a_message_is_written_in_parts() -> None:
    """They follow each other; the data is the last of them, and itself."""
    codec = PieceCodec(pb.PushRequest, pb.PushHeader)
    piece = Piece(pb.PushHeader(session="s"), 300, memoryview(bytes(1000)))

    parts = codec.buffers(piece)

    assert parts[-1] is piece.data
    assert b"".join(parts) == codec.encode(piece)


def test_the_table_of_calls_is_the_contract_s() -> None:
    """Each of the service's calls once, by its path, with streams where it has them."""
    service = pb.DESCRIPTOR.services_by_name["ParameterServer"]

    got = {
        method.path: (method.streams_requests, method.streams_replies)
        for method in methods.METHODS
    }

    assert len(got) == len(methods.METHODS)
    assert got == {
        f"/ps.v1.ParameterServer/{call.name}": (
            call.client_streaming,
            call.server_streaming,
        )
        for call in service.methods
    }


PUSHED = Piece(pb.PushHeader(session="s"), 3, b"data")
PULLED = Piece(pb.SnapshotHeader(step=4), 3, b"data")
INSPECTED = Piece(pb.InspectHeader(step=4), 3, b"data")
INITIAL = Piece(pb.InitializeHeader(session="s"), 3, b"data")
SENT: dict[str, tuple[Any, Any, Any, Any]] = {
    "Join": (
        *(pb.JoinRequest(worker="w"), pb.JoinRequest(worker="w")),
        *(pb.JoinReply(step=1), pb.JoinReply(step=1)),
    ),
    "Initialize": (
        *(INITIAL, written(pb.InitializeRequest, INITIAL)),
        *(pb.InitializeReply(step=1), pb.InitializeReply(step=1)),
    ),
    "Pull": (
        *(pb.PullRequest(session="s"), pb.PullRequest(session="s")),
        *(PULLED, written(pb.PullReply, PULLED)),
    ),
    "Push": (
        *(PUSHED, written(pb.PushRequest, PUSHED)),
        *(pb.PushReply(step=1), pb.PushReply(step=1)),
    ),
    "Exchange": (
        *(PUSHED, pb.ExchangeRequest(push=written(pb.PushRequest, PUSHED))),
        Exchanged(pb.PushReply(step=1), PULLED),
        pb.ExchangeReply(push=pb.PushReply(step=1), pull=written(pb.PullReply, PULLED)),
    ),
    "LeaseShard": (
        *(pb.LeaseShardRequest(count=3), pb.LeaseShardRequest(count=3)),
        *(pb.LeaseShardReply(), pb.LeaseShardReply()),
    ),
    "Leave": (
        *(pb.LeaveRequest(session="s"), pb.LeaveRequest(session="s")),
        *(pb.LeaveReply(), pb.LeaveReply()),
    ),
    "Inspect": (
        *(pb.InspectRequest(names=["w"]), pb.InspectRequest(names=["w"])),
        *(INSPECTED, written(pb.InspectReply, INSPECTED)),
    ),
    "Status": (
        *(pb.StatusRequest(), pb.StatusRequest()),
        *(pb.StatusReply(rule="sgd"), pb.StatusReply(rule="sgd")),
    ),
}


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.name)
def test_a_call_takes_the_contract_s_messages(method: methods.Method[Any, Any]) -> None:
    """A stream's are those of the call that it stands beside."""
    request, their_request, reply, their_reply = SENT[
        method.name.removesuffix("Stream")
    ]

    wire = method.request.encode(request), method.reply.encode(reply)

    theirs = their_request.SerializeToString(), their_reply.SerializeToString()
    call = pb.DESCRIPTOR.services_by_name["ParameterServer"].methods_by_name[
        method.name
    ]
    assert wire == theirs
    assert (call.input_type, call.output_type) == (
        their_request.DESCRIPTOR,
        their_reply.DESCRIPTOR,
    )
    assert method.request.encode(method.request.decode(wire[0])) == wire[0]
    assert method.reply.encode(method.reply.decode(wire[1])) == wire[1]
