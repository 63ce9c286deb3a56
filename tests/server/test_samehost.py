"""The calls past gRPC: a real server, and workers' ends of its socket made by hand."""

import gc
import os
import re
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
from pswire import body, methods
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.encoding import Encoding
from pswire.errors import (
    InvalidRequestError,
    ParameterServerError,
    VariableMismatchError,
    from_bytes,
    from_status,
)
from pswire.layout import Layout
from pswire.pieces import Piece
from pswire.samehost import MAX_INLINE_NBYTES, Frame, FrameSocket, Kind
from pswire.sharedmemory import SharedMemory

Arrays = Mapping[str, npt.NDArray[Any]]
StartServer = Callable[..., psserver.Server]
Dial = Callable[[str], grpc.Channel]

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory without a name"
)

_TIMEOUT_S = 30.0
_SMALL: Arrays = {"w": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
_LARGE: Arrays = {
    "w": np.arange(20_001, dtype=np.float32),
    "n": np.arange(5, dtype=np.int32),
    "b": np.ones(3, np.float32),
}


def _body(arrays: Arrays) -> bytes:
    return bytes(body.join(Layout.of(arrays), arrays))


def _trainable(arrays: Arrays) -> Arrays:
    return {spec.name: arrays[spec.name] for spec in Layout.of(arrays).trainable}


_LARGE_GRADIENTS = _trainable(_LARGE)


class _Caller:
    """One session, its messages made by hand."""

    def __init__(self, channel: grpc.Channel, session: str = "s") -> None:
        self.stub = rpc.ParameterServerStub(channel)
        self.session = session
        self.joined = self.join(session)
        self.generation = self.joined.generation

    def join(self, session: str) -> pb.JoinReply:
        request = pb.JoinRequest(worker=f"worker {self.session}", session=session)
        return self.stub.Join(request, timeout=_TIMEOUT_S)

    def header(self, gradients: Arrays, **changes: Any) -> pb.PushHeader:
        settings: dict[str, Any] = {
            "session": self.session,
            "seq": 1,
            "generation": self.generation,
            "step_read": 0,
            "nbytes": Layout.of(gradients).nbytes,
            **changes,
        }
        return pb.PushHeader(**settings)

    def initial(self, variables: Arrays) -> pb.InitializeHeader:
        layout = Layout.of(variables).to_proto()
        return pb.InitializeHeader(session=self.session, layout=layout)


class _OverGrpc(_Caller):
    """A caller of the generated stubs."""

    def initialize(self, header: pb.InitializeHeader, data: bytes) -> Any:
        request = pb.InitializeRequest(header=header, data=data)
        return self._call(self.stub.Initialize, request)

    def pull(self, request: pb.PullRequest) -> tuple[Any, ...]:
        reply = self._call(self.stub.Pull, request)
        return reply.header, reply.data

    def push(self, header: pb.PushHeader, data: bytes) -> Any:
        return self._call(self.stub.Push, pb.PushRequest(header=header, data=data))

    def exchange(self, header: pb.PushHeader, data: bytes) -> tuple[Any, ...]:
        push = pb.PushRequest(header=header, data=data)
        reply = self._call(self.stub.Exchange, pb.ExchangeRequest(push=push))
        return reply.push, reply.pull.header, reply.pull.data

    def counts(self) -> Any:
        return self._call(self.stub.Status, pb.StatusRequest()).counts

    def _call(self, call: Callable[..., Any], request: Any) -> Any:
        with from_status():
            return call(request, timeout=_TIMEOUT_S)


class _Near(_Caller):
    """A caller past gRPC: large bodies lie in memory that it lends the server.

    `memories` holds what it has attached; number 1 is for what it sends, 2 for what it
    gets, and both are there from the first large body on.
    """

    def __init__(self, channel: grpc.Channel, session: str = "s") -> None:
        super().__init__(channel, session)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_TIMEOUT_S)
        self.socket.connect(self.joined.same_host)
        self.frames = FrameSocket(self.socket)
        self.greeting = self.frames.receive()
        self.memories: dict[int, SharedMemory] = {}
        self._layout = Layout(())  # Of the last snapshot that came with one.

    def close(self) -> None:
        self.socket.close()

    def attach(self, number: int, nbytes: int) -> SharedMemory:
        self.memories[number], descriptor = SharedMemory.create(nbytes)
        self.attach_descriptor(number, descriptor)
        return self.memories[number]

    def attach_descriptor(self, number: int, *descriptors: int) -> None:
        """Send descriptors, which are then the server's alone."""
        # The server may have refused them, and closed, before `send` is through.
        with suppress(BrokenPipeError):
            self.frames.send(Frame(Kind.ATTACH, upload=number, descriptors=descriptors))
        for descriptor in descriptors:
            os.close(descriptor)

    def call(self, request: Frame) -> Frame:
        """Raise the error that the answer is, if it is one."""
        self.frames.send(request)
        answer = self.frames.receive()
        assert answer is not None
        if answer.kind == Kind.ERROR:
            raise from_bytes(answer.message)
        assert answer.kind == Kind.ANSWER
        return answer

    def is_closed(self) -> bool:
        """Wait until the server closes; an answer means that it does not."""
        try:
            return self.frames.receive() is None
        except ConnectionResetError:  # It had not read all.
            return True

    def is_let_go(self, others: int = 0) -> bool:
        """Wait until the server has closed its end, and only holds those of others."""
        return _comes_true(lambda: _peers(self.joined.same_host) == others)

    def initialize(self, header: pb.InitializeHeader, data: bytes) -> Any:
        answer = self.call(
            self._request(Kind.INITIALIZE, methods.INITIALIZE, header, data)
        )
        return methods.INITIALIZE.reply.decode(answer.message)

    def pull(self, request: pb.PullRequest) -> tuple[Any, ...]:
        message = methods.PULL.request.encode(request)
        answer = self.call(Frame(Kind.PULL, message, download=2))
        return self._pulled(methods.PULL.reply.decode(answer.message), answer)

    def push(self, header: pb.PushHeader, data: bytes) -> Any:
        answer = self.call(self.push_frame(header, data))
        return methods.PUSH.reply.decode(answer.message)

    def exchange(self, header: pb.PushHeader, data: bytes) -> tuple[Any, ...]:
        answer = self.call(self._request(Kind.EXCHANGE, methods.EXCHANGE, header, data))
        reply = methods.EXCHANGE.reply.decode(answer.message)
        return reply.push, *self._pulled(reply.pull, answer)

    def counts(self) -> Any:
        answer = self.call(Frame(Kind.STATUS))
        return methods.STATUS.reply.decode(answer.message).counts

    def push_frame(self, header: pb.PushHeader, data: bytes) -> Frame:
        return self._request(Kind.PUSH, methods.PUSH, header, data)

    def _request(self, kind: Kind, method: Any, header: Any, data: bytes) -> Frame:
        if len(data) <= MAX_INLINE_NBYTES:
            message = method.request.encode(Piece(header, 0, data))
            return Frame(kind, message, download=2)
        if not self.memories:
            for number in (1, 2):
                self.attach(number, len(data) + 100)
        self.memories[1].view()[: len(data)] = np.frombuffer(data, np.uint8)
        message = method.request.encode(Piece(header))
        return Frame(kind, message, upload=1, download=2, body_nbytes=len(data))

    def _pulled(self, piece: Any, answer: Frame) -> tuple[Any, bytes]:
        if not answer.download:
            return piece.header, bytes(piece.data)
        assert (answer.download, len(piece.data)) == (2, 0)
        if piece.header.HasField("layout"):
            self._layout = Layout.from_proto(piece.header.layout)
        encoding = Encoding.from_proto(piece.header.wire_dtype)
        size = encoding.layout(self._layout).nbytes
        return piece.header, self.memories[2].view()[:size].tobytes()


@pytest.fixture
def near(dial: Dial) -> Iterator[Callable[..., _Near]]:
    """Open ends of a server's socket, which close with the test."""
    with ExitStack() as stack:

        def open_end(server: psserver.Server, session: str = "s") -> _Near:
            end = _Near(dial(server.address), session)
            stack.callback(end.close)
            return end

        yield open_end


Near = Callable[..., _Near]


class _Hold:
    """Stops the next update until it is let go."""

    def __init__(self, hook: Any) -> None:
        self.inside = threading.Event()
        self._leave = threading.Event()
        hook.run = self._wait

    def _wait(self) -> None:
        self.inside.set()
        assert self._leave.wait(_TIMEOUT_S)

    def __enter__(self) -> "_Hold":
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.set()


def _started(caller: _Near, variables: Arrays = _SMALL) -> _Near:
    reply = caller.initialize(caller.initial(variables), _body(variables))
    assert reply.initialized
    return caller


def _peers(path: str) -> int:
    """Count a server's ends of connections, beside the socket that listens."""
    return Path("/proc/net/unix").read_text().count(path) - 1


def _comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _mapped() -> int:
    """Count the shared memories of both sides, which are one process here."""
    return Path("/proc/self/maps").read_text().count("memfd:asyncps")


def _open() -> int:
    return len(os.listdir("/proc/self/fd"))


# The socket


def test_only_this_user_can_reach_the_socket(
    start_server: StartServer, near: Near
) -> None:
    """Neither enter the directory nor open the socket."""
    path = Path(near(start_server()).joined.same_host)

    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)]

    assert modes == [0o700, 0o600]
    assert path.is_socket()
    assert path.parent.stat().st_uid == os.getuid()


def test_the_server_greets_with_its_incarnation(
    start_server: StartServer, near: Near
) -> None:
    """Whoever finds another server behind the path learns it before all else."""
    one, other = (near(start_server()) for _ in range(2))

    for each in (one, other):
        incarnation = each.joined.incarnation.encode()
        assert each.greeting == Frame(Kind.ANSWER, incarnation, descriptors=[])
    assert one.greeting != other.greeting


def test_a_stopped_server_leaves_no_socket(
    start_server: StartServer, near: Near
) -> None:
    """Nor its directory; who was connected and idle does not delay it."""
    server = start_server()
    worker = near(server)
    home = Path(worker.joined.same_host).parent

    server.stop()

    assert not home.exists()
    assert worker.is_closed()


def test_a_server_may_do_without(start_server: StartServer, dial: Dial) -> None:
    """A worker is then told of no socket, and none is there."""
    threads = {thread.name for thread in threading.enumerate()}
    server = start_server(same_host=False)

    caller = _OverGrpc(dial(server.address))

    assert caller.joined.same_host == ""
    now = {thread.name for thread in threading.enumerate()}
    assert not [name for name in now - threads if name.startswith("samehost")]
    assert caller.initialize(caller.initial(_SMALL), _body(_SMALL)).initialized


# The same calls as over gRPC


def _story(caller: _OverGrpc | _Near, variables: Arrays) -> list[Any]:
    """Call everything, for better and for worse; return all answers."""
    told: list[Any] = []
    joined = caller.joined

    def without_ids(part: Any) -> Any:
        text = repr(part)
        for one, name in ((joined.generation, "G"), (joined.incarnation, "I")):
            text = text.replace(one, name)
        return re.sub(r"served_at: \S+", "served_at: now", text)

    def tell(call: Callable[[], Any]) -> None:
        try:
            answer = call()
        except ParameterServerError as error:
            answer = (type(error).__name__, str(error))
        parts = answer if isinstance(answer, tuple) else (answer,)
        told.append([p if isinstance(p, bytes) else without_ids(p) for p in parts])

    gradients = _trainable(variables)
    data, first = _body(gradients), _body(variables)
    poisons = [bytearray(data) for _ in range(2)]
    for poison, value in zip(poisons, (np.nan, np.inf), strict=True):
        poison[4:8] = np.float32(value).tobytes()
    dirty = bytearray(data)
    dirty[-13] = 1  # Between the two arrays.
    other = Layout.of({**gradients, "b": np.ones(4, np.float32)})
    # The first element and the last, which are 0.5 and -2; in turn, refused.
    size = gradients["w"].size
    elements = bytes(56) + struct.pack("<2f", 0.5, -2)
    rising = struct.pack("<2I", 0, size - 1) + elements
    falling = struct.pack("<2I", size - 1, 0) + elements
    read = pb.PullRequest(session="s")
    start = caller.initial(variables)

    def push(body_: bytes = data, **changes: Any) -> Any:
        return caller.push(caller.header(gradients, **changes), bytes(body_))

    def swap(body_: bytes = data, **changes: Any) -> Any:
        return caller.exchange(caller.header(gradients, **changes), bytes(body_))

    tell(lambda: caller.pull(read))
    tell(push)
    tell(swap)
    tell(lambda: caller.initialize(start, first[:-4]))
    tell(lambda: caller.initialize(pb.InitializeHeader(session="t"), first))
    tell(lambda: caller.initialize(pb.InitializeHeader(session="s"), first))
    tell(lambda: caller.initialize(start, bytes(poisons[0]) + first[len(data) :]))
    tell(lambda: caller.initialize(start, first))
    tell(lambda: caller.initialize(start, first))
    tell(lambda: caller.pull(read))
    tell(lambda: caller.pull(pb.PullRequest()))
    tell(lambda: caller.pull(pb.PullRequest(session="t")))
    known: dict[str, Any] = {"generation": joined.generation, "session": "s"}
    tell(lambda: caller.pull(pb.PullRequest(step=0, **known)))
    tell(push)
    tell(push)
    tell(lambda: caller.pull(pb.PullRequest(step=0, **known)))
    tell(lambda: swap(seq=2))
    tell(lambda: swap(seq=2))
    tell(lambda: swap(seq=3))
    tell(lambda: push(seq=4))
    tell(lambda: push(seq=4))
    tell(lambda: push(seq=3, step_read=2))
    for bad in (
        {"session": "t"},
        {"generation": "h"},
        {"step_read": 3},
        {"step_read": -1},
        {"nbytes": 4},
        {"layout": other.to_proto(), "nbytes": other.nbytes},
        {"body_": data[:-4]},
        {"body_": data + bytes(4)},
        {"body_": bytes(poisons[0])},
        {"body_": bytes(poisons[1])},
        {"body_": dirty},
        {"wire_dtype": 99},
        {"wire_dtype": pb.BFLOAT16},
        {"snapshot_wire_dtype": pb.FLOAT64},
        {"counts": [1]},
        {"counts": [size + 1, 3]},
        {"counts": [2, 0], "nbytes": 72, "body_": falling},
        {"counts": [2, 0], "nbytes": 72, "body_": rising[:-1]},
        {"counts": [2, 0], "nbytes": 72, "body_": rising[:12] + rising[:4] * 15},
    ):
        changes: dict[str, Any] = {"seq": 5, "step_read": 2, **bad}
        tell(partial(push, **changes))
        tell(partial(swap, **changes))
    tell(lambda: swap(seq=5, step_read=2))
    narrow = {"seq": 6, "step_read": 2, "snapshot_wire_dtype": pb.BFLOAT16}
    tell(lambda: swap(rising, counts=[2, 0], nbytes=72, **narrow))
    for number in (pb.BFLOAT16, pb.FLOAT16):
        request = pb.PullRequest(session="s", wire_dtype=number)
        tell(partial(caller.pull, request))
    tell(lambda: caller.pull(read))
    caller.join("newer")
    tell(push)
    tell(swap)
    tell(lambda: caller.pull(read))
    tell(caller.counts)
    return told


@pytest.mark.parametrize("variables", [_SMALL, _LARGE], ids=["inline", "memory"])
def test_every_call_means_the_same_as_over_grpc(
    variables: Arrays, start_server: StartServer, near: Near, dial: Dial
) -> None:
    """Verdicts, bodies, errors and their texts, counts: a whole session's life."""
    servers = [start_server(max_staleness=1) for _ in range(2)]

    past = _story(near(servers[0]), variables)
    over = _story(_OverGrpc(dial(servers[1].address)), variables)

    assert past == over
    kinds = {answer[0] for answer in past if str(answer[0]).endswith("Error'")}
    assert kinds == {
        "'GenerationError'",
        "'InvalidRequestError'",
        "'NonFiniteError'",
        "'NotInitializedError'",
        "'SequenceError'",
        "'SessionSupersededError'",
        "'SessionUnknownError'",
        "'StepReadError'",
        "'VariableMismatchError'",
    }


@pytest.mark.parametrize(
    ("size", "download"), [(MAX_INLINE_NBYTES // 4, 0), (MAX_INLINE_NBYTES // 4 + 1, 2)]
)
def test_a_body_over_32_kib_comes_in_memory(
    size: int, download: int, start_server: StartServer, near: Near
) -> None:
    """The answer says where it is; what lies beyond in the memory stays."""
    variables: Arrays = {"w": np.arange(size, dtype=np.float32)}
    worker = near(start_server())
    memory = worker.attach(2, 4 * size + 8)
    worker.attach(1, 4 * size)
    memory.view()[:] = 7
    _started(worker, variables)

    message = methods.PULL.request.encode(pb.PullRequest())
    answer = worker.call(Frame(Kind.PULL, message, download=2))

    piece = methods.PULL.reply.decode(answer.message)
    brought = memory.view()[: 4 * size] if download else piece.data
    assert answer.download == download
    assert bytes(brought) == _body(variables)
    assert memory.view()[4 * size :].tolist() == [7] * 8


def test_each_worker_has_its_own_memories(
    start_server: StartServer, near: Near
) -> None:
    """Two of them give the same numbers to different ones."""
    server = start_server()
    one, other = (near(server, session) for session in "st")
    _started(one, _LARGE)
    gradients = _LARGE_GRADIENTS
    doubled = {name: 2 * array for name, array in gradients.items()}

    for worker, pushed in ((one, gradients), (other, doubled)):
        worker.push(worker.header(pushed), _body(pushed))

    # 1 - 1 - 2 times each.
    changed = {**_LARGE, **{name: 0 - 2 * a for name, a in gradients.items()}}
    for worker in (one, other):
        assert worker.pull(pb.PullRequest())[1] == _body(changed)


# Whose memory it is


def test_what_a_worker_does_to_its_memory_later_does_not_reach_the_variables(
    start_server: StartServer, near: Near
) -> None:
    """The first variables stay on the server, and the memory is the worker's."""
    worker = _started(near(start_server()), _LARGE)

    worker.memories[1].view()[:] = 255

    assert worker.pull(pb.PullRequest())[1] == _body(_LARGE)


def test_a_rule_that_keeps_the_gradients_keeps_its_own(
    start_server: StartServer, near: Near
) -> None:
    """A worker writes the next ones into the same memory."""
    server = start_server(optax.optimistic_gradient_descent(1.0))
    worker = _started(near(server), _LARGE)
    zeros = {name: np.zeros_like(array) for name, array in _LARGE_GRADIENTS.items()}

    worker.push(worker.header(_LARGE_GRADIENTS), _body(_LARGE_GRADIENTS))
    worker.push(worker.header(zeros, seq=2), _body(zeros))

    # The first gradients as they are, then 2 * zero less the first ones.
    changed = {**_LARGE, **{name: 0 + a for name, a in _LARGE_GRADIENTS.items()}}
    assert worker.pull(pb.PullRequest())[1] == _body(changed)


def test_a_detached_memory_is_let_go_at_once(
    start_server: StartServer, near: Near
) -> None:
    """And is not there any more for a call; one never attached may be detached."""
    worker = _started(near(start_server()), _LARGE)
    mapped = _mapped()

    for number in (1, 77):
        worker.frames.send(Frame(Kind.DETACH, upload=number))
    worker.counts()

    assert _mapped() == mapped - 1
    gradients = _LARGE_GRADIENTS
    with pytest.raises(InvalidRequestError, match=r"^memory: expected one that has"):
        worker.push(worker.header(gradients), _body(gradients))


def test_a_worker_that_goes_is_let_go(start_server: StartServer, near: Near) -> None:
    """After sound calls and others."""
    worker = near(start_server())
    _started(worker, _LARGE)
    gradients = _LARGE_GRADIENTS
    worker.pull(pb.PullRequest())
    worker.exchange(worker.header(gradients), _body(gradients))
    with pytest.raises(VariableMismatchError, match=r"^body: expected "):
        worker.push(worker.header(gradients, seq=2), _body(gradients)[:-4])
    poison = {name: np.full_like(array, np.nan) for name, array in gradients.items()}
    with pytest.raises(ParameterServerError, match=r"^w: expected finite gradients"):
        worker.push(worker.header(poison, seq=3), _body(poison))

    worker.close()
    assert worker.is_let_go()


def _exchange_into(worker: _Near, download: int) -> None:
    frame = worker.push_frame(worker.header(_LARGE_GRADIENTS), _body(_LARGE_GRADIENTS))
    message = methods.EXCHANGE.request.encode(
        methods.PUSH.request.decode(frame.message)
    )
    worker.call(Frame(Kind.EXCHANGE, message, 1, download, frame.body_nbytes))


def _pull_into(worker: _Near, download: int) -> None:
    message = methods.PULL.request.encode(pb.PullRequest())
    worker.call(Frame(Kind.PULL, message, download=download))


@pytest.mark.parametrize("call", [_pull_into, _exchange_into])
@pytest.mark.parametrize(
    ("download", "text"),
    [
        (0, "memory: expected one that has been attached, got number 0"),
        (5, "memory: expected one that has been attached, got number 5"),
        (3, "download: expected memory of at least 80140 bytes, got 80139"),
    ],
    ids=["none", "unknown", "small"],
)
def test_a_snapshot_that_has_no_room_is_refused(
    call: Callable[[_Near, int], None],
    download: int,
    text: str,
    start_server: StartServer,
    near: Near,
) -> None:
    """An exchange is so before it is applied, and can be made again with room."""
    server = start_server()
    worker = _started(near(server), _LARGE)
    worker.attach(3, Layout.of(_LARGE).nbytes - 1)

    with pytest.raises(InvalidRequestError, match=rf"^{text}$"):
        call(worker, download)

    assert server.status().step == 0
    call(worker, 2)
    assert server.status().step == (call is _exchange_into)


def test_a_body_that_is_not_where_it_should_be_is_refused(
    start_server: StartServer, near: Near
) -> None:
    """In no memory, or in one that is smaller than is said of it."""
    server = start_server()
    worker = _started(near(server), _LARGE)
    frame = worker.push_frame(worker.header(_LARGE_GRADIENTS), _body(_LARGE_GRADIENTS))
    worker.attach(3, 4096)

    with pytest.raises(InvalidRequestError, match=r"^memory: .*, got number 9$"):
        worker.call(Frame(frame.kind, frame.message, 9, 0, frame.body_nbytes))
    with pytest.raises(
        VariableMismatchError, match=r"^body: expected 80076 bytes, got 4096$"
    ):
        worker.call(Frame(frame.kind, frame.message, 3, 0, 2**64 - 1))

    assert server.status().step == 0
    assert worker.call(frame).kind == Kind.ANSWER
    assert server.status().step == 1


def _unsealed() -> list[int]:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    return [descriptor]


def _empty() -> list[int]:
    _, descriptor = SharedMemory.create(4096)
    os.close(descriptor)
    return [os.open(os.devnull, os.O_RDWR)]


def _file() -> list[int]:
    return [os.open(__file__, os.O_RDONLY)]


def _pipe() -> list[int]:
    read, write = os.pipe()
    os.close(write)
    return [read]


@pytest.mark.parametrize("make", [list, _unsealed, _empty, _file, _pipe])
def test_what_is_no_memory_of_a_fixed_size_ends_the_connection(
    make: Callable[[], list[int]], start_server: StartServer, near: Near
) -> None:
    """Its maker could shrink it under the server; the others are served on."""
    server = start_server()
    worker, other = (near(server, session) for session in "st")
    descriptors = _open()

    worker.attach_descriptor(1, *make())

    assert worker.is_closed()
    assert worker.is_let_go(others=1)
    assert _open() == descriptors - 1  # The connection's.
    assert _started(other).counts().rejected == {}


def test_a_worker_may_attach_eight_memories(
    start_server: StartServer, near: Near
) -> None:
    """One more ends its connection alone."""
    server = start_server()
    worker, other = (near(server, session) for session in "st")
    mapped = _mapped()
    for number in range(1, 9):
        worker.attach(number, 4096)
    worker.counts()
    attached = _mapped() - mapped

    worker.attach(9, 4096)

    assert worker.is_closed()
    assert worker.is_let_go(others=1)
    assert attached == 16  # By both sides.
    assert _started(other).counts().rejected == {}


# What is no request


@pytest.mark.parametrize(
    ("kind", "rejected"),
    [
        (Kind.INITIALIZE, {}),
        (Kind.PULL, {}),
        (Kind.STATUS, {}),
        (Kind.PUSH, {"INVALID_REQUEST": 1}),
        (Kind.EXCHANGE, {"INVALID_REQUEST": 1}),
    ],
)
def test_bytes_that_are_no_message_are_the_callers_error(
    kind: Kind,
    rejected: dict[str, int],
    start_server: StartServer,
    near: Near,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Counted if it was a push, not logged as a bug, and the connection goes on."""
    worker = _started(near(start_server()))

    with pytest.raises(
        InvalidRequestError, match=r"^request: expected a message of ps\.v1, "
    ):
        worker.call(Frame(kind, b"\xff\xff\xff"))

    assert worker.counts().rejected == rejected
    assert worker.push(worker.header(_SMALL), _body(_SMALL)).applied
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


@pytest.mark.parametrize("kind", [Kind.PUSH, Kind.EXCHANGE])
def test_a_push_without_a_header_is_refused_and_counted(
    kind: Kind, start_server: StartServer, near: Near
) -> None:
    """Nothing at all is a message too, of no fields."""
    worker = _started(near(start_server()))

    with pytest.raises(InvalidRequestError, match=r"^header: expected in the first"):
        worker.call(Frame(kind))

    assert worker.counts().rejected == {"INVALID_REQUEST": 1}


@pytest.mark.parametrize("kind", [0, 1, 10, 2**32 - 1])
def test_an_unknown_kind_is_refused(
    kind: int, start_server: StartServer, near: Near
) -> None:
    """An answer is no request either; the connection goes on."""
    worker = _started(near(start_server()))

    with pytest.raises(
        InvalidRequestError, match=rf"^kind: expected one of ANSWER, .*, got {kind}$"
    ):
        worker.call(Frame(kind, b"?"))

    assert worker.push(worker.header(_SMALL), _body(_SMALL)).applied


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", bytes(23), b"\x05" + bytes(23), b"\xff" * 24],
    ids=["none", "one", "header", "message", "huge"],
)
def test_a_frame_that_breaks_off_ends_its_connection_alone(
    data: bytes, start_server: StartServer, near: Near
) -> None:
    """Too short to be one, or longer than any may be."""
    server = start_server()
    worker, other = (near(server, session) for session in "st")
    _started(other)

    worker.socket.sendall(data)
    worker.socket.shutdown(socket.SHUT_WR)

    assert worker.is_closed()
    assert worker.is_let_go(others=1)
    assert other.push(other.header(_SMALL), _body(_SMALL)).applied


def test_a_frame_may_come_byte_by_byte(start_server: StartServer, near: Near) -> None:
    """While the rest is awaited others are served; then it is answered."""
    server = start_server()
    worker, other = (near(server, session) for session in "st")
    _started(other)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        FrameSocket(ours).send(worker.push_frame(worker.header(_SMALL), _body(_SMALL)))
        data = theirs.recv(4096)

    for at in range(len(data) - 1):
        worker.socket.sendall(data[at : at + 1])
    verdict = other.push(other.header(_SMALL), _body(_SMALL))
    worker.socket.sendall(data[-1:])
    answer = worker.frames.receive()

    assert (verdict.applied, verdict.step) == (True, 1)
    assert answer is not None
    assert methods.PUSH.reply.decode(answer.message).step == 2


# Workers who vanish, servers that stop


@pytest.mark.parametrize("variables", [_SMALL, _LARGE], ids=["inline", "memory"])
def test_a_push_of_a_worker_that_has_gone_is_not_applied(
    variables: Arrays, start_server: StartServer, near: Near, hook: Any
) -> None:
    """It went while another's push was being applied; its own is counted."""
    server = start_server(hook.rule)
    worker, gone = (near(server, session) for session in "st")
    _started(worker, variables)
    gradients = _trainable(variables)
    frames = [
        each.push_frame(each.header(gradients), _body(gradients))
        for each in (worker, gone)
    ]

    with _Hold(hook) as hold:
        worker.frames.send(frames[0])
        assert hold.inside.wait(_TIMEOUT_S)
        gone.frames.send(frames[1])
        gone.close()
    assert gone.is_let_go(others=1)

    answer = worker.frames.receive()
    assert answer is not None
    assert methods.PUSH.reply.decode(answer.message).applied
    counts = server.status().counts
    assert (counts.applied, counts.rejected) == (1, {"CALL_CANCELLED": 1})
    assert server.status().step == 1


def test_a_worker_that_goes_while_its_push_is_applied_can_ask_again(
    start_server: StartServer, near: Near, hook: Any
) -> None:
    """It is applied once: the retry, on another connection, is a duplicate."""
    server = start_server(hook.rule)
    worker = _started(near(server))
    push = worker.push_frame(worker.header(_SMALL), _body(_SMALL))

    with _Hold(hook) as hold:
        worker.frames.send(push)
        assert hold.inside.wait(_TIMEOUT_S)
        worker.close()
    assert worker.is_let_go()
    again = near(server)
    verdict = again.push(again.header(_SMALL), _body(_SMALL))

    assert verdict == pb.PushReply(applied=True, step=1, duplicate=True)
    assert server.status().step == 1


def test_a_worker_that_takes_no_answers_keeps_nobody_waiting(
    start_server: StartServer, near: Near
) -> None:
    """Its answers fill the socket, until the server can send no more of them."""
    variables = {"w": np.zeros(MAX_INLINE_NBYTES // 4, np.float32)}
    server = start_server()
    worker, other = (near(server, session) for session in "st")
    _started(worker, variables)
    pull = Frame(Kind.PULL, methods.PULL.request.encode(pb.PullRequest()))

    for _ in range(50):
        worker.frames.send(pull)
    counts = other.counts()
    answers = [worker.frames.receive() for _ in range(50)]

    assert counts.rejected == {}
    assert all(answer and answer.kind == Kind.ANSWER for answer in answers)


def test_a_pull_does_not_wait_for_a_push(
    start_server: StartServer, near: Near, hook: Any
) -> None:
    """The snapshot of the step before it is the newest until it is applied."""
    server = start_server(hook.rule)
    worker, other = (near(server, session) for session in "st")
    _started(worker)

    with _Hold(hook) as hold:
        worker.frames.send(worker.push_frame(worker.header(_SMALL), _body(_SMALL)))
        assert hold.inside.wait(_TIMEOUT_S)
        header, _ = other.pull(pb.PullRequest())

    assert header.step == 0
    assert worker.frames.receive() is not None


@pytest.mark.parametrize("variables", [_SMALL, _LARGE], ids=["inline", "memory"])
def test_a_server_that_stops_answers_the_push_in_flight(
    variables: Arrays, start_server: StartServer, near: Near, hook: Any
) -> None:
    """Whoever is idle is let go at once; nothing is taken after that answer."""
    server = start_server(hook.rule)
    worker, idle = (near(server, session) for session in "st")
    _started(worker, variables)
    gradients = _trainable(variables)
    push = worker.push_frame(worker.header(gradients), _body(gradients))

    with ThreadPoolExecutor(1) as pool, _Hold(hook) as hold:
        worker.frames.send(push)
        assert hold.inside.wait(_TIMEOUT_S)
        stopping = pool.submit(server.stop, _TIMEOUT_S)
        idle_closed = idle.is_closed()
        waited = not stopping.done()
        hold.__exit__()
        answer = worker.frames.receive()
        stopping.result(_TIMEOUT_S)

    assert idle_closed
    assert waited
    assert answer is not None
    assert methods.PUSH.reply.decode(answer.message) == pb.PushReply(
        applied=True, step=1
    )
    assert worker.is_closed()
    assert server.status().counts.applied == 1


def test_the_memory_of_a_worker_that_goes_is_let_go_at_once(
    start_server: StartServer, near: Callable[..., _Near]
) -> None:
    """It may be gigabytes, which cannot wait for the collector of cycles."""
    worker = _started(near(start_server()), _LARGE)
    gc.collect()
    gc.disable()
    try:
        before = _mapped()
        worker.close()

        assert _comes_true(lambda: _mapped() < before)
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [Kind.PUSH, Kind.EXCHANGE])
def test_a_push_whose_memory_or_message_is_amiss_is_counted(
    start_server: StartServer, near: Callable[..., _Near], kind: Kind
) -> None:
    """As one that came over gRPC is."""
    worker = _started(near(start_server()), _LARGE)

    for message, upload in ((b"\xff\xff", 1), (b"", 9)):
        worker.frames.send(Frame(kind, message, upload, 2, body_nbytes=10))
        worker.frames.receive()

    assert worker.counts().rejected == {"INVALID_REQUEST": 2}
