"""Workers of a server's own host that die, stop for a while, or lose the server."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import psworker
from kit.processes import Process, Served, wait_until
from pswire.errors import GenerationError, NotInitializedError
from pswire.values import Verdict

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory without a name"
)

StartProcess = Callable[..., Process]
Serve = Callable[..., tuple[Served, str]]
ConnectNear = Callable[[str], psworker.Client]

SIZE = 2**18  # Elements: 1 MiB, so that bodies lie in shared memory.
ZEROS = {"w": np.zeros(SIZE, np.float32)}
UP = {"w": np.full(SIZE, -1, np.float32)}  # One push adds 1 everywhere.

# Exchanges with several clients in turn, says "ready" when each has, goes on until it
# is told to end, and then says how often it has exchanged.
WORKER = """
import sys, threading
from contextlib import ExitStack
import numpy as np
import psworker

told = threading.Event()

def listen():
    sys.stdin.readline()
    told.set()

threading.Thread(target=listen, daemon=True).start()
address, clients, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
up = {"w": np.full(size, -1, np.float32)}
with ExitStack() as stack:
    workers = [stack.enter_context(psworker.connect(address)) for _ in range(clients)]
    snapshots = [worker.pull() for worker in workers]
    done = 0
    while not told.is_set():
        for place, worker in enumerate(workers):
            verdict, snapshots[place] = worker.exchange(up, snapshots[place])
            assert verdict.applied and not verdict.duplicate
            assert (snapshots[place].params["w"] == snapshots[place].step).all()
            done += 1
        if done == clients:
            print("ready", flush=True)
    print(done, flush=True)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Keep a folder for the servers' sockets, whose paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="ps-") as home:
        yield Path(home)


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    """Start `psserver serve`; returns the process and its address."""
    options = "--rule", "sgd", "-a", "learning_rate=1.0", "--max-staleness", "off"
    with ExitStack() as stack:

        def start(port: str = "0") -> tuple[Served, str]:
            server = Served(
                *(*options, "--port", port, "--http-port", "off"),
                environment={"TMPDIR": str(home)},
            )
            return stack.enter_context(server), server.address()

        yield start


def memories(process: Process) -> int:
    """Return how many mappings of shared memory a process has."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return sum("memfd:asyncps" in line for line in lines)


def test_a_worker_that_is_killed_leaves_nothing_in_the_server(
    serve: Serve, start_process: StartProcess, connect_near: ConnectNear
) -> None:
    """In the midst of its exchanges; neither memory nor threads nor open files."""
    server, address = serve()
    other = connect_near(address)
    other.initialize(ZEROS)
    snapshot = other.pull()
    for _ in range(5):
        snapshot = other.exchange(UP, snapshot)[1]
    before = memories(server), server.threads(), server.files()
    clients = 16
    worker = start_process("-c", WORKER, address, str(clients), str(SIZE))
    assert worker.line() == "ready"
    alive = memories(server), server.threads(), server.files()

    worker.end(signal.SIGKILL)
    verdict, snapshot = other.exchange(UP, snapshot)
    wait_until(lambda: memories(server) <= before[0], other)
    wait_until(lambda: server.threads() < before[1] + clients // 2, other)
    wait_until(lambda: server.files() < before[2] + clients // 2, other)

    # Every client has memory for its gradients and one snapshot at least.
    assert alive[0] >= before[0] + 2 * clients
    assert alive[2] >= before[2] + clients
    assert memories(server) == before[0]
    # gRPC has some of its own, which come and go.
    assert server.threads() < before[1] + clients // 2
    assert server.files() < before[2] + clients // 2
    assert verdict.applied
    last = other.exchange(UP, snapshot)[1]
    status = other.status()
    assert last.step == status.step == status.counts.applied
    np.testing.assert_array_equal(last.params["w"], np.full(SIZE, last.step))


def test_a_worker_that_is_stopped_blocks_nobody(
    serve: Serve, start_process: StartProcess, connect_near: ConnectNear
) -> None:
    """It goes on when it is continued, with every one of its exchanges counted."""
    _, address = serve()
    other = connect_near(address)
    other.initialize(ZEROS)
    snapshot = other.pull()
    worker = start_process("-c", WORKER, address, "1", str(SIZE))
    assert worker.line() == "ready"

    worker.pause()
    mine = 20
    for _ in range(mine):
        verdict, snapshot = other.exchange(UP, snapshot)
        assert verdict.applied
    stopped_at = snapshot.step
    worker.go_on()
    worker.tell()
    theirs = int(worker.line())

    status = other.status()
    assert worker.wait() == 0
    assert status.step == mine + theirs >= stopped_at
    np.testing.assert_array_equal(other.pull().params["w"], np.full(SIZE, status.step))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_when_the_server_is_another_one_workers_go_on(
    serve: Serve, connect_near: ConnectNear, number: signal.Signals
) -> None:
    """They bring the variables again, and go past gRPC again; what they hold stays."""
    first, address = serve()
    client = connect_near(address)
    client.initialize(ZEROS)
    held = client.exchange(UP, client.pull())[1]
    first.end(number)
    second, again = serve(address.rpartition(":")[2])
    assert again == address

    with pytest.raises(NotInitializedError, match="variables: expected to be init"):
        client.exchange(UP, held)
    assert client.initialize(ZEROS)
    with pytest.raises(GenerationError, match=r"generation: expected \w+, got \w+"):
        client.exchange(UP, held)
    verdict, new = client.exchange(UP, client.pull())

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert memories(second) >= 2
    for snapshot in (held, new):
        np.testing.assert_array_equal(snapshot.params["w"], np.ones(SIZE))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_sockets_folder_is_this_users_and_ends_with_the_server(
    serve: Serve, connect_near: ConnectNear, home: Path, number: signal.Signals
) -> None:
    """Also while a worker is connected."""
    server, address = serve()
    client = connect_near(address)
    client.initialize(ZEROS)
    (folder,) = home.glob("asyncps-*")
    modes = [oct(path.stat().st_mode & 0o777) for path in (folder, *folder.iterdir())]

    code = server.end(number)

    assert modes == ["0o700", "0o600"]
    assert code == 0
    assert list(home.glob("asyncps-*")) == []
