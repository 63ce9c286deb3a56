"""A server that stops, and another that takes its place with nothing."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import psserver
import psworker
from pswire.errors import GenerationError, NotInitializedError
from pswire.values import Verdict
from psworker.loop import Progress, train

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]

TIMEOUT_S = 30.0
GRADIENT = {"w": np.array([-1.0, -1.0], np.float32)}


@pytest.fixture
def restart(start_server: StartServer) -> Callable[..., psserver.Server]:
    """Stop a server and start another where it listened."""

    def stop_and_start(server: psserver.Server, **settings: Any) -> psserver.Server:
        server.stop()
        return start_server(port=int(server.address.rpartition(":")[2]), **settings)

    return stop_and_start


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("way", ["push", "exchange"])
def test_a_gradient_from_before_a_restart_is_never_applied(
    start_server: StartServer,
    connect: Connect,
    restart: Callable[..., psserver.Server],
    way: str,
    step: int,
) -> None:
    """It was read at step 2; the new server is before, at or after that step."""
    server = start_server()
    client = connect(server.address, name="old")
    client.initialize({"w": np.zeros(2, np.float32)})
    for _ in range(2):
        client.push(GRADIENT, step_read=0)
    snapshot = client.pull()
    assert snapshot.step == 2
    server = restart(server)
    other = connect(server.address, name="new")
    other.initialize({"w": np.full(2, 7.0, np.float32)})
    for _ in range(step):
        other.push(GRADIENT, step_read=0)

    with pytest.raises(GenerationError, match=r"generation: expected \w+, got \w+"):
        getattr(client, way)(GRADIENT, snapshot)

    fresh = client.pull()
    assert (fresh.step, fresh.params["w"].tolist()) == (step, [7.0 + step] * 2)
    assert client.push(GRADIENT, fresh) == Verdict(
        applied=True, staleness=0, step=step + 1
    )
    status = server.status()
    assert status.counts.applied == step + 1
    old = next(row for row in status.workers if row.name == "old")
    assert old.counts.rejected["GENERATION"] == 1


@pytest.mark.parametrize("way", ["push", "exchange"])
def test_a_gradient_for_a_server_without_variables_is_refused(
    start_server: StartServer,
    connect: Connect,
    restart: Callable[..., psserver.Server],
    way: str,
) -> None:
    """Afterwards the same client may bring the variables, and go on."""
    server = start_server()
    client = connect(server.address)
    client.initialize({"w": np.zeros(2, np.float32)})
    snapshot = client.pull()
    server = restart(server)

    with pytest.raises(NotInitializedError, match="variables: expected to be init"):
        getattr(client, way)(GRADIENT, snapshot)

    assert client.initialize({"w": np.ones(2, np.float32)})
    fresh = client.pull()
    assert (fresh.step, fresh.params["w"].tolist()) == (0, [1.0, 1.0])
    assert client.push(GRADIENT, fresh).applied
    assert server.status().step == 1


def test_variables_of_another_form_after_a_restart_are_pulled_as_they_are(
    start_server: StartServer,
    connect: Connect,
    restart: Callable[..., psserver.Server],
) -> None:
    """The layout that the client remembers went with the old generation."""
    server = start_server()
    client = connect(server.address)
    client.initialize({"w": np.zeros(2, np.float32)})
    client.pull()
    server = restart(server)
    other = connect(server.address)
    other.initialize({"v": np.ones((2, 3), np.float32), "u": np.float32(2.0)})

    snapshot = client.pull()

    assert snapshot.params["v"].tolist() == [[1.0] * 3] * 2
    assert snapshot.params["u"].tolist() == 2.0
    gradients = {"v": -np.ones((2, 3), np.float32), "u": np.float32(0.0)}
    assert client.push(gradients, snapshot).applied


def test_training_rides_through_a_restart(
    start_server: StartServer,
    connect: Connect,
    restart: Callable[..., psserver.Server],
    in_parallel: InParallel,
) -> None:
    """Two workers lose a batch each, bring the variables again, and finish."""
    first = start_server()
    before, after = 5, 7
    stopped = threading.Event()
    # Both workers have their answers and no call in flight when the server stops.
    idle = threading.Barrier(3)

    def batches(shard: psworker.Shard) -> Iterator[Any]:
        for number in range(before + 1 + after):
            if number == before:
                idle.wait(TIMEOUT_S)
                assert stopped.wait(TIMEOUT_S)
            yield np.float32(1.0)

    task = psworker.Task(
        init=lambda: {"w": jnp.zeros(2)},
        loss=lambda params, batch: -batch * jnp.sum(params["w"]),
        batches=batches,
    )

    def work(index: int) -> Progress:
        client = connect(first.address, name=f"{index}")
        return train(client, task, psworker.Shard(index, 2))

    def replace() -> psserver.Server:
        idle.wait(TIMEOUT_S)
        first.stop()
        # From here on the workers call a server that is not there yet.
        stopped.set()
        return restart(first)

    one, two, second = in_parallel([lambda: work(0), lambda: work(1), replace])

    assert (one.applied, two.applied) == (before + after,) * 2
    assert first.status().counts.applied == 2 * before
    status = second.status()
    assert (status.step, status.counts.applied) == (2 * after, 2 * after)
    assert max(one.step, two.step) == status.step
    final = connect(second.address).pull()
    assert final.params["w"].tolist() == [2.0 * after] * 2
