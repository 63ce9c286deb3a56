"""Pacing policies from their option to the workers that wait for their turns."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from psserver import admin
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import CallCancelledError
from pswire.status import SILENT_S
from pswire.values import Snapshot
from psworker.loop import Progress, train

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Kept = Callable[..., dict[str, Any]]
JoinRaw = Callable[..., tuple[rpc.ParameterServerStub, Any]]

ONES = {"w": np.ones(2, np.float32)}
LARGE = {"w": np.ones(300_000, np.float32)}  # It lies in memory, on the same host.
WORKERS = 12
PUSHES = 20
SEED = 11
TIMEOUT_S = 30.0


def compute(effort: int) -> None:
    """Take some time, but not always the same."""
    for _ in range(effort):
        pass


def is_waiting(server: psserver.Server, worker: str) -> bool:
    """Ask the server whether a worker waits for its turn."""
    return any(row.name == worker and row.waiting for row in server.status().workers)


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again, for a bounded time."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline


@contextmanager
def in_thread(call: Callable[[], Any]) -> Iterator["Future[Any]"]:
    """Run a call beside the test, which has to end it."""
    with ThreadPoolExecutor(1, "test") as pool:
        yield pool.submit(call)


@pytest.mark.parametrize(
    ("limit", "durability"), [(0, "none"), (1, "log"), (3, "none"), (3, "log")]
)
def test_nothing_is_dropped_and_everybody_gets_a_turn(
    limit: int,
    durability: str,
    start_server: StartServer,
    connect: Connect,
    in_parallel: InParallel,
    kept: Kept,
) -> None:
    """Twelve threads of any speed, of which only some can be at work at once."""
    settings = kept(durability, max_staleness=limit, staleness_policy="admission")
    server = start_server(**settings)
    clients = [connect(server.address, name=f"w{number}") for number in range(WORKERS)]
    clients[0].initialize(ONES)

    def work(client: psworker.Client, number: int) -> None:
        speeds = random.Random(SEED + number)
        snapshot = client.pull()
        for left in range(PUSHES - 1, -1, -1):
            compute(speeds.choice([0, 1000, 1000 * number]))
            if left and speeds.random() < 0.7:
                _, snapshot = client.exchange(ONES, snapshot)
                continue
            client.push(ONES, snapshot)
            if left:
                snapshot = client.pull()

    in_parallel([partial(work, each, n) for n, each in enumerate(clients)])

    status = server.status()
    assert (status.counts.applied, status.counts.dropped) == (WORKERS * PUSHES, 0)
    assert {worker.counts.applied for worker in status.workers} == {PUSHES}
    assert max(status.staleness) <= limit
    assert status.waited_s > 0
    assert not any(worker.waiting for worker in status.workers)


@pytest.mark.parametrize("s", [0, 2])
def test_nobody_is_further_ahead_of_the_slowest_than_ssp_allows(
    s: int, start_server: StartServer, connect: Connect, in_parallel: InParallel
) -> None:
    """Of whoever was granted a pull, all others have begun to push as often, less s."""
    server = start_server(staleness_policy=f"ssp:{s}")
    clients = [connect(server.address, name=f"w{number}") for number in range(4)]
    clients[0].initialize(ONES)
    begun = Counter[str]()
    leads: list[int] = []
    start = [client.pull() for client in clients]

    def work(client: psworker.Client, snapshot: Snapshot[Any], effort: int) -> None:
        for done in range(PUSHES):
            leads.append(done - min(begun[other.name] for other in clients))
            compute(effort)
            begun[client.name] += 1
            _, snapshot = client.exchange(ONES, snapshot)

    in_parallel(
        [
            partial(work, client, snapshot, 10_000 * n)
            for n, (client, snapshot) in enumerate(zip(clients, start, strict=True))
        ]
    )

    status = server.status()
    assert max(leads) <= s
    assert max(status.staleness) <= 3 * (2 * s + 1)
    assert status.counts.applied == 4 * PUSHES


@pytest.mark.parametrize("variables", [ONES, LARGE], ids=["small", "large"])
def test_a_pull_waits_for_longer_than_an_outage_may_last(
    variables: dict[str, Any], start_server: StartServer, connect: Connect
) -> None:
    """It is no outage, and is seen in the status; after an exchange it is the same."""
    server = start_server(max_staleness=0, staleness_policy="admission")
    ann = connect(server.address, name="ann")
    bob = connect(server.address, name="bob", outage_s=0.0, timeout_s=1.0)
    ann.initialize(variables)
    first = ann.pull()

    with in_thread(bob.pull) as pulling:
        wait_until(lambda: is_waiting(server, "bob"))
        wait_until(lambda: server.status().waited_s > 1.5)
        assert not pulling.done()
        with in_thread(lambda: ann.exchange(variables, first)) as exchanging:
            second = pulling.result(TIMEOUT_S)
            wait_until(lambda: is_waiting(server, "ann"))
            assert not exchanging.done()
            assert bob.push(variables, second).applied
            verdict, third = exchanging.result(TIMEOUT_S)

    assert (second.step, verdict.step, third.step) == (1, 1, 2)
    rows = {worker.name: worker.waited_s for worker in server.status().workers}
    assert rows["bob"] > 1.5
    np.testing.assert_array_equal(third.params["w"], variables["w"] - 2)


def test_who_waits_is_let_go_by_a_change_of_policy(
    start_server: StartServer, connect: Connect
) -> None:
    """With its next question, though nobody has pushed."""
    server = start_server(max_staleness=0, staleness_policy="admission")
    ann, bob = (connect(server.address, name=name) for name in ("ann", "bob"))
    ann.initialize(ONES)
    ann.pull()

    with in_thread(bob.pull) as pulling:
        wait_until(lambda: is_waiting(server, "bob"))
        admin.change(server.address, {"staleness_policy": "drop"})
        assert pulling.result(TIMEOUT_S).step == 0


def test_closing_ends_a_wait(start_server: StartServer, connect: Connect) -> None:
    """As it ends any call."""
    server = start_server(max_staleness=0, staleness_policy="admission")
    ann, bob = (connect(server.address, name=name) for name in ("ann", "bob"))
    ann.initialize(ONES)
    ann.pull()

    with in_thread(bob.pull) as pulling:
        wait_until(lambda: is_waiting(server, "bob"))
        bob.close()
        with pytest.raises(CallCancelledError):
            pulling.result(TIMEOUT_S)


def test_a_reader_that_never_joined_does_not_wait(
    start_server: StartServer, connect: Connect
) -> None:
    """It sees the variables while others compute; so does whoever inspects them."""
    server = start_server(max_staleness=0, staleness_policy="admission")
    client = connect(server.address)
    client.initialize(ONES)
    client.pull()

    assert psworker.client.read(server.address, like=ONES).step == 0
    assert connect(server.address).variables().step == 0


def test_who_has_to_wait_is_told_so_in_the_header_alone(
    start_server: StartServer, join_raw: JoinRaw
) -> None:
    """Of every call that pulls; a foreign client has to know what that means."""
    server = start_server(max_staleness=0, staleness_policy="admission")
    with psworker.connect(server.address, name="ann", same_host=False) as ann:
        ann.initialize(ONES)
        ann.pull()
        bob, push = join_raw(server.address, "bob")
        request = pb.PullRequest(session="bob")

        pulled = bob.Pull(request, timeout=TIMEOUT_S)
        (streamed,) = bob.PullStream(request, timeout=TIMEOUT_S)
        gradient = push(1, ONES["w"], step_read=0)
        both = bob.Exchange(pb.ExchangeRequest(push=gradient), timeout=TIMEOUT_S)

    assert both.push.applied
    assert both.push.step == 1
    for reply in (pulled, streamed, both.pull):
        header = reply.header
        assert (reply.data, header.not_modified, header.HasField("layout")) == (
            b"",
            False,
            False,
        )
        assert 0.001 <= header.wait_s <= 1
        assert header.waits_for == "ann"


@pytest.mark.parametrize("policy", ["ssp:0", "admission"])
def test_nobody_waits_for_a_worker_that_has_ended(
    policy: str,
    start_server: StartServer,
    same_host: bool,
    in_parallel: InParallel,
) -> None:
    """Although it had pulled, and was the slowest; a killed one would take a minute."""
    server = start_server(max_staleness=0, staleness_policy=policy)

    def work(batches: int) -> Progress:
        task = psworker.Task(
            init=lambda: ONES,
            loss=lambda params, batch: (params["w"] * batch).sum(),
            batches=lambda shard: [np.float32(1.0)] * batches,
        )
        with psworker.connect(server.address, same_host=same_host) as client:
            return train(client, task, psworker.Shard(0, 1), on_drop="skip")

    began = time.monotonic()
    done = in_parallel([partial(work, batches) for batches in (3, 6, 12)])

    assert time.monotonic() - began < SILENT_S
    assert [each.applied + each.dropped for each in done] == [3, 6, 12]
    assert policy == "ssp:0" or not any(each.dropped for each in done)
