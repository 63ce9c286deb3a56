"""Processes that stand still for a while, in the midst of what they do."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest

import psworker
from kit.audit import Calls, require_sound, work, zeros
from kit.processes import Process, Served

InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Size = Callable[[int, int], int]
StartProcess = Callable[..., Process]
Serve = Callable[..., Served]

WORKERS = 4
TIMEOUT_S = 0.3  # Shorter than a stall.
ELEMENTS = 2**20  # Of A and of B: a reply has 8 MiB.
NBYTES = 8 * ELEMENTS
UP = {name: np.full(ELEMENTS, -1.0, np.float32) for name in "AB"}

# Joins, pulls and pushes by hand. It stops half-way through a call, says "half", and
# goes on once it is told to; then it says what the answer was.
HALF = """
import sys
import grpc
import numpy as np
from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.layout import Layout

def wait():
    print("half", flush=True)
    sys.stdin.readline()

way, address, size = sys.argv[1], sys.argv[2], ("grpc.max_receive_message_length", -1)
stub = rpc.ParameterServerStub(grpc.insecure_channel(address, (size,)))
joined = stub.Join(pb.JoinRequest(worker=way, session=way))
layout = Layout.from_proto(joined.layout)
if way == "push":
    data = np.full(layout.nbytes // 4, -1.0, np.float32).tobytes()
    half = len(data) // 2

    def pieces():
        header = pb.PushHeader(
            session=way,
            seq=1,
            generation=joined.generation,
            step_read=joined.step,
            nbytes=len(data),
        )
        yield pb.PushRequest(header=header, data=data[:half])
        wait()
        yield pb.PushRequest(offset=half, data=data[half:])

    reply = stub.PushStream(pieces())
    print(reply.applied, reply.staleness, reply.step)
else:
    replies = [stub.PullStream(pb.PullRequest(session=way)) for _ in range(4)]
    firsts = [next(each) for each in replies]
    wait()
    for first, rest in zip(firsts, replies):
        data = first.data + b"".join(piece.data for piece in rest)
        values = np.frombuffer(data, np.float32)
        print(first.header.step, len(data), sorted({*values.tolist()}))
"""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start `psserver serve` with plain SGD; it ends with the test."""
    with ExitStack() as stack:

        def start(*options: str) -> Served:
            server = Served(
                *("--rule", "sgd", "-a", "learning_rate=1.0", "--port", "0"),
                *("--http-port", "off", *options),
            )
            return stack.enter_context(server)

        yield start


def push(client: psworker.Client, times: int) -> None:
    """Make steps."""
    snapshot = client.pull()
    for _ in range(times):
        verdict, snapshot = client.exchange(UP, snapshot)
        assert verdict.applied


def test_a_worker_that_stands_still_in_the_midst_of_a_call_holds_nobody_up(
    serve: Serve, start_process: StartProcess
) -> None:
    """Its push is then judged by the rule, and its pulls are of the step they were."""
    server = serve("--max-staleness", "2")
    with psworker.connect(server.address()) as other:
        other.initialize(zeros(ELEMENTS))
        push(other, 12)
        pusher = start_process("-c", HALF, "push", server.address())
        assert pusher.line() == "half"
        puller = start_process("-c", HALF, "pull", server.address())
        assert puller.line() == "half"
        before = server.resident_nbytes()

        for process in (pusher, puller):
            process.pause()
        push(other, 20)
        grown = server.resident_nbytes() - before
        for process in (pusher, puller):
            process.go_on()
            process.tell()

        assert grown < 6 * NBYTES
        assert pusher.line() == "False 20 32"
        for _ in range(4):
            assert puller.line() == f"12 {NBYTES} [12.0]"
        assert pusher.wait() == puller.wait() == 0
        assert other.status().step == 32


@pytest.mark.soak
def test_a_server_that_stands_still_is_the_same_afterwards(
    serve: Serve, in_parallel: InParallel, size: Size
) -> None:
    """Deadlines run out meanwhile; what was under way is applied once."""
    server = serve("--max-staleness", "off")
    calls, told = Calls(), threading.Event()

    def exchange(index: int) -> None:
        settings: dict[str, Any] = {
            "timeout_s": TIMEOUT_S,
            "same_host": bool(index % 2),
        }
        with psworker.connect(server.address(), **settings) as client:
            work(client, index, WORKERS, told, calls.note)

    def each_has_pushed() -> None:
        """Wait until each worker has, from now on."""
        first = len(calls.noted)
        assert calls.wait(
            lambda: len({call.worker for call in calls.noted[first:]}) == WORKERS
        )

    def stall() -> None:
        try:
            for _ in range(size(2, 10)):
                each_has_pushed()
                server.pause()
                told.wait(size(1, 3))
                server.go_on()
            each_has_pushed()
        finally:
            server.go_on()
            told.set()

    with psworker.connect(server.address()) as client:
        client.initialize(zeros(WORKERS))
        in_parallel([stall, *(partial(exchange, i) for i in range(WORKERS))])
        require_sound(calls.noted, client.pull())
    assert any(call.returned - call.sent > TIMEOUT_S * 1e9 for call in calls.noted)
