"""Workers find their parts of the data by themselves, whoever comes and goes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from pswire.errors import InvalidRequestError, SessionSupersededError

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]

ZEROS = {"w": np.zeros(2, np.float32)}


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

    first, other = next(fast), next(slow)
    went = [next(fast).index for _ in range(4)]

    (third,) = {0, 1, 2} - {first.index, other.index}
    assert (first.epoch, other.epoch) == (0, 0)
    assert went == [third, first.index] * 2
    assert leased(server) == {"a": f"{went[-1]}/3", "b": f"{other.index}/3", "c": None}
    assert next(slow) == psworker.Shard(third, 3, epoch=2)
    assert next(fast) == psworker.Shard(other.index, 3, epoch=1)
    assert idle.status().workers[0].shard == f"{other.index}/3"


def test_a_process_that_is_started_again_does_not_wait_for_the_one_before(
    start_server: StartServer, connect: Connect
) -> None:
    """What that one had is free, though it has never said that it ends."""
    server = start_server()
    killed = connect(server.address, name="a").lease_shards(2)
    first = next(killed)
    other = next(connect(server.address, name="b").lease_shards(2))

    again = next(connect(server.address, name="a").lease_shards(2))

    assert again == psworker.Shard(first.index, 2, epoch=1)
    assert leased(server) == {"a": f"{first.index}/2", "b": f"{other.index}/2"}
    with pytest.raises(SessionSupersededError):
        next(killed)


def test_workers_keep_their_parts_when_the_server_is_started_anew(
    start_server: StartServer, connect: Connect
) -> None:
    """It remembers none of them: they say what they hold as soon as they come back."""
    server = start_server()
    clients = [connect(server.address, name=name) for name in "abc"]
    parts = [client.lease_shards(8) for client in clients]
    for each in parts:
        next(each)
    before = leased(server)
    clients[0].initialize(ZEROS)
    server.stop()

    server = start_server(port=int(server.address.rpartition(":")[2]))
    for client in clients:
        client.initialize(ZEROS)  # Any call of the session.

    assert leased(server) == before
    new = connect(server.address, name="new")
    assert f"{next(new.lease_shards(8)).index}/8" not in before.values()
    after = [next(each) for each in parts]
    assert {f"{part.index}/8" for part in after}.isdisjoint(before.values())
    assert {part.epoch for part in after} == {0}


def test_more_parts_than_a_server_keeps_are_refused(
    start_server: StartServer, connect: Connect
) -> None:
    """The error says how many it keeps."""
    client = connect(start_server().address)

    with pytest.raises(InvalidRequestError, match="expected 1 to 4096 parts"):
        next(client.lease_shards(10**6))
