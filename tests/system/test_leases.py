"""Workers find their parts of the data by themselves, whoever comes and goes."""

from collections.abc import Callable
from typing import Any

import pytest

import psserver
import psworker
from pswire.errors import InvalidRequestError, SessionSupersededError

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]


def leased(server: psserver.Server) -> dict[str, Any]:
    """Return {worker: its part} as the status in JSON says."""
    status = server.status().to_json()
    return {worker["name"]: worker["shard"] for worker in status["workers"]}


def test_no_two_workers_have_a_part_and_every_part_has_its_turn(
    start_server: StartServer, connect: Connect
) -> None:
    """A worker that is faster goes through more of them."""
    server = start_server()
    ann, bob, idle = (connect(server.address, name=name) for name in ("a", "b", "c"))
    fast, slow = ann.lease_shards(3), bob.lease_shards(3)

    assert (next(fast), next(slow)) == (
        psworker.Shard(0, 3, epoch=0),
        psworker.Shard(1, 3, epoch=0),
    )
    assert leased(server) == {"a": "0/3", "b": "1/3", "c": None}
    assert [next(fast).index for _ in range(4)] == [2, 0, 2, 0]
    assert next(slow) == psworker.Shard(2, 3, epoch=2)
    assert next(fast) == psworker.Shard(1, 3, epoch=1)
    assert idle.status().workers[0].shard == "1/3"


def test_a_process_that_is_started_again_takes_the_part_of_the_one_before(
    start_server: StartServer, connect: Connect
) -> None:
    """Though that one has never said that it ends."""
    server = start_server()
    killed = connect(server.address, name="a").lease_shards(4)
    next(killed)
    next(connect(server.address, name="b").lease_shards(4))

    again = connect(server.address, name="a").lease_shards(4)

    assert next(again) == psworker.Shard(0, 4, epoch=1)
    assert leased(server) == {"a": "0/4", "b": "1/4"}
    with pytest.raises(SessionSupersededError):
        next(killed)


def test_a_worker_goes_on_with_a_server_that_knows_of_no_lease(
    start_server: StartServer, connect: Connect
) -> None:
    """What it has gone through is told apart from what it gets."""
    server = start_server()
    parts = connect(server.address, name="a").lease_shards(2)
    assert [next(parts).epoch for _ in range(3)] == [0, 0, 1]
    server.stop()

    server = start_server(port=int(server.address.rpartition(":")[2]))

    assert [next(parts) for _ in range(3)] == [
        psworker.Shard(0, 2, epoch=2),
        psworker.Shard(1, 2, epoch=0),
        psworker.Shard(0, 2, epoch=3),
    ]
    assert leased(server) == {"a": "0/2"}


def test_more_parts_than_a_server_keeps_are_refused(
    start_server: StartServer, connect: Connect
) -> None:
    """The error says how many it keeps."""
    client = connect(start_server().address)

    with pytest.raises(InvalidRequestError, match="expected 1 to 65536 parts"):
        next(client.lease_shards(10**6))
