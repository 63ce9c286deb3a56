"""More at once than there is room for, and callers that stand still."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import psserver
import psworker
from kit.processes import Served
from psserver import patience
from psserver.budget import Budget
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import OverloadedError
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]

TIMEOUT_S = 30.0
NBYTES = 4 * 2**20
WORKERS = 32
PARAMS = {"w": np.zeros(NBYTES // 4, np.float32)}
ONES = {"w": np.ones(NBYTES // 4, np.float32)}


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Make a clock."""
    return Clock()


def test_who_finds_no_room_is_told_when_to_come_again(clock: Clock) -> None:
    """And nothing is taken from who has some."""
    budget = Budget(10)

    with budget.room("a", 6, clock), budget.room("b", 4, clock):
        assert budget.taken == 10
        with pytest.raises(OverloadedError, match="expected room for 6 bytes") as full:
            budget.room("c", 6, clock).__enter__()

    assert budget.taken == 0
    assert 0 < full.value.retry_s <= 1


def test_whoever_was_turned_away_is_next(clock: Clock) -> None:
    """Who comes often does not come sooner."""
    budget = Budget(10)
    with budget.room("greedy", 6, clock), pytest.raises(OverloadedError):
        budget.room("modest", 6, clock).__enter__()

    with pytest.raises(OverloadedError, match="1 waiting"):
        budget.room("greedy", 6, clock).__enter__()
    with budget.room("modest", 6, clock):
        assert budget.taken == 6
    with budget.room("greedy", 6, clock):
        assert budget.taken == 6


def test_who_does_not_come_back_loses_its_turn(clock: Clock) -> None:
    """Its place is no room that is lost for ever."""
    budget = Budget(10)
    with budget.room("a", 6, clock), pytest.raises(OverloadedError):
        budget.room("gone", 6, clock).__enter__()

    clock.now = 4.0

    with budget.room("b", 6, clock):
        assert budget.taken == 6


def test_what_is_small_waits_for_nobody_large(clock: Clock) -> None:
    """If there is room for it."""
    budget = Budget(1000)
    with budget.room("a", 600, clock), pytest.raises(OverloadedError):
        budget.room("b", 600, clock).__enter__()

    with budget.room("c", 10, clock):
        assert budget.taken == 10


def test_what_is_larger_than_all_room_goes_alone(clock: Clock) -> None:
    """Else a model of that size could not be trained."""
    budget = Budget(10)

    with budget.room("a", 20, clock), pytest.raises(OverloadedError):
        budget.room("b", 1, clock).__enter__()

    with budget.room("b", 1, clock), pytest.raises(OverloadedError):
        budget.room("a", 20, clock).__enter__()


def push_thrice(client: psworker.Client, snapshot: Any) -> list[Verdict]:
    """Push large gradients, one after another."""
    return [client.push(ONES, snapshot) for _ in range(3)]


def test_many_large_pushes_at_once_all_succeed_in_little_memory() -> None:
    """Some are asked to come again; none comes off much worse than the others."""
    budget = 2 * NBYTES
    options = ("--rule", "sgd", "-a", "learning_rate=1", "--max-staleness", "off")
    room = ("--max-inflight-bytes", str(budget), "--port", "0", "--http-port", "off")
    with Served(*options, *room) as server, ThreadPoolExecutor(WORKERS) as pool:
        address = server.address()
        clients = [
            psworker.connect(address, name=f"worker {i}", same_host=False)
            for i in range(WORKERS)
        ]
        clients[0].initialize(PARAMS)
        snapshot = clients[0].pull_body()
        clients[0].push(ONES, snapshot)
        before = server.resident_nbytes()
        highest, is_over = [before], threading.Event()

        def watch() -> None:
            while not is_over.wait(0.01):
                highest.append(server.resident_nbytes())

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            verdicts = list(pool.map(push_thrice, clients, [snapshot] * WORKERS))
        finally:
            is_over.set()
            watching.join()
        status = clients[0].status()
        for client in clients:
            client.close()

    assert all(verdict.applied for own in verdicts for verdict in own)
    assert status.counts.applied == 3 * WORKERS + 1
    assert status.counts.rejected.keys() <= {"OVERLOADED"}
    assert max(highest) - before <= 2 * budget + 64 * 2**20


@pytest.fixture
def server(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> psserver.Server:
    """Start a server that has variables, and little patience."""
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    server = start_server()
    with psworker.connect(server.address) as client:
        client.initialize({"w": np.zeros(2, np.float32)})
    return server


@pytest.mark.parametrize("method", ["Push", "PushStream", "Status", "Join"])
def test_callers_that_send_nothing_hold_up_nobody_for_long(
    method: str, server: psserver.Server
) -> None:
    """More of them than the server has threads: each is let go in turn."""
    never = threading.Event()

    def nothing() -> Any:
        never.wait(TIMEOUT_S)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.stream_unary(f"/ps.v1.ParameterServer/{method}")
        calls = [call.future(nothing()) for _ in range(140)]
        for each in calls:
            assert each.exception(TIMEOUT_S).code() is grpc.StatusCode.CANCELLED
        never.set()

        with psworker.connect(server.address, same_host=False) as client:
            assert client.push({"w": np.ones(2, np.float32)}, client.pull()).applied


def test_a_push_that_stands_still_gives_its_room_back(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller has sent half of it, and is still connected."""
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    server = start_server(max_inflight_bytes=NBYTES)
    goes_on = threading.Event()
    with (
        psworker.connect(server.address, same_host=False) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        client.initialize(PARAMS)
        stub = rpc.ParameterServerStub(channel)
        joined = stub.Join(pb.JoinRequest(worker="half", session="half"))
        header = pb.PushHeader(
            session="half", seq=1, generation=joined.generation, nbytes=NBYTES
        )

        def half() -> Any:
            yield pb.PushRequest(header=header)
            goes_on.wait(TIMEOUT_S)

        standing = stub.PushStream.future(half())
        assert client.push(ONES, client.pull()).applied
        assert standing.exception(TIMEOUT_S).code() is grpc.StatusCode.CANCELLED
        goes_on.set()


def test_compressed_messages_are_refused_as_they_are(server: psserver.Server) -> None:
    """A few kilobytes of them could be gigabytes of zeros."""
    bomb = pb.PushRequest(data=bytes(50 * 2**20))
    gzip = grpc.Compression.Gzip
    with grpc.insecure_channel(server.address, compression=gzip) as channel:
        stub = rpc.ParameterServerStub(channel)

        with pytest.raises(grpc.RpcError) as refused:
            stub.Push(bomb, timeout=TIMEOUT_S)

    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
