"""A server that is asked to stop says so, finishes, saves all, and ends well."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optax
import pytest
from grpc_health.v1 import health_pb2
from safetensors.numpy import load_file

import psserver
import psworker
from pswire.errors import ServerUnavailableError

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
Watch = Callable[[str], Iterator[int]]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Kept = Callable[..., dict[str, Any]]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
Hold = Callable[[], AbstractContextManager[threading.Event]]
Size = Callable[[int, int], int]

CLIENTS = 16
SEED = 16
TIMEOUT_S = 30.0
ZEROS = {"A": np.zeros(2, np.float32)}
UP = {"A": np.full(2, -1.0, np.float32)}


def last_saved(data_dir: Path) -> tuple[int, list[float]]:
    """Return the step of a data directory's newest checkpoint, and its variable."""
    folder = max((data_dir / "checkpoints").iterdir())
    arrays = load_file(folder / "arrays.safetensors")
    return int(folder.name.rpartition("-")[2]), arrays["variables/A"].tolist()


@pytest.mark.parametrize("durability", ["none", "checkpoint", "log"])
def test_a_stop_is_told_first_and_lets_what_is_in_flight_finish(
    start_server: StartServer,
    connect: Connect,
    watch: Watch,
    kept: Kept,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
    tmp_path: Path,
    durability: str,
) -> None:
    """What comes later is refused; who watches its health does not hold it up."""
    server = start_server(slow_rule, **kept(durability))
    client = connect(server.address)
    late = connect(server.address, same_host=False, outage_s=0.0)
    client.initialize(ZEROS)
    snapshot = client.pull()
    states = watch(server.address)
    assert next(states) == health_pb2.HealthCheckResponse.SERVING

    with ThreadPoolExecutor(2, "test") as pool:
        with hold() as reached:
            pushing = pool.submit(client.push, UP, snapshot)
            assert reached.wait(TIMEOUT_S)
            stopping = pool.submit(server.stop)
            assert list(states) == [health_pb2.HealthCheckResponse.NOT_SERVING]
            with pytest.raises(ServerUnavailableError):
                late.push(UP, snapshot)
            assert not pushing.done()
            assert not stopping.done()
        assert pushing.result(TIMEOUT_S).applied
        assert stopping.result(TIMEOUT_S)

    if durability != "none":
        assert last_saved(tmp_path / "data") == (1, [1.0, 1.0])


def test_a_stop_says_that_its_grace_was_over(
    start_server: StartServer,
    connect: Connect,
    kept: Kept,
    slow_rule: optax.GradientTransformation,
    hold: Hold,
    tmp_path: Path,
) -> None:
    """The push that took longer is not acknowledged; as it was applied, it is saved."""
    server = start_server(slow_rule, **kept("checkpoint"))
    client = connect(server.address, outage_s=0.0)
    client.initialize(ZEROS)
    snapshot = client.pull()

    with ThreadPoolExecutor(2, "test") as pool:
        with hold() as reached:
            pushing = pool.submit(client.push, UP, snapshot)
            assert reached.wait(TIMEOUT_S)
            stopping = pool.submit(server.stop, 0.1)
            with pytest.raises(ServerUnavailableError):
                pushing.result(TIMEOUT_S)
        assert not stopping.result(TIMEOUT_S)

    assert last_saved(tmp_path / "data") == (1, [1.0, 1.0])


class Load:
    """Pushes of many workers, each of which adds 1 to an element of its own."""

    def __init__(self, mark: Mark, size: int) -> None:
        self.acknowledged: set[int] = set()
        self.unanswered: set[int] = set()
        self.told = threading.Semaphore(0)
        self._mark = mark
        self._size = size
        self._numbers = itertools.count()  # `next` is atomic, as is `add`.

    def push(self, client: psworker.Client) -> None:
        """Push until the server takes no more."""
        for number in self._numbers:
            try:
                client.push({"A": self._mark(number, self._size)}, step_read=0)
            except ServerUnavailableError:
                self.unanswered.add(number)
                return
            self.acknowledged.add(number)
            self.told.release()


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["checkpoint", "log"])
def test_the_last_checkpoint_has_all_that_was_acknowledged(
    start_server: StartServer,
    kept: Kept,
    mark: Mark,
    in_parallel: InParallel,
    size: Size,
    tmp_path: Path,
    durability: str,
) -> None:
    """5 stops of one model's servers, in the soak 50, while 16 workers push.

    What was not answered was applied once or not at all.
    """
    stops, moment = size(5, 50), random.Random(SEED)
    load = Load(mark, 800 * stops)

    def stop(server: psserver.Server) -> bool:
        for _ in range(moment.randint(1, 400)):
            assert load.told.acquire(timeout=TIMEOUT_S)
        return server.stop()

    for _ in range(stops):
        load.told = threading.Semaphore(0)
        server = start_server(**kept(durability))
        with ExitStack() as stack:
            clients = [
                stack.enter_context(
                    psworker.connect(
                        server.address, same_host=bool(number % 2), outage_s=0.0
                    )
                )
                for number in range(CLIENTS)
            ]
            clients[0].initialize({"A": np.zeros(800 * stops, np.float32)})
            pushing = [partial(load.push, client) for client in clients]
            was_in_time, *_ = in_parallel([partial(stop, server), *pushing])

        step, counts = last_saved(tmp_path / "data")
        applied = {number for number, count in enumerate(counts) if count}
        assert was_in_time
        assert load.acknowledged <= applied <= load.acknowledged | load.unanswered
        assert sum(counts) == len(applied) == step
