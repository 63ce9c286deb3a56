"""A server that is away, silent, gone for good, or no parameter server at all."""

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

import psworker
from pswire.errors import (
    CallCancelledError,
    DeadlineError,
    GenerationError,
    InvalidRequestError,
    NotInitializedError,
    ServerUnavailableError,
)
from pswire.values import Snapshot, Verdict
from psworker.remote import Remote
from psworker.samehost import SameHost
from psworker.topk import TopK

WAIT_S = 20.0

PARAMS = {"w": np.asarray([1.0, 2.0], np.float32)}
ONES = {"w": np.ones(2, np.float32)}


class Notices(logging.Handler):
    """Keeps what the log warns of, and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)  # Whatever level a command has set before.
        self.texts: list[str] = []
        self._came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self._came.set()

    def wait(self) -> str:
        """Wait for the first one."""
        assert self._came.wait(WAIT_S)
        return self.texts[0]


class PatientClock:
    """Goes on once both of two threads have looked at it, twice each time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks: Counter[int] = Counter()

    def monotonic(self) -> float:
        """Return the time, in seconds."""
        with self._lock:
            self._looks[threading.get_ident()] += 1
            fewest = min(self._looks.values()) if len(self._looks) == 2 else 0
        return (0.0, 3.0, 100.0)[min(fewest // 2, 2)]


def after(first: Callable[[], object], method: Any) -> Any:
    """Return a method that does something else before."""

    def call(*arguments: Any) -> Any:
        first()
        return method(*arguments)

    return call


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notices]:
    """Listen to the worker's log, where a notice comes after every failed attempt."""
    monkeypatch.setattr("psworker.outage._NOTICE_S", 0.0)
    notices, log = Notices(), logging.getLogger("psworker")
    log.addHandler(notices)

    yield notices

    log.removeHandler(notices)


@pytest.fixture
def free_port() -> int:
    """Pick a port where nobody listens, for who has to be there too early."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_a_worker_that_is_early_waits_for_the_server(
    start_server: Any,
    connect: Any,
    notices: Notices,
    in_thread: Any,
    free_port: int,
) -> None:
    """It says where it waits, for how long, and why; then it goes on."""
    address = f"127.0.0.1:{free_port}"

    joining = in_thread(connect, address)
    notice = notices.wait()
    server = start_server(port=free_port)
    client = joining.result(WAIT_S)

    assert notice.startswith(
        f"waiting for the parameter server at {address}, 0 of 60 s: "
    )
    assert [row.name for row in server.status().workers] == [client.name]


def test_a_short_outage_is_waited_for_in_silence(
    connect: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Notices come seconds apart, not with every attempt."""
    caplog.set_level(logging.INFO, "psworker")

    with pytest.raises(ServerUnavailableError, match=r"no answer for 0 s"):
        connect(f"127.0.0.1:{free_port}", outage_s=0.3)

    assert caplog.messages == []


def test_a_pull_and_a_push_that_wait_at_once_say_so_once(
    start_server: Any,
    in_thread: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As with `--prefetch` and `--background-push`: a line for the whole connection.

    Three seconds pass for both once each has failed, and patience once each has again.
    """
    both = threading.Barrier(2)  # On their way past gRPC, before either is told.
    for name in ("pull", "push"):
        way = getattr(SameHost, name)
        monkeypatch.setattr(SameHost, name, after(partial(both.wait, WAIT_S), way))
    caplog.set_level(logging.INFO, "psworker")
    server = start_server()
    with psworker.connect(server.address, name="ann") as client:
        client.initialize(PARAMS)
        snapshot = Snapshot(PARAMS, 0, client.status().generation)
        server.stop()
        monkeypatch.setattr("psworker.outage.time", PatientClock())
        calls = in_thread(client.pull), in_thread(client.push, ONES, snapshot)
        for call in calls:
            with pytest.raises(ServerUnavailableError, match="no answer for 100 s"):
                call.result(WAIT_S)

    told = [message.partition(":")[0] for message in caplog.messages]
    assert told == [
        "the same-host path is gone, trying gRPC",
        "waiting for the parameter server at 127.0.0.1",
    ]


@pytest.mark.parametrize("outage_s", [0.0, 0.3], ids=["at once", "after a while"])
def test_a_worker_gives_up_in_the_end(
    connect: Any, notices: Notices, free_port: int, outage_s: float
) -> None:
    """Patience of 0 s means one attempt and no notice."""
    address = f"127.0.0.1:{free_port}"

    with pytest.raises(
        ServerUnavailableError, match=rf"^{address}: no answer for 0 s; last: "
    ):
        connect(address, outage_s=outage_s)

    assert bool(notices.texts) == (outage_s > 0)


def test_servers_may_restart_twice_in_the_midst_of_one_push(
    start_server: Any,
    connect: Any,
    in_thread: Any,
    monkeypatch: pytest.MonkeyPatch,
    free_port: int,
) -> None:
    """Another thread joins the first of them; the push joins the second itself."""
    servers = [start_server(port=free_port)]
    client = connect(servers[0].address, same_host=False)
    client.initialize(PARAMS)
    snapshot = client.pull()
    plain = Remote.push

    def restart() -> None:
        servers[-1].stop()
        servers.append(start_server(port=free_port))

    def push(*arguments: Any) -> Any:
        if len(servers) == 1:
            restart()
            with pytest.raises(NotInitializedError):
                in_thread(client.pull).result(WAIT_S)
            restart()
        return plain(*arguments)

    monkeypatch.setattr(Remote, "push", push)

    with pytest.raises((GenerationError, NotInitializedError)):
        client.push(ONES, snapshot)

    (row,) = servers[2].status().workers
    assert (row.name, row.counts.received) == (client.name, 1)


def test_a_push_does_not_mind_that_another_thread_has_joined_anew(
    start_server: Any,
    connect: Any,
    in_thread: Any,
    monkeypatch: pytest.MonkeyPatch,
    free_port: int,
) -> None:
    """While it is being made; what is known of the variables is then no more."""
    servers = [start_server(port=free_port)]
    client = connect(servers[0].address, compression="topk:0.5")
    client.initialize(PARAMS)
    snapshot = client.pull()
    plain = TopK.choose

    def choose(*arguments: Any) -> Any:
        servers[0].stop()
        servers.append(start_server(port=free_port))
        with pytest.raises(NotInitializedError):
            in_thread(client.pull).result(WAIT_S)
        return plain(*arguments)

    monkeypatch.setattr(TopK, "choose", choose)

    with pytest.raises((GenerationError, NotInitializedError)):
        client.push(ONES, snapshot)

    assert servers[1].status().counts.received == 1


def test_a_server_that_never_answers_runs_into_the_deadline(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """The relay holds the call back until the client has given it up."""
    relay = start_relay(start_server().address)
    given_up = threading.Event()
    relay.before["Join"] = lambda: given_up.wait(WAIT_S)

    try:
        with pytest.raises(
            DeadlineError, match=rf"^{relay.address}: no answer for 0 s; last: Dead"
        ):
            connect(relay.address, timeout_s=0.2, outage_s=0.1)
    finally:
        given_up.set()


def test_a_push_past_its_deadline_is_repeated_as_the_same_push(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """The first answer is held until the second attempt has come to the server."""
    relay = start_relay(start_server().address)
    client = connect(relay.address, timeout_s=0.5)
    client.initialize(PARAMS)
    snapshot = client.pull()
    repeated = threading.Event()

    def hold() -> None:
        relay.before["Push"] = repeated.set
        assert repeated.wait(WAIT_S)

    relay.after["Push"] = hold
    verdict = client.push(ONES, snapshot)

    assert verdict == Verdict(applied=True, staleness=0, step=1, duplicate=True)
    assert client.pull().step == 1


def test_an_outage_in_mid_session_is_survived(
    start_server: Any, connect: Any, notices: Notices, in_thread: Any, free_port: int
) -> None:
    """The client joins the new server by itself, which then judges the call."""
    server = start_server(port=free_port)
    client = connect(server.address)
    client.initialize(PARAMS)
    snapshot = client.pull()
    server.stop()

    pushing = in_thread(client.push, ONES, snapshot)
    notice = notices.wait()
    again = start_server(port=free_port)

    assert server.address in notice
    with pytest.raises(NotInitializedError, match=r"^variables: expected to be init"):
        pushing.result(WAIT_S)
    assert client.initialize(PARAMS)
    assert client.push(ONES, client.pull()).applied
    assert [row.name for row in again.status().workers] == [client.name]


def test_closing_ends_a_call_that_waits_for_a_server(
    start_server: Any, connect: Any, notices: Notices, in_thread: Any
) -> None:
    """From another thread, and long before patience runs out."""
    server = start_server()
    client = connect(server.address, outage_s=60)
    server.stop()
    pulling = in_thread(client.pull)
    notices.wait()

    client.close()

    with pytest.raises(
        (ServerUnavailableError, CallCancelledError), match=r"connect|clos"
    ):
        pulling.result(WAIT_S)


def test_closing_ends_a_call_that_waits_for_an_answer(
    start_server: Any, connect: Any, start_relay: Any, in_thread: Any
) -> None:
    """The server has the call, so it is cancelled."""
    relay = start_relay(start_server().address)
    client = connect(relay.address)
    held, closed = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        closed.wait(WAIT_S)

    relay.before["PullStream"] = hold
    pulling = in_thread(client.pull)
    assert held.wait(WAIT_S)

    client.close()

    try:
        with pytest.raises(CallCancelledError, match=r"closed"):
            pulling.result(WAIT_S)
    finally:
        closed.set()


def test_a_server_of_another_kind_is_told_apart_from_one_that_is_away() -> None:
    """It is not waited for, and the message says which address is meant."""
    pool = futures.ThreadPoolExecutor(1, "other")
    server = grpc.server(pool)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    try:
        with pytest.raises(
            InvalidRequestError, match=rf"^{address}: .*parameter server"
        ):
            psworker.connect(address, outage_s=60)
    finally:
        server.stop(0).wait()
        pool.shutdown()
