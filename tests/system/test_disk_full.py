"""A disk without room: nothing acknowledged is lost, and all goes on once there is."""

import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

import psserver
import psworker
from kit.processes import Served
from psserver import admin
from psserver.rulespec import resolve
from pswire.errors import ServerUnavailableError

StartServer = Callable[..., psserver.Server]
OpenPlace = Callable[[str], "Place"]
Recover = Callable[[str, Path], psserver.Server]
Connect = Callable[[str, int, float], psworker.Client]
InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Mark = Callable[[int, int], npt.NDArray[np.float32]]
Size = Callable[[int, int], int]

WORKERS = 4
MOST = 50  # Pushes of one worker in one round.
SIZE = 4000  # Elements, at the least: a push is larger than what is left of a page.
UP = {"A": np.full(SIZE, -1.0, np.float32)}
RULE = "sgd(learning_rate=1.0)"


class Place(Protocol):
    """A server in log or checkpoint mode, whose disk can be filled.

    Attributes:
        address: HOST:PORT.
        folder: Its data directory.
    """

    address: str
    folder: Path

    def fill(self) -> None:
        """Take all the room that there is left."""

    def free(self) -> None:
        """Give it back."""


class Tmpfs:
    """A server of this process, whose file system has 8 MB."""

    def __init__(self, mount: Path, start: Callable[[Path], psserver.Server]) -> None:
        self.folder = mount / "data"
        self.address = start(self.folder).address
        self._filler = mount / "filler"

    def fill(self) -> None:
        with suppress(OSError), open(self._filler, "wb", buffering=0) as filler:
            while filler.write(bytes(2**14)):
                pass

    def free(self) -> None:
        self._filler.unlink()


class Limited:
    """A server that is a process, which may not write large files."""

    def __init__(self, folder: Path, server: Served) -> None:
        self.folder = folder
        self.address = server.address()
        self._pid = server.pid

    def fill(self) -> None:
        self._set(SIZE)

    def free(self) -> None:
        self._set(resource.RLIM_INFINITY)

    def _set(self, nbytes: int) -> None:
        hard = resource.RLIM_INFINITY
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (nbytes, hard))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """Make a file system of 8 MB."""
    folder = tmp_path / "mount"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a file system, and not in every container")

    yield folder

    is_free = not subprocess.run(["umount", str(folder)]).returncode
    if not is_free:  # It is not to outlive the test even so.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert is_free, "a server that has stopped has a file open"


@pytest.fixture
def recover(start_server: StartServer) -> Recover:
    """Start a server of this process on a data directory."""

    def recover(durability: str, folder: Path) -> psserver.Server:
        return start_server(
            resolve("sgd", {"learning_rate": 1.0}),
            rule_name=RULE,
            durability=durability,
            data_dir=folder,
            checkpoint_every="3600s",
        )

    return recover


@pytest.fixture
def tmpfs(mount: Path, recover: Recover) -> OpenPlace:
    """Start a server of this process on a file system of 8 MB."""
    return lambda durability: Tmpfs(mount, partial(recover, durability))


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[OpenPlace]:
    """Start a server process, which ends with the test."""
    folder = tmp_path / "data"
    with ExitStack() as stack:

        def start(durability: str) -> Limited:
            options = "--rule sgd -a learning_rate=1.0 --max-staleness off --port 0"
            options += f" --http-port off --durability {durability}"
            options += f" --checkpoint-every 3600s --data-dir {folder}"
            return Limited(folder, stack.enter_context(Served(*options.split())))

        yield start


@pytest.fixture(params=["tmpfs", "limited"])
def open_place(request: pytest.FixtureRequest) -> OpenPlace:
    """Start a server in a durability mode where there is little room."""
    opened: OpenPlace = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connect clients that close with the test; every other one goes past gRPC."""
    with ExitStack() as stack:
        yield lambda address, number, outage_s: stack.enter_context(
            psworker.connect(address, outage_s=outage_s, same_host=bool(number % 2))
        )


def left_by_a_kill(place: Place, folder: Path) -> Path:
    """Copy what is on the disk while no push is under way; a probe comes and goes."""
    copied: Path = shutil.copytree(
        place.folder, folder, ignore=shutil.ignore_patterns("probe")
    )
    return copied


@pytest.mark.soak
def test_in_log_mode_nothing_acknowledged_is_lost_however_often_the_disk_is_full(
    open_place: OpenPlace,
    connect: Connect,
    recover: Recover,
    in_parallel: InParallel,
    mark: Mark,
    size: Size,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who pushes is told to come again, who pulls notices nothing; no restart."""
    caplog.set_level(logging.INFO, "psworker")
    rounds = size(3, 20)
    place = open_place("log")
    elements = max(SIZE, rounds * WORKERS * MOST)
    numbers = iter(range(elements))
    patient = [connect(place.address, i, 30.0) for i in range(WORKERS)]
    hasty = [connect(place.address, i, 0.0) for i in range(WORKERS)]
    patient[0].initialize({"A": np.zeros(elements, np.float32)})
    expected = np.zeros(elements, np.float32)

    def push(client: psworker.Client) -> None:
        number = next(numbers)
        assert client.push({"A": mark(number, elements)}, step_read=0).applied
        expected[number] = 1

    def push_most(client: psworker.Client) -> None:
        for _ in range(MOST):
            push(client)

    def push_until_refused(client: psworker.Client) -> None:
        with pytest.raises(ServerUnavailableError, match="expected to write"):
            push_most(client)

    for _ in range(rounds):
        in_parallel([partial(push, client) for client in patient])
        assert admin.is_healthy(place.address)
        admin.save_checkpoint(place.address)
        in_parallel([place.fill, *(partial(push_until_refused, c) for c in hasty)])
        assert not admin.is_healthy(place.address)
        for client in (*patient, *hasty):
            snapshot = client.pull()
            assert snapshot.params["A"].tolist() == expected.tolist()
        left = left_by_a_kill(place, tmp_path / f"left at {snapshot.step}")
        place.free()
    in_parallel([partial(push, client) for client in patient])

    assert "trying gRPC" not in caplog.text
    last = patient[0].pull()
    assert last.params["A"].tolist() == expected.tolist()
    for folder, kept in (
        (left, snapshot),
        (left_by_a_kill(place, tmp_path / "end"), last),
    ):
        found = connect(recover("log", folder).address, 0, 0.0).pull()
        assert (found.step, found.generation) == (kept.step, kept.generation)
        assert found.params["A"].tolist() == kept.params["A"].tolist()


def test_in_checkpoint_mode_training_goes_on_without_room(
    open_place: OpenPlace, connect: Connect, recover: Recover, tmp_path: Path
) -> None:
    """The last checkpoint stays good, and once there is room the next one is."""
    place = open_place("checkpoint")
    client = connect(place.address, 0, 0.0)
    client.initialize({"A": np.zeros(SIZE, np.float32)})

    def push(times: int) -> None:
        for _ in range(times):
            assert client.push(UP, client.pull()).applied

    push(5)
    admin.save_checkpoint(place.address)
    place.fill()
    push(2)
    for _ in range(2):
        with pytest.raises(ServerUnavailableError, match=r"No space|too large"):
            admin.save_checkpoint(place.address)
    push(1)

    full = admin.status(place.address)
    assert admin.is_healthy(place.address)
    assert (full.step, full.counts.applied) == (8, 8)
    assert (full.durability.saved_step, full.durability.failures) == (5, 2)
    found = recover("checkpoint", left_by_a_kill(place, tmp_path / "left"))
    assert_at(found, 5)
    place.free()
    assert admin.save_checkpoint(place.address)[1] == 8
    assert_at(recover("checkpoint", left_by_a_kill(place, tmp_path / "then")), 8)


def assert_at(server: psserver.Server, step: int) -> None:
    """Check that a server has gone on from a step, with what had been pushed then."""
    with psworker.connect(server.address) as client:
        snapshot = client.pull()
    assert snapshot.step == step
    assert snapshot.params["A"].tolist() == [step] * SIZE
