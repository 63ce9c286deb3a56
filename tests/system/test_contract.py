"""The contract as others read it: plain protobuf on one side, ours on the other.

What stands against our client and our server here is made of the generated classes
alone, and of messages whose bytes are as strange as protobuf allows.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import psserver
import psworker
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import ParameterServerError, VariableMismatchError
from pswire.values import Snapshot, Verdict

Array = npt.NDArray[Any]
Bytes = Callable[[Any], bytes]
StartServer = Callable[..., psserver.Server]
StartHandMade = Callable[..., "HandMade"]

TIMEOUT_S = 30.0
MAX_UNARY_NBYTES = 4_000_000
PIECE_NBYTES = 2**20
SIZES = {"4 KB": 1_000, "5 MB": 1_250_001}

DTYPES: dict[Any, np.dtype[Any]] = {
    pb.FLOAT32: np.dtype(np.float32),
    pb.FLOAT64: np.dtype(np.float64),
    pb.INT32: np.dtype(np.int32),
    pb.BOOL: np.dtype(np.bool_),
    pb.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    pb.UINT32: np.dtype(np.uint32),
}
TRAINABLE = (pb.FLOAT32, pb.FLOAT64)


def make_params(size: int) -> dict[str, Array]:
    """Make variables with gaps between them, one of them without an element."""
    rng = np.random.default_rng(size)
    return {
        "w": rng.integers(-99, 99, size).astype(np.float32),
        "none": np.zeros((2, 0), np.float32),
        "n": np.asarray([1, -2, 3], np.int32),
        "flag": np.asarray(True),
        "é": np.asarray([[0.5], [-0.25]], np.float64),
    }


def make_gradients(params: dict[str, Array]) -> dict[str, Array]:
    """Make gradients with which SGD at a rate of 1 adds 1 everywhere."""
    return {
        name: np.full_like(array, -1)
        for name, array in params.items()
        if array.dtype.kind == "f"
    }


def assert_identical(got: Any, expected: dict[str, Array]) -> None:
    """Compare arrays by name, bit for bit."""
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in got.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in expected.items()
    }


# The contract, once more, with nothing of ours but the schema


def layout_of(arrays: dict[str, Array]) -> pb.Layout:
    """Describe arrays."""
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    return pb.Layout(
        arrays=[
            pb.ArraySpec(name=name, dtype=numbers[array.dtype], shape=array.shape)
            for name, array in arrays.items()
        ]
    )


def trainable(layout: pb.Layout) -> pb.Layout:
    """Return the layout of the gradients."""
    return pb.Layout(arrays=[a for a in layout.arrays if a.dtype in TRAINABLE])


def to_body(arrays: dict[str, Array]) -> bytes:
    """Lay arrays out, each at the next multiple of 64 bytes."""
    body = b""
    for array in arrays.values():
        if array.size:
            body += bytes(-len(body) % 64) + array.tobytes()
    return body


def from_body(layout: pb.Layout, body: bytes) -> dict[str, Array]:
    """Read what `to_body` wrote."""
    return dict(each_of_body(layout, body))


def each_of_body(layout: pb.Layout, body: bytes) -> Iterator[tuple[str, Array]]:
    """Yield each array of a body with its name."""
    end = 0
    for spec in layout.arrays:
        dtype, count = DTYPES[spec.dtype], math.prod(spec.shape)
        start = end + -end % 64 if count else 0
        array = np.frombuffer(body, dtype, count, start)
        yield spec.name, array.reshape(tuple(spec.shape))
        end = start + array.nbytes if count else end
    assert end == len(body)


def narrowed(layout: pb.Layout, wire_dtype: Any) -> pb.Layout:
    """Return a layout with arrays of float32 as what they travel as."""
    narrow = pb.Layout()
    narrow.CopyFrom(layout)
    for spec in narrow.arrays:
        if wire_dtype and spec.dtype == pb.FLOAT32:
            spec.dtype = wire_dtype
    return narrow


def read_push(
    header: pb.PushHeader, layout: pb.Layout, body: bytes
) -> dict[str, Array]:
    """Read gradients of a layout, some elements of which may have been left out."""
    sent, parts = narrowed(layout, header.wire_dtype), pb.Layout()
    for spec, count in itertools.zip_longest(sent.arrays, header.counts):
        part = parts.arrays.add()
        part.CopyFrom(spec)
        if count not in (None, math.prod(spec.shape)):
            part.name, part.dtype, part.shape[:] = "where", pb.UINT32, [count]
            parts.arrays.add(name=spec.name, dtype=spec.dtype, shape=[count])
    # By place: of several arrays, the indices have one name.
    arrays, rest = {}, list(each_of_body(parts, body))
    for spec in layout.arrays:
        name, array = rest.pop(0)
        if name == "where":
            full = np.zeros(math.prod(spec.shape), DTYPES[spec.dtype])
            full[array] = rest.pop(0)[1]
            array = full.reshape(tuple(spec.shape))
        arrays[spec.name] = array.astype(DTYPES[spec.dtype])
    return arrays


def pieces(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a body for a stream."""
    for offset in range(0, len(body), PIECE_NBYTES):
        yield offset, body[offset : offset + PIECE_NBYTES]


def put_together(messages: list[Any]) -> bytes:
    """Check a stream's messages, or the one of a unary call, and return the body."""
    body = b""
    assert messages[0].HasField("header")
    assert not any(message.HasField("header") for message in messages[1:])
    assert len(messages) == 1 or not messages[0].data
    for message in messages:
        assert message.offset == len(body)
        assert len(message.data) <= (
            MAX_UNARY_NBYTES if len(messages) == 1 else PIECE_NBYTES
        )
        body += message.data
    return body


def pull_of(header: pb.PushHeader) -> pb.PullRequest:
    """Return the pull that an exchange stands for."""
    return pb.PullRequest(
        generation=header.generation,
        step=header.step_read,
        wire_dtype=header.snapshot_wire_dtype,
    )


class HandMade(rpc.ParameterServerServicer):
    """A parameter server of the generated classes alone: SGD at a rate of 1.

    Attributes:
        address: Where it listens.
        called: The methods that were called, in order.
        variables: By name.
        most_messages: Of a streamed reply, after which it ends; None: all there are.
    """

    def __init__(self) -> None:
        self.address = ""
        self.called: list[str] = []
        self.variables: dict[str, Array] = {}
        self.most_messages: int | None = None
        self._layout = pb.Layout()
        self._step = 0

    def Join(self, request: Any, context: Any) -> pb.JoinReply:  # noqa: N802
        self.called.append("Join")
        assert request.worker
        assert request.session
        return pb.JoinReply(
            generation="g",
            incarnation="i",
            step=self._step,
            layout=self._layout if self.variables else None,
            limits=pb.Limits(
                max_staleness=-3,
                max_model_nbytes=10**9,
                max_unary_nbytes=MAX_UNARY_NBYTES,
            ),
        )

    def Initialize(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._initialize("Initialize", [request])

    def InitializeStream(self, requests: Any, context: Any) -> Any:  # noqa: N802
        return self._initialize("InitializeStream", list(requests))

    def Pull(self, request: Any, context: Any) -> pb.PullReply:  # noqa: N802
        self.called.append("Pull")
        reply = pb.PullReply(header=self._snapshot(request))
        if not reply.header.not_modified:
            reply.data = self._body(request.wire_dtype)
        return reply

    def PullStream(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.called.append("PullStream")
        pulled = self._pulled(request)
        yield from itertools.islice(pulled, self.most_messages)

    def Push(self, request: Any, context: Any) -> pb.PushReply:  # noqa: N802
        self.called.append("Push")
        return self._push([request])

    def PushStream(self, requests: Any, context: Any) -> pb.PushReply:  # noqa: N802
        self.called.append("PushStream")
        return self._push(list(requests))

    def Exchange(self, request: Any, context: Any) -> pb.ExchangeReply:  # noqa: N802
        self.called.append("Exchange")
        pull = pull_of(request.push.header)
        reply = pb.ExchangeReply(push=self._push([request.push]))
        reply.pull.header.CopyFrom(self._snapshot(pull))
        reply.pull.data = self._body(pull.wire_dtype)
        return reply

    def ExchangeStream(self, requests: Any, context: Any) -> Any:  # noqa: N802
        self.called.append("ExchangeStream")
        pushes = [request.push for request in requests]
        first = pb.ExchangeReply(push=self._push(pushes))
        pulled = self._pulled(pull_of(pushes[0].header))
        for pull in itertools.islice(pulled, self.most_messages):
            first.pull.CopyFrom(pull)
            yield first
            first = pb.ExchangeReply()

    def LeaseShard(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.called.append("LeaseShard")
        lease = pb.ShardLease()
        if request.finished:
            place = request.held.index + 1
            lease.index = place % request.count
            lease.epoch = request.held.epoch + place // request.count
        return pb.LeaseShardReply(lease=lease)

    def Inspect(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.called.append("Inspect")
        specs = {f"variables/{spec.name}": spec for spec in self._layout.arrays}
        layout = layout_of({n: self.variables[s.name] for n, s in specs.items()})
        header = pb.InspectHeader(generation="g", step=self._step, layout=layout)
        yield pb.InspectReply(header=header)
        chosen = {name: self.variables[specs[name].name] for name in request.names}
        for offset, data in pieces(to_body(chosen)):
            yield pb.InspectReply(offset=offset, data=data)

    def Status(self, request: Any, context: Any) -> pb.StatusReply:  # noqa: N802
        self.called.append("Status")
        counts = pb.Counts(applied=self._step, rejected={"STEP_READ": 2})
        return pb.StatusReply(
            generation="g",
            incarnation="i",
            step=self._step,
            limits=pb.Limits(max_grad_norm=0.5, max_unary_nbytes=MAX_UNARY_NBYTES),
            rule="by hand",
            initialized=bool(self.variables),
            uptime_s=1.5,
            pushes_per_s=0.25,
            counts=counts,
            staleness={-1: 3, 2: 2**60},
            workers=[
                pb.WorkerStatus(name="a", counts=counts, last_seen_s=0.5),
                pb.WorkerStatus(name="b", counts=pb.Counts(), consecutive_drops=7),
            ],
        )

    def _initialize(self, method: str, requests: list[Any]) -> pb.InitializeReply:
        self.called.append(method)
        self._layout.CopyFrom(requests[0].header.layout)
        self.variables = from_body(self._layout, put_together(requests))
        return pb.InitializeReply(initialized=True, generation="g")

    def _snapshot(self, request: pb.PullRequest) -> pb.SnapshotHeader:
        same = request.generation == "g"
        return pb.SnapshotHeader(
            generation="g",
            incarnation="i",
            step=self._step,
            not_modified=same and request.step == self._step,
            layout=None if same else self._layout,
            wire_dtype=request.wire_dtype,
        )

    def _body(self, wire_dtype: Any) -> bytes:
        specs = narrowed(self._layout, wire_dtype).arrays
        return to_body(
            {s.name: self.variables[s.name].astype(DTYPES[s.dtype]) for s in specs}
        )

    def _pulled(self, request: pb.PullRequest) -> Iterator[pb.PullReply]:
        header = self._snapshot(request)
        yield pb.PullReply(header=header)
        if not header.not_modified:
            for offset, data in pieces(self._body(request.wire_dtype)):
                yield pb.PullReply(offset=offset, data=data)

    def _push(self, requests: list[Any]) -> pb.PushReply:
        header, body = requests[0].header, put_together(requests)
        assert (header.session != "", header.generation) == (True, "g")
        assert header.nbytes == len(body)
        named = header.HasField("layout")
        layout = header.layout if named else trainable(self._layout)
        for name, gradient in read_push(header, layout, body).items():
            self.variables[name] = self.variables[name] - gradient
        staleness = self._step - header.step_read
        self._step += 1
        return pb.PushReply(applied=True, staleness=staleness, step=self._step)


# Messages as strange as protobuf allows


def write_varint(number: int) -> bytes:
    """Write a number, 7 bits a byte, lowest first."""
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = 0
    for shift in itertools.count(0, 7):
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            break
    return number, at


def fields_of(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield a message's fields as (number, all of its bytes, its payload)."""
    at = 0
    while at < len(data):
        start = at
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            value, (_, at) = at, read_varint(data, at)
        elif tag & 7 == 2:
            size, value = read_varint(data, at)
            at = value + size
        else:
            value, at = at, at + {1: 8, 5: 4}[tag & 7]
        yield tag >> 3, data[start:at], data[value:at]


# Fields 2000 to 2003, of every kind that has a length of its own.
UNKNOWN = b"".join(
    write_varint(2000 + number << 3 | kind) + payload
    for number, (kind, payload) in enumerate(
        [(0, b"\x07"), (1, bytes(8)), (2, b"\x03new"), (5, bytes(4))]
    )
)


def rewrite(
    message: Any, change: Callable[[Any, list[tuple[int, bytes]]], list[bytes]]
) -> bytes:
    """Write a message, the ones in it first, with its fields changed.

    Args:
        message: Of a generated class.
        change: Called with a descriptor and (number, bytes) of each field; returns the
            bytes of all fields in the order to send.
    """

    def written(data: bytes, kind: Any) -> bytes:
        fields = []
        for number, whole, payload in fields_of(data):
            inner = kind.fields_by_number[number].message_type
            if inner is not None and not inner.GetOptions().map_entry:
                payload = written(payload, inner)
                size = write_varint(len(payload))
                whole = write_varint(number << 3 | 2) + size + payload
            fields.append((number, whole))
        return b"".join(change(kind, fields))

    return written(message.SerializeToString(), message.DESCRIPTOR)


def reordered(message: Any) -> bytes:
    """Write fields of higher numbers first."""
    return rewrite(
        message,
        lambda _, fields: [
            whole for _, whole in sorted(fields, key=lambda field: -field[0])
        ],
    )


def from_the_future(message: Any) -> bytes:
    """Write fields that nobody knows behind all others, and before them too."""
    return rewrite(
        message,
        lambda _, fields: [UNKNOWN, *(whole for _, whole in fields), UNKNOWN],
    )


def in_two(message: Any) -> bytes:
    """Write single messages within it as an empty one and the rest, to be merged."""

    def change(kind: Any, fields: list[tuple[int, bytes]]) -> list[bytes]:
        numbers = [number for number, _ in fields]
        empty = [
            write_varint(number << 3 | 2) + b"\x00"
            for number in numbers
            if kind.fields_by_number[number].message_type is not None
            if numbers.count(number) == 1
            and not kind.fields_by_number[number].message_type.GetOptions().map_entry
            and kind.fields_by_number[number].name not in ("arrays", "workers")
        ]
        return [*empty, *(whole for _, whole in fields)]

    return rewrite(message, change)


def repeated_last_wins(message: Any) -> bytes:
    """Write numbers and bytes twice, first a wrong value, of which the last counts."""

    def change(kind: Any, fields: list[tuple[int, bytes]]) -> list[bytes]:
        wrong = []
        for number, whole in fields:
            tag, at = read_varint(whole, 0)
            several = ("arrays", "shape", "names")
            single = kind.fields_by_number[number].name not in several
            is_message = kind.fields_by_number[number].message_type is not None
            if single and not is_message and tag & 7 in (0, 2):
                wrong.append(whole[:at] + (b"\x01" if tag & 7 == 0 else b"\x01x"))
        return [*wrong, *(whole for _, whole in fields)]

    return rewrite(message, change)


def plain(message: Any) -> bytes:
    """Write a message as the generated classes do."""
    written: bytes = message.SerializeToString()
    return written


STRANGE = [plain, reordered, from_the_future, in_two, repeated_last_wins]


def by_name(value: Any) -> str:
    """Name a parametrized function after itself."""
    return value.__name__.replace("_", " ")


class _Rewritten(grpc.ServerInterceptor):
    """Sends replies as other bytes than the generated classes would."""

    def __init__(self, write: Callable[[str, Any], bytes]) -> None:
        self._write = write

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        handler = continuation(details)
        return handler and handler._replace(
            response_serializer=lambda reply: self._write(method, reply)
        )


@pytest.fixture
def start_hand_made() -> Iterator[StartHandMade]:
    """Start hand-made servers; they end with the test.

    Yields a function of how they write replies, of a method's name and a message.
    """
    with ExitStack() as stack:

        def start(
            write: Callable[[str, Any], bytes] = lambda method, reply: plain(reply),
        ) -> HandMade:
            hand_made = HandMade()
            pool = futures.ThreadPoolExecutor(4, "hand-made")
            server = grpc.server(pool, interceptors=[_Rewritten(write)])
            rpc.add_ParameterServerServicer_to_server(hand_made, server)
            port = server.add_insecure_port("127.0.0.1:0")
            hand_made.address = f"127.0.0.1:{port}"
            server.start()
            stack.callback(pool.shutdown)
            stack.callback(lambda: server.stop(0).wait())
            return hand_made

        yield start


class _Channel:
    """A channel for a generated stub that sends, and keeps, bytes of our own making."""

    def __init__(self, channel: grpc.Channel, write: Bytes) -> None:
        self._channel = channel
        self._write = write
        self.replies: list[tuple[Any, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        make = getattr(self._channel, name)

        def prepare(
            path: str, request_serializer: Any, response_deserializer: Any, **rest: Any
        ) -> Any:
            def read(data: bytes) -> Any:
                message = response_deserializer(data)
                self.replies.append((message, data))
                return message

            return make(
                path,
                request_serializer=self._write,
                response_deserializer=read,
                **rest,
            )

        return prepare


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("write", STRANGE, ids=by_name)
def test_our_client_understands_a_server_of_plain_protobuf(
    start_hand_made: StartHandMade, write: Bytes, size: int
) -> None:
    """Every call; large models in pieces. The hand-made server checks the requests."""
    server = start_hand_made(lambda method, reply: write(reply))
    params = make_params(size)
    gradients = make_gradients(params)

    def after(pushes: int) -> dict[str, Array]:
        return {n: a + pushes if n in gradients else a for n, a in params.items()}

    with psworker.connect(server.address) as client:
        initialized = client.initialize(params)
        first = client.pull()
        assert_identical(first.params, params)
        again = client.pull()
        pushed = client.push(gradients, first)
        second = client.pull()
        assert_identical(second.params, after(1))
        exchanged, third = client.exchange(gradients, first)
        assert_identical(third.params, after(2))
        status = client.status()

    suffix = "" if size * 4 < MAX_UNARY_NBYTES else "Stream"
    assert server.called == [
        *("Join", f"Initialize{suffix}", "Join", f"Pull{suffix}", f"Pull{suffix}"),
        *(f"Push{suffix}", f"Pull{suffix}", f"Exchange{suffix}", "Status"),
    ]
    assert_identical(server.variables, after(2))
    assert initialized
    assert np.shares_memory(again.params["w"], first.params["w"])
    assert pushed == Verdict(applied=True, staleness=0, step=1)
    assert exchanged == Verdict(applied=True, staleness=1, step=2)
    assert [s.step for s in (first, second, third)] == [0, 1, 2]
    assert (status.step, status.rule, status.uptime_s) == (2, "by hand", 1.5)
    assert status.limits.max_grad_norm == 0.5
    assert dict(status.staleness) == {-1: 3, 2: 2**60}
    assert dict(status.counts.rejected) == {"STEP_READ": 2}
    assert [(row.name, row.counts.applied) for row in status.workers] == [
        ("a", 2),
        ("b", 0),
    ]
    assert status.workers[1].consecutive_drops == 7


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(
    "options",
    [
        {"wire_dtype": "bf16"},
        {"compression": "topk:0.25"},
        {"wire_dtype": "bf16", "compression": "topk:0.25"},
    ],
    ids=["bf16", "topk", "both"],
)
def test_a_server_of_plain_protobuf_understands_what_our_client_encodes(
    start_hand_made: StartHandMade, options: dict[str, Any], size: int
) -> None:
    """By the schema's text; with top-k, all has come after four pushes."""
    server = start_hand_made()
    params = make_params(size)
    gradients = make_gradients(params)

    with psworker.connect(server.address, **options) as client:
        client.initialize(params)
        snapshot = client.pull()
        _, snapshot = client.exchange(gradients, snapshot)
        for _ in range(3 if "compression" in options else 0):
            zeros = {name: np.zeros_like(array) for name, array in gradients.items()}
            client.push(zeros, snapshot)
        last = client.pull()

    expected = {n: a + 1 if n in gradients else a for n, a in params.items()}
    assert_identical(server.variables, expected)
    assert_identical(last.params, expected)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("write", STRANGE, ids=by_name)
def test_our_server_understands_a_client_of_plain_protobuf(
    start_server: StartServer, write: Bytes, size: int
) -> None:
    """Its answers are, byte for byte, what the generated classes would write."""
    server = start_server(max_staleness=1)
    params = make_params(size)
    gradients = make_gradients(params)
    body, gradient_body = to_body(params), to_body(gradients)
    layout = layout_of(params)
    is_large = len(body) > MAX_UNARY_NBYTES

    def requests(kind: Any, header: Any, data: bytes) -> Any:
        if not is_large:
            return kind(header=header, data=data)
        rest = (kind(offset=at, data=piece) for at, piece in pieces(data))
        return itertools.chain([kind(header=header)], rest)

    def push_header(seq: int, generation: str, named: bool) -> pb.PushHeader:
        return pb.PushHeader(
            session="s",
            seq=seq,
            generation=generation,
            layout=trainable(layout) if named else None,
            nbytes=len(gradient_body),
            value=0.5,
        )

    with grpc.insecure_channel(server.address) as bare:
        channel = _Channel(bare, write)
        stub: Any = rpc.ParameterServerStub(channel)

        def call(name: str, request: Any) -> list[Any]:
            method = getattr(stub, f"{name}Stream" if is_large else name)
            answer = method(request, timeout=TIMEOUT_S)
            streamed = is_large and name in ("Pull", "Exchange")
            return list(answer) if streamed else [answer]

        joined = stub.Join(pb.JoinRequest(worker="me", session="s"), timeout=TIMEOUT_S)
        generation = joined.generation
        header = pb.InitializeHeader(session="s", layout=layout)
        (initialized,) = call(
            "Initialize", requests(pb.InitializeRequest, header, body)
        )
        pulled = call("Pull", pb.PullRequest(session="s"))
        push = push_header(1, generation, named=True)
        (pushed,) = call("Push", requests(pb.PushRequest, push, gradient_body))
        (repeated,) = call("Push", requests(pb.PushRequest, push, gradient_body))
        second = push_header(2, generation, named=False)
        push_requests = requests(pb.PushRequest, second, gradient_body)
        exchange: Any = (
            (pb.ExchangeRequest(push=each) for each in push_requests)
            if is_large
            else pb.ExchangeRequest(push=push_requests)
        )
        exchanged = call("Exchange", exchange)
        known = pb.PullRequest(session="s", generation=generation, step=2)
        (unchanged,) = call("Pull", known)
        names = [f"variables/{spec.name}" for spec in layout.arrays]
        inspected = [
            *stub.Inspect(pb.InspectRequest(names=names), timeout=TIMEOUT_S),
            *stub.Inspect(pb.InspectRequest(), timeout=TIMEOUT_S),
        ]
        status = stub.Status(pb.StatusRequest(), timeout=TIMEOUT_S)

    def after(pushes: int) -> dict[str, Array]:
        return {n: a + pushes if n in gradients else a for n, a in params.items()}

    assert (initialized.initialized, initialized.generation) == (True, generation)
    first = pulled[0].header
    assert (first.step, first.layout) == (0, layout)
    assert_identical(from_body(layout, put_together(pulled)), after(0))
    assert pushed == pb.PushReply(applied=True, staleness=0, step=1)
    assert repeated == pb.PushReply(applied=True, staleness=0, step=1, duplicate=True)
    assert exchanged[0].push == pb.PushReply(applied=True, staleness=1, step=2)
    assert not any(reply.HasField("push") for reply in exchanged[1:])
    newest = [reply.pull for reply in exchanged]
    assert newest[0].header.step == 2
    assert not newest[0].header.HasField("layout")
    assert_identical(from_body(layout, put_together(newest)), after(2))
    assert (unchanged.header.not_modified, unchanged.data) == (True, b"")
    assert (inspected[0].header, inspected[0].header.step) == (inspected[-1].header, 2)
    assert [spec.name for spec in inspected[0].header.layout.arrays] == names
    got = put_together(inspected[:-1])
    assert_identical(from_body(layout, got), after(2))
    assert (status.step, status.counts.applied, status.counts.duplicate) == (2, 2, 1)
    assert [row.name for row in status.workers] == ["me"]
    for message, data in channel.replies:
        assert data == message.SerializeToString()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(
    "options",
    [{}, {"wire_dtype": "bf16", "compression": "topk:0.25"}],
    ids=["plain", "encoded"],
)
def test_what_our_client_sends_is_what_the_generated_classes_would(
    start_hand_made: StartHandMade,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    size: int,
) -> None:
    """Byte for byte: other readers may be less lenient than protobuf's own."""
    read: list[tuple[Any, bytes]] = []
    kinds = (
        *("Join", "Initialize", "Pull", "Push", "Exchange"),
        *("LeaseShard", "Inspect", "Status"),
    )
    for kind in kinds:
        message = getattr(pb, f"{kind}Request")
        monkeypatch.setattr(pb, f"{kind}Request", _Kept(message, read))
    server = start_hand_made()
    monkeypatch.undo()
    params = make_params(size)

    with psworker.connect(server.address, **options) as client:
        client.initialize(params)
        snapshot = client.pull()
        client.push(make_gradients(params), snapshot, value=0.0)
        client.exchange(make_gradients(params), snapshot)
        client.status()
        assert_identical(
            client.variables("variables/n").params,
            {"variables/n": params["n"]},
        )
        assert [next(parts) for parts in [client.lease_shards(2)] * 3] == [
            *(psworker.Shard(0, 2, 0), psworker.Shard(1, 2, 0), psworker.Shard(0, 2, 1))
        ]

    assert {type(message).__name__ for message, _ in read} == {
        f"{kind}Request" for kind in kinds
    }
    for message, data in read:
        assert data == message.SerializeToString()


class _Kept:
    """A message class for the generated handlers that keeps what it has read."""

    def __init__(self, message: Any, read: list[tuple[Any, bytes]]) -> None:
        self._message = message
        self._read = read

    def FromString(self, data: bytes) -> Any:  # noqa: N802 - protobuf's name.
        message = self._message.FromString(data)
        self._read.append((message, data))
        return message


CALLS: dict[str, Callable[[psworker.Client, dict[str, Array]], object]] = {
    "Initialize": lambda client, params: client.initialize(params),
    "Pull": lambda client, params: client.pull(),
    "Push": lambda client, params: client.push(make_gradients(params), step_read=0),
    "Exchange": lambda client, params: client.exchange(
        make_gradients(params), Snapshot(params, 0, "g")
    ),
    "LeaseShard": lambda client, params: next(client.lease_shards(2)),
    "Inspect": lambda client, params: client.variables(),
    "Status": lambda client, params: client.status(),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("end", [-1, 1], ids=["a byte is missing", "a tag is left"])
def test_a_reply_that_is_cut_off_is_a_clear_error(
    start_hand_made: StartHandMade, method: str, end: int, size: int
) -> None:
    """Not a wrong answer, and not an error of Python's; the next call is answered."""
    cut: list[str] = []

    def write(called: str, reply: Any) -> bytes:
        return plain(reply)[: end if called.removesuffix("Stream") in cut else None]

    server = start_hand_made(write)
    params = make_params(size)

    with psworker.connect(server.address, outage_s=0) as client:
        client.initialize(params)
        cut.append(method)
        with pytest.raises(ParameterServerError, match=r"deserializing response"):
            CALLS[method](client, params)
        cut.clear()

        assert_identical(client.pull().params, server.variables)


def test_an_answer_to_join_that_is_cut_off_is_a_clear_error(
    start_hand_made: StartHandMade,
) -> None:
    """Nobody is let in, and nothing is waited for."""
    server = start_hand_made(lambda method, reply: plain(reply)[:-1])

    with pytest.raises(ParameterServerError, match=r"deserializing response"):
        psworker.connect(server.address, outage_s=60)


@pytest.mark.parametrize("messages", [1, 2])
@pytest.mark.parametrize("method", ["Pull", "Exchange"])
def test_a_stream_that_ends_too_early_is_a_clear_error(
    start_hand_made: StartHandMade, method: str, messages: int
) -> None:
    """After the header, or in the midst of the body; how much is missing is said."""
    server = start_hand_made()
    params = make_params(SIZES["5 MB"])
    expected, got = len(to_body(params)), (messages - 1) * PIECE_NBYTES

    with psworker.connect(server.address, outage_s=0) as client:
        client.initialize(params)
        server.most_messages = messages
        with pytest.raises(
            VariableMismatchError, match=f"^body: expected {expected} bytes, got {got}$"
        ):
            CALLS[method](client, params)
        server.most_messages = None

        assert_identical(client.pull().params, server.variables)
