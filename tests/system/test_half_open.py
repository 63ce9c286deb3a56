"""Connections of which one end has vanished without a word."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import psserver
import psworker
from kit.processes import wait_until
from kit.relay import TcpRelay
from pswire import keepalive
from pswire.errors import ServerUnavailableError

StartServer = Callable[..., psserver.Server]
JoinRaw = Callable[..., Any]
SendHalf = Callable[..., tuple[Any, Callable[[], None]]]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
Size = Callable[[int, int], int]

pytestmark = pytest.mark.soak

SHORT_S = 0.2
PATIENCE_S = 18.0  # More than it takes; gRPC by itself has 20 s and more.
ZEROS = {"A": np.zeros(4, np.float32)}


@pytest.fixture
def time_s(size: Size, monkeypatch: pytest.MonkeyPatch) -> float:
    """Have both ends ask each other more often than they do, but in the long run."""
    if size(True, False):
        monkeypatch.setattr(keepalive, "_TIME_S", SHORT_S)
        monkeypatch.setattr(keepalive, "_TIMEOUT_S", SHORT_S)
    return keepalive._TIME_S


@pytest.fixture
def server(start_server: StartServer, time_s: float) -> psserver.Server:
    """Start a server that has variables."""
    server = start_server()
    with psworker.connect(server.address) as client:
        client.initialize(ZEROS)
    return server


@pytest.fixture
def relay(server: psserver.Server) -> Iterator[TcpRelay]:
    """Relay what goes to the server, and back."""
    with TcpRelay(server.address) as relay:
        yield relay


def test_a_server_lets_go_of_a_worker_that_has_vanished(
    server: psserver.Server,
    relay: TcpRelay,
    join_raw: JoinRaw,
    send_half: SendHalf,
    mark: Mark,
) -> None:
    """In the midst of a push, which is not waited for any more."""
    stub, make = join_raw(relay.address, "s")
    # Kept: a call that nobody holds is cancelled.
    call, _ = send_half(stub, make(1, mark(0, 4), step_read=0))
    assert not server.status().counts.rejected
    relay.vanish()

    with psworker.connect(server.address) as other:
        wait_until(lambda: bool(server.status().counts.rejected), other, PATIENCE_S)

    counts = server.status().counts
    assert (counts.applied, sum(counts.rejected.values())) == (0, 1)
    assert not call.done()


def test_a_worker_lets_go_of_a_server_that_has_vanished(relay: TcpRelay) -> None:
    """Long before the deadline of its call."""
    with psworker.connect(
        relay.address, same_host=False, timeout_s=PATIENCE_S, outage_s=0.0
    ) as client:
        relay.vanish()

        with pytest.raises(ServerUnavailableError, match=r"(?i)timed? ?out"):
            client.pull()


def test_both_ends_of_a_quiet_connection_stay(relay: TcpRelay, size: Size) -> None:
    """Asking each other so often, neither takes the other for an attacker."""
    with psworker.connect(relay.address, same_host=False, outage_s=0.0) as client:
        client.pull()
        relay.target = "127.0.0.1:1"  # Another connection would lead nowhere.

        # A worker asks once a second at the most; by default the third is too many.
        threading.Event().wait(size(4, 60))

        assert client.pull().step == 0


def test_a_slow_link_is_not_taken_for_a_broken_one(
    start_server: StartServer, size: Size
) -> None:
    """Answers to pings come late: behind the body, of which there are megabytes."""
    elements = size(3, 9) * 10**6 // 4
    server = start_server()
    with psworker.connect(server.address) as first:
        first.initialize({"A": np.zeros(elements, np.float32)})

    with (
        TcpRelay(server.address) as relay,
        psworker.connect(relay.address, same_host=False, outage_s=0.0) as client,
    ):
        relay.rate = 4e5
        assert client.pull().params["A"].size == elements
