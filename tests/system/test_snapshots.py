"""What a pull returns: at once, of one step, and the caller's for good."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import psserver
import psworker
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
Hold = Callable[[], AbstractContextManager[threading.Event]]

TIMEOUT_S = 30.0

SHAPES = {"in one message": (3, 2), "in a stream": (1100, 1000)}


def test_a_pull_during_a_push_returns_the_snapshot_before_it(
    start_server: StartServer,
    connect: Connect,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
) -> None:
    """It waits for nothing: the push ends only after all these pulls have."""
    server = start_server(slow_rule)
    pusher = connect(server.address)
    knows_it, knows_nothing = (
        connect(server.address, timeout_s=10.0, outage_s=10.0) for _ in range(2)
    )
    pusher.initialize({"w": np.zeros(2, np.float32)})
    snapshot = knows_it.pull()

    with ThreadPoolExecutor(1) as pool, hold() as reached:
        pushed = pool.submit(pusher.push, {"w": -np.ones(2, np.float32)}, snapshot)
        assert reached.wait(TIMEOUT_S)
        during = [client.pull() for client in (knows_it, knows_nothing)]
        assert not pushed.done()
    after = knows_it.pull()

    assert [(pull.step, pull.params["w"].tolist()) for pull in during] == [
        (0, [0.0, 0.0])
    ] * 2
    assert pushed.result() == Verdict(applied=True, staleness=0, step=1)
    assert (after.step, after.params["w"].tolist()) == (1, [1.0, 1.0])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("like", [None, {"w": jnp.zeros(1)}], ids=["numpy", "jax"])
def test_pulled_arrays_keep_their_bits_whatever_comes_after(
    start_server: StartServer, shape: tuple[int, ...], like: Any
) -> None:
    """Pushes, pulls, the client's and the server's end, and changed gradients."""
    if like is not None:
        like = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    numbers = np.random.default_rng(7)
    gradient = numbers.standard_normal(shape, np.float32)
    server = start_server(optax.sgd(1.0, momentum=0.5))
    kept: list[tuple[Any, bytes]] = []

    with psworker.connect(server.address) as client:
        client.initialize({"w": gradient.copy()})
        snapshot = client.pull(like=like)
        for step in range(8):
            kept.append((snapshot.params["w"], snapshot.params["w"].tobytes()))
            gradient[:] = numbers.standard_normal(shape, np.float32)
            if step % 2:
                client.push({"w": gradient}, snapshot)
                gradient[:] = np.float32(1e6)
                snapshot = client.pull(like=like)
            else:
                _, snapshot = client.exchange({"w": gradient}, snapshot)
    server.stop()

    assert len({bits for _, bits in kept}) == len(kept)
    assert all(array.tobytes() == bits for array, bits in kept)
    assert np.abs(kept[-1][0]).max() < 100


def test_pulled_arrays_cannot_be_written(
    start_server: StartServer, connect: Connect
) -> None:
    """A slip in the caller's code fails there, and spoils no later pull."""
    client = connect(start_server().address)
    client.initialize({"w": np.zeros(2, np.float32)})
    snapshot = client.pull()

    with pytest.raises(ValueError, match="read-only"):
        snapshot.params["w"][0] = 5.0

    assert client.pull().params["w"].tolist() == [0.0, 0.0]
