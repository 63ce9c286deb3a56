"""A server that starts anew and remembers, and one that has forgotten a worker."""

import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import psworker
from psserver.calls import Calls
from psserver.commands import Commands
from psserver.config import ServerConfig
from psserver.grpcport import GrpcPort
from psserver.samehost import SameHost
from psserver.security.access import Access
from psserver.security.guard import Guard
from psserver.service import ParameterServer
from psserver.store import Store
from pswire.errors import GenerationError
from pswire.status import Limits
from pswire.values import Verdict
from psworker.loop import train

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory without a name"
)

WAIT_S = 20.0
SEED = 11
SIZE = 12
HOUR_S = 3600.0
ZEROS = {"w": np.zeros(SIZE, np.float32)}

Remembering = Callable[..., "Server"]


class Server:
    """One store, whose ports close and open again: as if it were read from a disk."""

    def __init__(self, max_staleness: int | None) -> None:
        limits = Limits(max_staleness, None, 10**6, 10**6)
        self.store = Store(
            optax.sgd(1.0),
            rule_name="sgd",
            limits=limits,
            generation="g",
            incarnation="start 0",
            now=0.0,
        )
        self.now = 0.0
        self.starts = 0
        self._listen(port=0)

    def start_anew(self) -> None:
        """As after a kill: calls in flight over gRPC are cut off."""
        self.stop()
        self.starts += 1
        self.store.incarnation = f"start {self.starts}"
        self._listen(int(self.address.rpartition(":")[2]))

    def stop(self) -> None:
        self._grpc.stop(0)
        self._near.stop(WAIT_S)
        self._grpc.join()

    def forget_all(self) -> None:
        """Let an hour pass without a call, then somebody join."""
        later = self.now + HOUR_S + 1
        self.store.join("somebody", f"at {later}", later)
        self.now = later

    def _listen(self, port: int) -> None:
        calls = Calls(self.store, lambda: self.now)
        self._near = SameHost(calls, self.store.incarnation, Access(None))
        calls.same_host = self._near.path
        commands = Commands(threading.Event(), calls, None)
        config = ServerConfig(port=port)
        guard = Guard(Access(None), None)
        self._grpc = GrpcPort(
            *(ParameterServer(calls), commands, config), guard=guard, tls=None
        )
        self.address = self._grpc.address
        self._grpc.start()


@pytest.fixture
def remembering() -> Iterator[Remembering]:
    """Start servers that remember; they stop with the test."""
    servers: list[Server] = []

    def start(max_staleness: int | None = None) -> Server:
        servers.append(Server(max_staleness))
        return servers[-1]

    yield start

    for server in servers:
        server.stop()


@pytest.fixture
def mark() -> Callable[[int], dict[str, Any]]:
    """Make the gradient with which push `number` adds 1 to its own element."""
    return lambda number: {"w": -np.eye(SIZE, dtype=np.float32)[number]}


def make_task(batches: Callable[[psworker.Shard], Iterator[Any]]) -> psworker.Task:
    """Make a task with which a batch adds itself to the variable."""
    return psworker.Task(
        init=lambda: {"w": jnp.zeros(SIZE)},
        loss=lambda params, batch: -jnp.dot(params["w"], batch),
        batches=batches,
    )


# A server that starts anew


@pytest.mark.parametrize("way", ["exchange", "pull and push"])
def test_a_worker_goes_past_grpc_again_when_its_server_has_started_anew(
    remembering: Remembering,
    start_relay: Any,
    mark: Any,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    """After the one call that tells it; it joins once, and says so once."""
    caplog.set_level(logging.INFO, "psworker")
    server = remembering(max_staleness=0)
    relay = start_relay(server.address)

    with psworker.connect(relay.address) as client:
        client.initialize(ZEROS)
        snapshot, verdicts = client.pull(), []
        for number in range(9):
            if number in (1, 5):
                server.start_anew()
            if way == "exchange":
                verdict, snapshot = client.exchange(mark(number), snapshot)
            else:
                verdict, snapshot = client.push(mark(number), snapshot), client.pull()
            verdicts.append(verdict)
        final = client.pull()

    assert verdicts == [Verdict(True, 0, step) for step in range(1, 10)]
    assert final.params["w"].tolist() == [1.0] * 9 + [0.0] * 3
    found = ["Exchange"] if way == "exchange" else ["Push", "Pull"]
    methods = [method for method, _ in groupby(relay.methods())]
    assert methods == ["Join", "Initialize", "Join", *[*found, "Join"] * 2]
    told = f"the server at {relay.address} has started anew"
    assert caplog.messages.count(told) == 2


def test_threads_that_find_another_start_at_once_join_once(
    remembering: Remembering, start_relay: Any, in_thread: Any
) -> None:
    """None of them loses its call."""
    server = remembering()
    relay = start_relay(server.address)
    with psworker.connect(relay.address) as client:
        client.initialize(ZEROS)
        client.pull()
        server.start_anew()
        client.pull()
        joins = relay.methods().count("Join")
        together = threading.Barrier(8)

        def pull() -> int:
            together.wait(WAIT_S)
            return client.pull().step

        steps = [in_thread(pull) for _ in range(8)]

        assert [each.result(WAIT_S) for each in steps] == [0] * 8
    assert relay.methods().count("Join") == joins + 1


@pytest.mark.parametrize("way", ["push", "exchange"])
def test_a_push_whose_reply_is_lost_with_the_server_is_applied_once(
    remembering: Remembering, start_relay: Any, mark: Any, way: str
) -> None:
    """At limit 0, where its retry would be stale because of itself."""
    server = remembering(max_staleness=0)
    relay = start_relay(server.address)

    def lose() -> None:
        server.start_anew()
        relay.lose()

    with psworker.connect(relay.address, same_host=False) as client:
        client.initialize(ZEROS)
        relay.after[way.capitalize()] = lose
        snapshot = client.pull()
        verdict: Any = getattr(client, way)(mark(0), snapshot)
        final = client.pull()

    verdict = verdict[0] if way == "exchange" else verdict
    assert verdict == Verdict(applied=True, staleness=0, step=1, duplicate=True)
    assert (final.step, final.params["w"].tolist()) == (1, [1.0] + [0.0] * 11)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("background_push", [False, True])
def test_training_neither_loses_nor_repeats_a_push_when_the_server_starts_anew(
    remembering: Remembering,
    connect: Any,
    prefetch: bool,
    background_push: bool,
) -> None:
    """Four times, wherever its calls are then."""
    server = remembering()
    restarts = set(random.Random(SEED).sample(range(1, SIZE), 4))

    def batches(shard: psworker.Shard) -> Iterator[Any]:
        for number in range(SIZE):
            if number in restarts:
                server.start_anew()
            yield jax.nn.one_hot(number, SIZE)

    client = connect(server.address)

    progress = train(
        client,
        make_task(batches),
        psworker.Shard(),
        prefetch=prefetch,
        background_push=background_push,
    )

    final = client.pull()
    assert (progress.applied, progress.dropped, final.step) == (SIZE, 0, SIZE)
    assert final.params["w"].tolist() == [1.0] * SIZE


# A server that has forgotten a worker


def test_a_push_that_comes_again_when_the_server_has_forgotten_it_is_refused(
    remembering: Remembering, start_relay: Any, mark: Any
) -> None:
    """It had been applied, which nobody knows any more. The same client goes on."""
    server = remembering()
    relay = start_relay(server.address)

    def lose() -> None:
        server.forget_all()
        relay.lose()

    with psworker.connect(relay.address, same_host=False) as client:
        client.initialize(ZEROS)
        snapshot = client.pull()
        relay.after["Push"] = lose

        with pytest.raises(GenerationError, match=r"^step_read: expected 1 or more"):
            client.push(mark(0), snapshot)

        verdict = client.push(mark(1), client.pull())
        final = client.pull()
    assert verdict == Verdict(applied=True, staleness=0, step=2)
    assert final.params["w"].tolist() == [1.0] * 2 + [0.0] * 10


@pytest.mark.parametrize("background_push", [False, True])
def test_training_goes_on_with_a_server_that_has_forgotten_it(
    remembering: Remembering,
    connect: Any,
    mark: Any,
    background_push: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch is lost, or with pushes in the background two; none is doubled."""
    server = remembering()
    client = connect(server.address)
    judge, judged = server.store.push, threading.Semaphore(0)

    def push(*arguments: Any) -> Any:
        result = judge(*arguments)
        judged.release()
        return result

    monkeypatch.setattr(server.store, "push", push)

    def batches(shard: psworker.Shard) -> Iterator[Any]:
        for number in range(SIZE - 1):
            if number == SIZE // 2:
                # One still in flight could come after it joins anew, and be applied.
                assert all(judged.acquire(timeout=WAIT_S) for _ in range(number))
                server.forget_all()
                with psworker.connect(server.address) as other:
                    other.push(mark(SIZE - 1), other.pull())
            yield jax.nn.one_hot(number, SIZE)

    progress = train(
        client, make_task(batches), psworker.Shard(), background_push=background_push
    )

    final, lost = client.pull(), 1 + background_push
    assert SIZE - 1 - progress.applied == lost
    assert final.step == progress.applied + 1 == sum(final.params["w"])
    assert {*final.params["w"].tolist()} == {0.0, 1.0}
