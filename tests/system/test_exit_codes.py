"""How a server's process ends when it is told to, and what it leaves then."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGTERM

import numpy as np
import pytest
from grpc_health.v1 import health_pb2

import psworker
from kit.forge import Forge
from psserver import admin
from pswire.errors import ServerUnavailableError

Start = Callable[..., int]
Watch = Callable[[str], Iterator[int]]

TIMEOUT_S = 30.0
ZEROS = {"A": np.zeros(2, np.float32)}
UP = {"A": np.full(2, -1.0, np.float32)}
PUSHES = 5


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """Start what starts servers."""
    log = tmp_path_factory.mktemp("forge") / "servers.log"
    with Forge(log, timeout_s=100) as forge:
        yield forge


@pytest.fixture
def start(forge: Forge, tmp_path: Path) -> Start:
    """Start a server in mode `checkpoint`, with failpoints; return its process's id."""

    def start(*failpoints: str) -> int:
        return forge.start(
            *("--rule", "sgd", "-a", "learning_rate=1.0", "--max-staleness", "off"),
            *("--durability", "checkpoint", "--data-dir", str(tmp_path / "data")),
            failpoints=failpoints,
        )

    return start


def push(address: str) -> None:
    """Push some, the first server's after it has got its variables."""
    with psworker.connect(address) as client:
        client.initialize(ZEROS)
        for _ in range(PUSHES):
            assert client.push(UP, client.pull()).applied


def saved(start: Start, forge: Forge) -> tuple[int, list[float]]:
    """Return the step and the variable that the next server begins with."""
    process = start()
    with psworker.connect(forge.address()) as client:
        snapshot = client.pull()
    os.kill(process, SIGTERM)
    assert forge.ended() == 0
    return snapshot.step, snapshot.params["A"].tolist()


@pytest.mark.parametrize("way", ["a signal", "psserver stop"])
def test_a_server_that_is_asked_to_stop_saves_all_and_ends_with_0(
    start: Start, forge: Forge, way: str
) -> None:
    """What it acknowledged in between is there when the next one starts."""
    process = start()
    address = forge.address()
    push(address)

    if way == "a signal":
        os.kill(process, SIGTERM)
    else:
        admin.stop(address)

    assert forge.ended() == 0
    assert saved(start, forge) == (PUSHES, [PUSHES] * 2)


def test_a_second_signal_ends_it_at_once_and_not_with_0(
    start: Start, forge: Forge, watch: Watch
) -> None:
    """It waits for a push by then; what the first checkpoint does not have is lost."""
    process = start(f"push.after_dedup=hold@{PUSHES + 1}")
    address = forge.address()
    push(address)
    states = watch(address)
    next(states)
    with (
        psworker.connect(address, outage_s=0.0) as client,
        ThreadPoolExecutor(1, "test") as pool,
    ):
        pushing = pool.submit(client.push, UP, client.pull())
        while forge.line() != "reached push.after_dedup":
            pass
        os.kill(process, SIGTERM)
        assert list(states) == [health_pb2.HealthCheckResponse.NOT_SERVING]

        os.kill(process, SIGTERM)

        assert forge.ended() == 128 + SIGTERM
        with pytest.raises(ServerUnavailableError):
            pushing.result(TIMEOUT_S)
    assert saved(start, forge) == (0, [0, 0])


def test_a_last_checkpoint_that_cannot_be_saved_makes_it_a_failure(
    start: Start, forge: Forge
) -> None:
    """It says why; the checkpoint before it is still there."""
    process = start("ckpt.tmp_written=enospc@3")  # The first one has two files.
    push(forge.address())

    os.kill(process, SIGTERM)

    assert forge.ended() == 1
    said = forge.log.read_text().splitlines()[-1]
    assert said.startswith("Error: data_dir: expected files that can be used, ")
    assert said.endswith("got [Errno 28] failpoint ckpt.tmp_written")
    assert saved(start, forge) == (0, [0, 0])
