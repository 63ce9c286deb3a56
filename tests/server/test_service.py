"""A real server, called through the generated stubs as any client of gRPC would."""

import logging
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import psserver
from psserver.service import ParameterServer
from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.layout import Layout

Arrays = Mapping[str, npt.NDArray[Any]]
StartServer = Callable[..., psserver.Server]
Dial = Callable[[str], grpc.Channel]

_TIMEOUT_S = 30.0
_MIB = 2**20
_MODEL: Arrays = {"w": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
_SERVICE = pb.DESCRIPTOR.services_by_name["ParameterServer"]


@dataclass(frozen=True)
class _Refusal:
    """How a call failed: everything that a client may go by, and the text."""

    code: grpc.StatusCode
    reason: str
    text: str


def _refusal(failure: Any) -> _Refusal:
    status = rpc_status.from_call(failure)
    assert status is not None
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert info.domain == "ps.v1"
    return _Refusal(failure.code(), info.reason, failure.details())


def _refused(call: Callable[[], object]) -> _Refusal:
    with pytest.raises(grpc.RpcError, match="details") as failure:
        call()
    return _refusal(failure.value)


class _Raw:
    """One joined session, its messages made by hand."""

    def __init__(self, channel: grpc.Channel, session: str = "s") -> None:
        self.channel = channel
        self.stub = rpc.ParameterServerStub(channel)
        self.session = session
        joined = self.stub.Join(
            pb.JoinRequest(worker=f"worker {session}", session=session),
            timeout=_TIMEOUT_S,
        )
        self.generation = joined.generation

    def initialize(self, variables: Arrays) -> pb.InitializeReply:
        def messages() -> Iterator[pb.InitializeRequest]:
            layout = Layout.of(variables)
            yield pb.InitializeRequest(
                header=pb.InitializeHeader(
                    session=self.session, layout=layout.to_proto()
                )
            )
            for offset, data in body.cut(layout, variables):
                yield pb.InitializeRequest(offset=offset, data=bytes(data))

        return self.stub.InitializeStream(messages(), timeout=_TIMEOUT_S)

    def header(self, gradients: Arrays = _MODEL, **changes: Any) -> pb.PushHeader:
        settings: dict[str, Any] = {
            "session": self.session,
            "seq": 1,
            "generation": self.generation,
            "step_read": 0,
            "nbytes": Layout.of(gradients).nbytes,
            **changes,
        }
        return pb.PushHeader(**settings)

    def push(self, gradients: Arrays = _MODEL, **changes: Any) -> pb.PushReply:
        data = bytes(body.join(Layout.of(gradients), gradients))
        request = pb.PushRequest(header=self.header(gradients, **changes), data=data)
        return self.stub.Push(request, timeout=_TIMEOUT_S)

    def stream(self, messages: Iterator[pb.PushRequest]) -> pb.PushReply:
        return self.stub.PushStream(messages, timeout=_TIMEOUT_S)

    def pull(self, **known: Any) -> pb.PullReply:
        request = pb.PullRequest(session=self.session, **known)
        return self.stub.Pull(request, timeout=_TIMEOUT_S)

    def variables(self) -> bytes:
        """Return every byte of the newest snapshot."""
        request = pb.PullRequest()
        replies = self.stub.PullStream(request, timeout=_TIMEOUT_S)
        return b"".join(reply.data for reply in replies)

    def rejected(self) -> dict[str, int]:
        status = self.stub.Status(pb.StatusRequest(), timeout=_TIMEOUT_S)
        return dict(status.counts.rejected)


@pytest.fixture
def raw(start_server: StartServer, dial: Dial) -> _Raw:
    """Join a server that keeps the model at limit 1, and initialize it."""
    session = _Raw(dial(start_server(max_staleness=1).address))
    assert session.initialize(_MODEL).initialized
    return session


# Unary calls and streams


class _Unary(_Raw):
    def start(self) -> Any:
        request = pb.InitializeRequest(
            header=pb.InitializeHeader(
                session=self.session, layout=Layout.of(_MODEL).to_proto()
            ),
            data=bytes(body.join(Layout.of(_MODEL), _MODEL)),
        )
        return self.stub.Initialize(request, timeout=_TIMEOUT_S)

    def read(self, request: pb.PullRequest) -> tuple[Any, bytes]:
        reply = self.stub.Pull(request, timeout=_TIMEOUT_S)
        return reply.header, reply.data

    def send(self, header: pb.PushHeader, data: bytes) -> Any:
        request = pb.PushRequest(header=header, data=data)
        return self.stub.Push(request, timeout=_TIMEOUT_S)

    def swap(self, header: pb.PushHeader, data: bytes) -> tuple[Any, Any, bytes]:
        request = pb.ExchangeRequest(push=pb.PushRequest(header=header, data=data))
        reply = self.stub.Exchange(request, timeout=_TIMEOUT_S)
        return reply.push, reply.pull.header, reply.pull.data


class _Streamed(_Raw):
    def start(self) -> Any:
        return self.initialize(_MODEL)

    def read(self, request: pb.PullRequest) -> tuple[Any, bytes]:
        replies = list(self.stub.PullStream(request, timeout=_TIMEOUT_S))
        return replies[0].header, b"".join(reply.data for reply in replies)

    def send(self, header: pb.PushHeader, data: bytes) -> Any:
        return self.stub.PushStream(_in_pieces(header, data), timeout=_TIMEOUT_S)

    def swap(self, header: pb.PushHeader, data: bytes) -> tuple[Any, Any, bytes]:
        requests = (
            pb.ExchangeRequest(push=piece) for piece in _in_pieces(header, data)
        )
        replies = list(self.stub.ExchangeStream(requests, timeout=_TIMEOUT_S))
        pulled = b"".join(reply.pull.data for reply in replies)
        return replies[0].push, replies[0].pull.header, pulled


def _in_pieces(
    header: pb.PushHeader, data: bytes, size: int = 7
) -> Iterator[pb.PushRequest]:
    yield pb.PushRequest(header=header)
    for offset in range(0, len(data), size):
        yield pb.PushRequest(offset=offset, data=data[offset : offset + size])


def _story(caller: _Unary | _Streamed) -> list[Any]:
    """Call everything, for better and for worse; return all answers."""
    told: list[Any] = []
    names = {caller.generation: "G"}

    def tell(call: Callable[[], Any]) -> None:
        try:
            answer = call()
        except grpc.RpcError as failure:
            answer = _refusal(failure)
        parts = answer if isinstance(answer, tuple) else (answer,)
        told.extend(_without_ids(part, names) for part in parts)

    data = bytes(body.join(Layout.of(_MODEL), _MODEL))
    poison = bytearray(data)
    poison[0:4] = np.float32(np.nan).tobytes()
    other = Layout.of({**_MODEL, "b": np.ones(4, np.float32)}).to_proto()
    known = {"generation": caller.generation}

    tell(lambda: caller.read(pb.PullRequest(session="s")))
    tell(lambda: caller.send(caller.header(), data))
    tell(lambda: caller.swap(caller.header(), data))
    tell(caller.start)
    tell(caller.start)
    tell(lambda: caller.read(pb.PullRequest(session="s")))
    tell(lambda: caller.read(pb.PullRequest(session="s", step=0, **known)))
    tell(lambda: caller.read(pb.PullRequest(session="t")))
    tell(lambda: caller.send(caller.header(seq=1), data))
    tell(lambda: caller.send(caller.header(seq=1), data))
    tell(lambda: caller.swap(caller.header(seq=2), data))
    tell(lambda: caller.swap(caller.header(seq=3), data))
    tell(lambda: caller.swap(caller.header(seq=3), data))
    tell(lambda: caller.swap(caller.header(seq=4, step_read=2), data))
    tell(lambda: caller.send(caller.header(seq=3, step_read=2), data))
    for change in (
        {"session": "t"},
        {"generation": "h"},
        {"step_read": 99},
        {"step_read": -1},
        {"nbytes": 1},
        {"layout": other},
        {"wire_dtype": pb.BFLOAT16},
        {"wire_dtype": pb.FLOAT32},
        {"snapshot_wire_dtype": 99},
        {"counts": [4]},
        {"counts": [5, 3]},
    ):
        header = caller.header(seq=5)
        header.MergeFrom(pb.PushHeader(**change))
        tell(lambda header=header: caller.send(header, data))  # type: ignore[misc]
        tell(lambda header=header: caller.swap(header, data))  # type: ignore[misc]
    for bad in (bytes(poison), data[:-1], data + b"\0", b""):
        fresh = caller.header(seq=5, step_read=3)
        tell(lambda fresh=fresh, bad=bad: caller.send(fresh, bad))  # type: ignore[misc]
        tell(lambda fresh=fresh, bad=bad: caller.swap(fresh, bad))  # type: ignore[misc]
    narrow = caller.header(seq=6, step_read=2, counts=[1, 0], nbytes=66)
    narrow.wire_dtype = narrow.snapshot_wire_dtype = pb.BFLOAT16
    for index in (4, 3):
        one = bytes([index]) + bytes(63) + b"\x80\x3f"
        tell(lambda one=one: caller.swap(narrow, one))  # type: ignore[misc]
    for number in (pb.BFLOAT16, pb.FLOAT16):
        request = pb.PullRequest(wire_dtype=number)
        tell(lambda request=request: caller.read(request))  # type: ignore[misc]
    tell(lambda: caller.read(pb.PullRequest()))
    tell(lambda: caller.stub.Status(pb.StatusRequest(), timeout=_TIMEOUT_S).counts)
    return told


def _without_ids(part: Any, names: Mapping[str, str]) -> str:
    once = ("incarnation", "served_at")
    lines = [
        line for line in str(part).split("\n") if not line.strip().startswith(once)
    ]
    text = "\n".join(lines)
    for name, short in names.items():
        text = text.replace(name, short)
    return text


def test_unary_calls_and_streams_give_the_same_answers(
    start_server: StartServer, dial: Dial
) -> None:
    """One story of good and bad calls, told twice to servers that are alike."""
    callers = [
        kind(dial(start_server(max_staleness=1).address))
        for kind in (_Unary, _Streamed)
    ]

    unary, streamed = map(_story, callers)

    assert unary == streamed
    assert "applied: 4" in unary[-1]
    assert 'key: "VARIABLE_MISMATCH"' in unary[-1]


# Refused early


def _zeros(mebibytes: int, taken: list[int]) -> Iterator[pb.PushRequest]:
    """Yield a body of zeros, and note how much of it has been asked for."""
    chunk = bytes(_MIB)
    for number in range(mebibytes):
        taken.append(number)
        yield pb.PushRequest(offset=number * _MIB, data=chunk)


def _large(mebibytes: int) -> Arrays:
    return {"w": np.zeros(mebibytes * _MIB // 4, np.float32)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"generation": "h"}, "GENERATION"),
        ({"session": "nobody"}, "SESSION_UNKNOWN"),
        ({"step_read": 7}, "STEP_READ"),
        ({"seq": 0}, "SEQUENCE"),
        ({"layout": Layout.of(_large(64)).to_proto()}, "VARIABLE_MISMATCH"),
        ({}, "VARIABLE_MISMATCH"),
        ({"counts": [1, 1]}, "VARIABLE_MISMATCH"),
        ({"wire_dtype": pb.FLOAT64}, "INVALID_REQUEST"),
        ({"snapshot_wire_dtype": 99}, "INVALID_REQUEST"),
    ],
    ids=[
        *("generation", "session", "step_read", "seq", "shape", "size"),
        *("counts", "wire_dtype", "snapshot_wire_dtype"),
    ],
)
def test_a_bad_push_is_refused_before_its_body_is_sent(
    change: dict[str, Any], reason: str, raw: _Raw
) -> None:
    """Of 64 MB that a header announces, the client gives away next to nothing."""
    taken: list[int] = []
    header = raw.header(_large(64), **change)

    def messages() -> Iterator[pb.PushRequest]:
        yield pb.PushRequest(header=header)
        yield from _zeros(64, taken)

    refusal = _refused(lambda: raw.stream(messages()))

    assert refusal.reason == reason
    assert len(taken) < 16
    assert raw.rejected() == {reason: 1}


@pytest.mark.parametrize(
    "encoding", [{}, {"counts": [8 * _MIB]}], ids=["whole", "half of it"]
)
def test_a_stale_push_is_dropped_before_its_body_is_sent(
    start_server: StartServer, dial: Dial, encoding: dict[str, Any]
) -> None:
    """And so is its retry: a worker that is late learns so at once.

    Half of the elements, and as many indices, are as many bytes as all of them.
    """
    address = start_server(max_staleness=-1).address
    raw = _Raw(dial(address))
    raw.initialize(_large(64))
    late = _Raw(dial(address), "late")
    taken: list[int] = []

    def messages() -> Iterator[pb.PushRequest]:
        yield pb.PushRequest(header=late.header(_large(64), **encoding))
        yield from _zeros(64, taken)

    first, again = late.stream(messages()), late.stream(messages())

    assert first == pb.PushReply(
        applied=False, staleness=0, step=0, reason=pb.STALE, consecutive_drops=1
    )
    assert (again.reason, again.duplicate) == (pb.STALE, True)
    assert len(taken) < 2 * 16


def test_a_late_initialization_is_answered_before_its_body_is_sent(raw: _Raw) -> None:
    """Its sender learns that another was first, and pulls."""
    taken: list[int] = []

    def messages() -> Iterator[pb.InitializeRequest]:
        layout = Layout.of(_large(64)).to_proto()
        yield pb.InitializeRequest(
            header=pb.InitializeHeader(session="t", layout=layout)
        )
        for piece in _zeros(64, taken):
            yield pb.InitializeRequest(offset=piece.offset, data=piece.data)

    other = _Raw(raw.channel, "t")
    reply = other.stub.InitializeStream(messages(), timeout=_TIMEOUT_S)

    assert not reply.initialized
    assert len(taken) < 16


# Encodings, by the schema's own text


def _bf16(*numbers: float) -> bytes:
    """Return numbers that bfloat16 holds: they are float32's first two bytes."""
    return b"".join(struct.pack("<f", number)[2:] for number in numbers)


def _apart(*parts: bytes) -> bytes:
    """Start each part at the next multiple of 64 bytes."""
    whole = b""
    for part in parts:
        whole += bytes(-len(whole) % 64) + part
    return whole


_SPARSE = _apart(struct.pack("<2I", 1, 3), struct.pack("<2f", 0.5, -2), bytes(12))
_ENCODED: dict[str, tuple[dict[str, Any], bytes, list[float]]] = {
    "bfloat16": (
        {"wire_dtype": pb.BFLOAT16},
        _apart(_bf16(1, 2, 3, 4), _bf16(0.5, 0, -1)),
        [0, -1, -2, -3, 0.5, 1, 2],
    ),
    "some elements": ({"counts": [2, 3]}, _SPARSE, [1, 0.5, 1, 3, 1, 1, 1]),
    "some elements as bfloat16": (
        {"counts": [1, 1], "wire_dtype": pb.BFLOAT16},
        _apart(struct.pack("<I", 3), _bf16(1.5), struct.pack("<I", 0), _bf16(-3)),
        [1, 1, 1, -0.5, 4, 1, 1],
    ),
    "in another order": (
        {
            "counts": [1, 0],
            "layout": Layout.of({n: _MODEL[n] for n in ("b", "w")}).to_proto(),
        },
        _apart(struct.pack("<I", 2), struct.pack("<f", 4)),
        [1, 1, 1, 1, 1, 1, -3],
    ),
    "all elements": (
        {"counts": [4, 3]},
        _apart(struct.pack("<4f", 1, 2, 3, 4), struct.pack("<3f", 1, 1, 1)),
        [0, -1, -2, -3, 0, 0, 0],
    ),
    "none": ({"counts": [0, 0]}, b"", [1] * 7),
}


@pytest.mark.parametrize(
    ("encoding", "data", "after"), _ENCODED.values(), ids=_ENCODED.keys()
)
@pytest.mark.parametrize("kind", [_Unary, _Streamed])
@pytest.mark.parametrize("call", ["send", "swap"])
def test_an_encoded_push_is_applied(
    start_server: StartServer,
    dial: Dial,
    kind: type[_Unary | _Streamed],
    call: str,
    encoding: dict[str, Any],
    data: bytes,
    after: list[float],
) -> None:
    """Its bytes are written here by hand; other elements stay what they were."""
    caller = kind(dial(start_server().address))
    caller.start()
    header = caller.header(**{**encoding, "nbytes": len(data)})

    answer = getattr(caller, call)(header, data)

    reply = answer[0] if isinstance(answer, tuple) else answer
    whole = struct.pack("<4f", *after[:4]).ljust(64, b"\0")
    assert reply == pb.PushReply(applied=True, staleness=0, step=1)
    assert caller.variables() == whole + struct.pack("<3f", *after[4:])


@pytest.mark.parametrize("kind", [_Unary, _Streamed])
def test_variables_are_pulled_as_bfloat16(
    start_server: StartServer, dial: Dial, kind: type[_Unary | _Streamed]
) -> None:
    """Said so in the header, whose layout still is that of the variables."""
    caller = kind(dial(start_server().address))
    caller.start()
    header = caller.header(snapshot_wire_dtype=pb.BFLOAT16)
    ones = bytes(body.join(Layout.of(_MODEL), _MODEL))

    pulled, data = caller.read(pb.PullRequest(wire_dtype=pb.BFLOAT16))
    _, swapped, zeros = caller.swap(header, ones)

    assert pulled.wire_dtype == swapped.wire_dtype == pb.BFLOAT16
    assert pulled.layout == Layout.of(_MODEL).to_proto()
    assert data == _apart(_bf16(1, 1, 1, 1), _bf16(1, 1, 1))
    assert zeros == bytes(len(data))
    assert caller.read(pb.PullRequest())[0].wire_dtype == pb.DTYPE_UNSPECIFIED


@pytest.mark.parametrize("number", [pb.FLOAT16, pb.FLOAT32, pb.UINT32, 14, 99, -1])
@pytest.mark.parametrize("kind", [_Unary, _Streamed])
def test_another_wire_dtype_is_refused(
    start_server: StartServer,
    dial: Dial,
    kind: type[_Unary | _Streamed],
    number: Any,
) -> None:
    """By every call that names one."""
    caller = kind(dial(start_server().address))
    caller.start()
    data = bytes(body.join(Layout.of(_MODEL), _MODEL))
    pushed = caller.header(wire_dtype=number)
    pulled = caller.header(snapshot_wire_dtype=number)

    refusals = [
        _refused(call)
        for call in (
            lambda: caller.read(pb.PullRequest(wire_dtype=number)),
            lambda: caller.send(pushed, data),
            lambda: caller.swap(pushed, data),
            lambda: caller.swap(pulled, data),
        )
    ]

    text = f"wire_dtype: expected BFLOAT16 or none, got number {number}"
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusals) == {_Refusal(invalid, "INVALID_REQUEST", text)}
    assert caller.variables() == data
    assert caller.rejected() == {"INVALID_REQUEST": 3}


def _sparse(first: int, second: int) -> bytes:
    return struct.pack("<2I", first, second) + _SPARSE[8:]


_TWO: dict[str, Any] = {"counts": [2, 3]}
_RISE = "w: expected indices that rise and are below 4"


@pytest.mark.parametrize(
    ("change", "data", "reason", "text"),
    [
        ({"counts": [2]}, _SPARSE, "VARIABLE_MISMATCH", "counts: expected 2, one an"),
        ({"counts": [2, 3, 1]}, _SPARSE, "VARIABLE_MISMATCH", "counts: expected 2, "),
        ({"counts": [1] * 10**6}, _SPARSE, "VARIABLE_MISMATCH", "counts: expected 2"),
        ({"counts": [5, 3]}, _SPARSE, "VARIABLE_MISMATCH", "w: expected at most 4 el"),
        (
            {"counts": [2**64 - 1] * 2},
            _SPARSE,
            "VARIABLE_MISMATCH",
            "w: expected at most 4 elements, got 18446744073709551615",
        ),
        (
            {"counts": [2, 2**63]},
            _SPARSE,
            "VARIABLE_MISMATCH",
            "b: expected at most 3 elements, got 9223372036854775808",
        ),
        ({**_TWO, "nbytes": 76}, _SPARSE, "VARIABLE_MISMATCH", "nbytes: expected 140"),
        (
            {**_TWO, "nbytes": 2**64 - 1},
            _SPARSE,
            "VARIABLE_MISMATCH",
            "nbytes: expected 140 bytes, got 18446744073709551615",
        ),
        ({**_TWO, "wire_dtype": pb.BFLOAT16}, _SPARSE, "VARIABLE_MISMATCH", "nbytes: "),
        (_TWO, _SPARSE[:-1], "VARIABLE_MISMATCH", "body: expected 140 bytes, got 139"),
        (_TWO, _SPARSE[:64], "VARIABLE_MISMATCH", "body: expected 140 bytes, got 64"),
        (_TWO, b"", "VARIABLE_MISMATCH", "body: expected 140 bytes, got 0"),
        (_TWO, _SPARSE + b"\0", "VARIABLE_MISMATCH", "body: expected 140 bytes, got "),
        (_TWO, _sparse(3, 1), "VARIABLE_MISMATCH", _RISE),
        (_TWO, _sparse(1, 1), "VARIABLE_MISMATCH", _RISE),
        (_TWO, _sparse(0, 4), "VARIABLE_MISMATCH", _RISE),
        (_TWO, _sparse(0, 2**32 - 1), "VARIABLE_MISMATCH", _RISE),
        (_TWO, _sparse(2**32 - 1, 0), "VARIABLE_MISMATCH", _RISE),
        (
            _TWO,
            _SPARSE[:8] + b"\1" + _SPARSE[9:],
            "VARIABLE_MISMATCH",
            "body: expected zeros between the arrays",
        ),
        (
            _TWO,
            _SPARSE[:64] + struct.pack("<f", np.inf) + _SPARSE[68:],
            "NON_FINITE",
            "w: expected finite gradients, got inf at (0, 1)",
        ),
        (
            {"wire_dtype": pb.BFLOAT16},
            _apart(_bf16(0, 0, 0, 0), _bf16(0, np.nan, 0)),
            "NON_FINITE",
            "b: expected finite gradients, got nan at (1,)",
        ),
        (
            {"wire_dtype": pb.BFLOAT16},
            b"\x81\x7f" + bytes(68),
            "NON_FINITE",
            "w: expected finite gradients, got nan at (0, 0)",
        ),
    ],
)
@pytest.mark.parametrize("kind", [_Unary, _Streamed])
def test_an_encoded_push_that_is_not_sound_is_refused(
    start_server: StartServer,
    dial: Dial,
    kind: type[_Unary | _Streamed],
    change: dict[str, Any],
    data: bytes,
    reason: str,
    text: str,
) -> None:
    """It is counted once, changes nothing, and a good one may come after it."""
    caller = kind(dial(start_server().address))
    caller.start()
    before = caller.variables()
    nbytes = 140 if "counts" in change else 70
    header = caller.header(**{"nbytes": nbytes, **change})

    refusal = _refused(lambda: caller.send(header, data))

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
    )
    assert refusal.text.startswith(text)
    assert caller.variables() == before
    assert caller.rejected() == {reason: 1}
    assert caller.send(caller.header(nbytes=140, **_TWO), _SPARSE).applied


def test_a_sparse_push_that_is_sent_twice_is_applied_once(raw: _Raw) -> None:
    """The second time nobody looks at what it says of its body."""
    request = pb.PushRequest(header=raw.header(**_TWO, nbytes=140), data=_SPARSE)
    again = pb.PushRequest(header=raw.header(counts=[9] * 9, nbytes=1))

    replies = [raw.stub.Push(each, timeout=_TIMEOUT_S) for each in (request, again)]

    assert [(r.applied, r.step, r.duplicate) for r in replies] == [
        (True, 1, False),
        (True, 1, True),
    ]


# Broken bodies and bytes


def _cuts(raw: _Raw, case: str) -> list[pb.PushRequest]:
    header, data = raw.header(), bytes(body.join(Layout.of(_MODEL), _MODEL))
    first = pb.PushRequest(header=header)
    half = len(data) // 2
    one, two = data[:half], data[half:]
    cases = {
        "nothing": [],
        "no body": [first],
        "no header": [pb.PushRequest(data=data)],
        "truncated": [first, pb.PushRequest(data=one)],
        "a byte short": [first, pb.PushRequest(data=data[:-1])],
        "a byte long": [first, pb.PushRequest(data=data + b"\0")],
        "twice": [
            first,
            pb.PushRequest(data=data),
            pb.PushRequest(offset=len(data), data=data),
        ],
        "gap": [
            first,
            pb.PushRequest(data=one),
            pb.PushRequest(offset=half + 1, data=two),
        ],
        "backwards": [first, pb.PushRequest(data=one), pb.PushRequest(data=two)],
        "not from the start": [first, pb.PushRequest(offset=4, data=data[4:])],
        "far away": [first, pb.PushRequest(offset=2**64 - 1, data=data)],
        "second header": [
            first,
            pb.PushRequest(data=one),
            pb.PushRequest(header=header, offset=half, data=two),
        ],
    }
    return cases[case]


@pytest.mark.parametrize(
    ("case", "reason", "text"),
    [
        ("nothing", "INVALID_REQUEST", "stream: expected a message with a header"),
        ("no body", "VARIABLE_MISMATCH", "body: expected 76 bytes, got 0"),
        ("no header", "INVALID_REQUEST", "header: expected in the first message"),
        ("truncated", "VARIABLE_MISMATCH", "body: expected 76 bytes, got 38"),
        ("a byte short", "VARIABLE_MISMATCH", "body: expected 76 bytes, got 75"),
        ("a byte long", "VARIABLE_MISMATCH", "body: expected 76 bytes, got 77"),
        ("twice", "VARIABLE_MISMATCH", "body: expected 76 bytes, got 152"),
        ("gap", "INVALID_REQUEST", "offset: expected 38 bytes, got 39"),
        ("backwards", "INVALID_REQUEST", "offset: expected 38 bytes, got 0"),
        ("not from the start", "INVALID_REQUEST", "offset: expected 0 bytes, got 4"),
        ("far away", "INVALID_REQUEST", "offset: expected 0 bytes, got 18446744073709"),
        ("second header", "INVALID_REQUEST", "header: expected in the first message"),
    ],
)
def test_a_stream_of_another_form_is_refused(
    case: str, reason: str, text: str, raw: _Raw
) -> None:
    """It is counted once, changes nothing, and the same push may come again."""
    before = raw.variables()

    refusal = _refused(lambda: raw.stream(iter(_cuts(raw, case))))

    assert refusal.reason == reason
    assert refusal.text.startswith(text)
    assert raw.variables() == before
    assert raw.rejected() == {reason: 1}
    assert raw.push().applied


@pytest.mark.parametrize("method", [method.name for method in _SERVICE.methods])
def test_bytes_that_are_no_message_are_the_callers_error(
    method: str, raw: _Raw
) -> None:
    """Left alone, gRPC would say INTERNAL, which means a bug of the server's."""
    descriptor = _SERVICE.methods_by_name[method]
    kind = "_".join(
        "stream" if streaming else "unary"
        for streaming in (descriptor.client_streaming, descriptor.server_streaming)
    )
    call: Any = getattr(raw.channel, kind)(f"/{_SERVICE.full_name}/{method}")
    garbage = b"\x0a\xff\xff\xff\xff"
    request: Any = iter([garbage]) if descriptor.client_streaming else garbage

    def answer() -> object:
        reply = call(request, timeout=_TIMEOUT_S)
        return list(reply) if descriptor.server_streaming else reply

    refusal = _refused(answer)

    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "INVALID_REQUEST"
    assert refusal.text.startswith("request: expected a message of ps.v1, ")
    counted = "Push" in method or "Exchange" in method
    assert raw.rejected() == ({"INVALID_REQUEST": 1} if counted else {})


def test_bytes_that_are_no_message_end_a_stream_in_the_middle(raw: _Raw) -> None:
    """The push is counted, and nothing of it stays."""
    header = pb.PushRequest(header=raw.header()).SerializeToString()
    call: Any = raw.channel.stream_unary(f"/{_SERVICE.full_name}/PushStream")
    before = raw.variables()

    refusal = _refused(lambda: call(iter([header, b"\xff"]), timeout=_TIMEOUT_S))

    assert refusal.reason == "INVALID_REQUEST"
    assert raw.variables() == before
    assert raw.rejected() == {"INVALID_REQUEST": 1}


def test_fields_of_the_future_are_passed_over(raw: _Raw) -> None:
    """A newer client's push, with fields that this server has never heard of."""
    unknown = b"\xc2\x3e\x03abc"  # Field 1000, three bytes long.
    header = raw.header().SerializeToString() + unknown
    request = pb.PushRequest(data=bytes(body.join(Layout.of(_MODEL), _MODEL)))
    request.header.ParseFromString(header)
    data = request.SerializeToString() + unknown
    call: Any = raw.channel.unary_unary(f"/{_SERVICE.full_name}/Push")

    reply = pb.PushReply.FromString(call(data, timeout=_TIMEOUT_S))

    assert reply == pb.PushReply(applied=True, staleness=0, step=1)


def test_a_method_that_is_none_is_refused_by_grpc(raw: _Raw) -> None:
    """UNIMPLEMENTED, as every gRPC server says it."""
    call: Any = raw.channel.unary_unary(f"/{_SERVICE.full_name}/Pusch")

    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        call(b"", timeout=_TIMEOUT_S)

    assert raw.push().applied


_LONG = [letter * 1000 for letter in "abcdef"]


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            [pb.ArraySpec(name=name, dtype=pb.FLOAT32) for name in (*_LONG, "z")],
            "z: expected one of aaa",
        ),
        (
            [pb.ArraySpec(name="w", dtype=pb.FLOAT32, shape=[1] * 10_000 + [-1])],
            "w: expected ",
        ),
        ([pb.ArraySpec(name="漢" * 2000)], "漢漢漢"),
    ],
    ids=["names", "shape", "letters"],
)
def test_a_long_reason_does_not_hide_the_error(
    arrays: list[pb.ArraySpec], text: str, start_server: StartServer, dial: Dial
) -> None:
    """A status travels in headers, of which a client takes 8 KB at most."""
    raw = _Raw(dial(start_server().address))
    raw.initialize({name: np.ones((), np.float32) for name in _LONG})

    refusal = _refused(lambda: raw.push(layout=pb.Layout(arrays=arrays)))

    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "VARIABLE_MISMATCH"
    assert refusal.text.startswith(text)


# Pulls


@pytest.mark.parametrize("kind", [_Unary, _Streamed])
def test_a_pull_brings_what_the_caller_does_not_hold(
    kind: type[_Unary | _Streamed], start_server: StartServer, dial: Dial
) -> None:
    """The layout with a new generation, the body with a new step."""
    raw = kind(dial(start_server().address))
    raw.start()
    raw.push()
    asked: list[dict[str, Any]] = [
        {},
        {"generation": "h", "step": 1},
        {"generation": raw.generation, "step": 0},
        {"generation": raw.generation, "step": 1},
        {"step": 1},
    ]

    answers = [raw.read(pb.PullRequest(session="s", **known)) for known in asked]

    zeros = bytes(76)
    assert [
        (header.HasField("layout"), header.not_modified, data)
        for header, data in answers
    ] == [
        (True, False, zeros),
        (True, False, zeros),
        (False, False, zeros),
        (False, True, b""),
        (True, False, zeros),
    ]
    assert {(h.generation, h.step) for h, _ in answers} == {(raw.generation, 1)}
    assert answers[0][0].layout == Layout.of(_MODEL).to_proto()


@pytest.fixture
def floats(start_server: StartServer, dial: Dial) -> Callable[[int], _Raw]:
    """Keep so many floats on a server, and join it with gRPC's own limits."""

    def start(count: int) -> _Raw:
        raw = _Raw(dial(start_server().address))
        raw.initialize({"w": np.arange(count, dtype=np.float32)})
        return raw

    return start


def test_a_standard_client_can_take_the_largest_body_of_one_message(
    floats: Callable[[int], _Raw],
) -> None:
    """4,000,000 bytes leave gRPC's 4 MiB a message enough for the rest."""
    raw = floats(1_000_000)
    gradients = {"w": np.ones(1_000_000, np.float32)}

    pulled = raw.pull().data
    push = pb.PushRequest(
        header=raw.header(gradients),
        data=bytes(body.join(Layout.of(gradients), gradients)),
    )
    reply = raw.stub.Exchange(pb.ExchangeRequest(push=push), timeout=_TIMEOUT_S)

    assert pulled == np.arange(1_000_000, dtype=np.float32).tobytes()
    assert reply.push.applied
    assert reply.pull.data == (np.arange(1_000_000) - 1.0).astype(np.float32).tobytes()


def test_a_larger_model_is_not_pulled_in_one_message(
    floats: Callable[[int], _Raw],
) -> None:
    """An exchange says so while nothing has been applied yet; a stream brings it."""
    raw = floats(1_000_001)
    gradients = {"w": np.ones(1_000_001, np.float32)}
    push = pb.PushRequest(
        header=raw.header(gradients),
        data=bytes(body.join(Layout.of(gradients), gradients)),
    )
    exchange = pb.ExchangeRequest(push=push)

    refusals = [
        _refused(raw.pull),
        _refused(lambda: raw.stub.Exchange(exchange, timeout=_TIMEOUT_S)),
    ]

    assert (
        refusals
        == [
            _Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_LARGE",
                "variables: expected at most 4000000 bytes in one message, "
                "got 4000004; the Stream calls carry them",
            )
        ]
        * 2
    )
    assert raw.variables() == np.arange(1_000_001, dtype=np.float32).tobytes()
    assert raw.rejected() == {"TOO_LARGE": 1}
    assert raw.push(gradients).applied


def test_a_streamed_pull_comes_in_pieces_of_a_mebibyte(
    floats: Callable[[int], _Raw],
) -> None:
    """The header comes first and alone; the pieces are full but the last."""
    raw = floats(600_000)

    replies = list(raw.stub.PullStream(pb.PullRequest(), timeout=_TIMEOUT_S))

    assert [reply.HasField("header") for reply in replies] == [True] + [False] * 3
    assert [len(reply.data) for reply in replies] == [0, _MIB, _MIB, 302_848]
    assert [reply.offset for reply in replies] == [0, 0, _MIB, 2 * _MIB]


# Callers who go away


def test_a_caller_who_goes_away_in_mid_stream_changes_nothing(
    start_server: StartServer, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is counted, its thread goes on, and the push may come again."""
    server = start_server()
    raw = _Raw(dial(server.address))
    raw.initialize(_MODEL)
    before = raw.variables()
    arrived, leave = threading.Event(), threading.Event()
    add = body.Assembly.add

    def note(assembly: body.Assembly, offset: int, data: bytes) -> None:
        add(assembly, offset, data)
        if data:
            arrived.set()

    def messages() -> Iterator[pb.PushRequest]:
        yield pb.PushRequest(header=raw.header())
        yield pb.PushRequest(data=bytes(4))
        leave.wait(_TIMEOUT_S)

    monkeypatch.setattr(body.Assembly, "add", note)
    call = raw.stub.PushStream.future(messages())
    assert arrived.wait(_TIMEOUT_S)

    call.cancel()
    leave.set()

    assert raw.variables() == before
    assert raw.push().applied
    server.stop()  # It returns when the last handler has.
    counts = server.status().counts
    assert (counts.applied, sum(counts.rejected.values())) == (1, 1)
    # gRPC may tell of the stream's end a moment before it tells why.
    assert counts.rejected.keys() <= {"CALL_CANCELLED", "VARIABLE_MISMATCH"}


def test_a_caller_who_goes_away_before_the_header_is_no_bug(
    start_server: StartServer,
    dial: Dial,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing has failed here, so nothing is logged as a failure."""
    arrived, leave = threading.Event(), threading.Event()
    handle = ParameterServer.PushStream

    def note(self: ParameterServer, requests: Any, context: Any) -> pb.PushReply:
        arrived.set()
        return handle(self, requests, context)

    def messages() -> Iterator[pb.PushRequest]:
        leave.wait(_TIMEOUT_S)
        yield from ()

    monkeypatch.setattr(ParameterServer, "PushStream", note)
    server = start_server()
    call = _Raw(dial(server.address)).stub.PushStream.future(messages())
    assert arrived.wait(_TIMEOUT_S)

    call.cancel()
    leave.set()
    server.stop()

    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == []


# The server itself


def test_the_health_service_says_serving(raw: _Raw) -> None:
    """Of the whole server and of each of its services, for the usual probes."""
    stub: Any = health_pb2_grpc.HealthStub(raw.channel)

    statuses = [
        stub.Check(
            health_pb2.HealthCheckRequest(service=name), timeout=_TIMEOUT_S
        ).status
        for name in ("", "ps.v1.ParameterServer", "ps.v1.Admin")
    ]

    assert statuses == [health_pb2.HealthCheckResponse.SERVING] * 3


def _services(channel: grpc.Channel) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=_TIMEOUT_S)
    return {service.name for service in reply.list_services_response.service}


def test_reflection_answers_just_when_it_is_asked_for(
    start_server: StartServer, dial: Dial
) -> None:
    """It tells strangers what may be called, so it is off by default."""
    silent, open_ = (start_server(reflection=on) for on in (False, True))

    services = _services(dial(open_.address))

    assert services >= {"ps.v1.ParameterServer", "ps.v1.Admin", "grpc.health.v1.Health"}
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        _services(dial(silent.address))


def test_asked_to_stop_a_server_ends_its_wait(
    start_server: StartServer, dial: Dial
) -> None:
    """Whoever owns it stops it then; garbage in place of the request does not."""
    server = start_server()
    channel = dial(server.address)
    stop: Any = channel.unary_unary("/ps.v1.Admin/Stop")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.wait)
        try:
            refusal = _refused(lambda: stop(b"\xff", timeout=_TIMEOUT_S))
            waited_on = not waiting.done()
            rpc.AdminStub(channel).Stop(pb.StopRequest(), timeout=_TIMEOUT_S)
            waiting.result(_TIMEOUT_S)
        finally:
            server.stop()

    assert refusal.reason == "INVALID_REQUEST"
    assert waited_on


def test_a_stopped_server_takes_no_calls_and_keeps_no_thread(
    start_server: StartServer, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be stopped again, which is not told; its status can still be read."""
    caplog.set_level(logging.INFO, "psserver")
    threads = set(threading.enumerate())
    server = start_server()
    raw = _Raw(dial(server.address))
    raw.initialize(_MODEL)
    raw.push()

    server.stop()
    server.stop()

    assert caplog.text.count("stopping, with 10 s of grace") == 1
    assert caplog.text.count("stopped at step 1") == 1
    left = set(threading.enumerate()) - threads
    assert [t.name for t in left if t.name.startswith("psserver")] == []
    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        raw.pull()
    server.wait()
    assert server.status().step == 1


def test_a_port_that_is_taken_is_refused(start_server: StartServer) -> None:
    """A second server there would take half of the workers away."""
    port = int(start_server().address.rpartition(":")[2])

    with pytest.raises(
        OSError, match=rf"^port: expected 127\.0\.0\.1:{port} to be free, got an error;"
    ):
        start_server(port=port)


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]"])
def test_the_address_is_one_that_clients_can_use(
    host: str, start_server: StartServer, dial: Dial
) -> None:
    """With the port really bound, and brackets where they belong."""
    try:
        server = start_server(host=host)
    except OSError:
        pytest.skip("this machine has no IPv6")

    name, _, port = server.address.rpartition(":")

    assert name == ("localhost" if host == "localhost" else "[::1]")
    assert int(port) > 0
    assert _Raw(dial(server.address)).generation == server.status().generation
