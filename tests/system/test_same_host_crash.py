"""Workers of a server's own host that die, stop for a while, or lose the server."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import psworker
from pswire.errors import GenerationError, NotInitializedError
from pswire.values import Verdict

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory without a name"
)

StartProcess = Callable[..., "Process"]
Serve = Callable[..., tuple["Process", str]]
ConnectNear = Callable[[str], psworker.Client]

TIMEOUT_S = 60.0
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


class Process(subprocess.Popen[str]):
    """A Python process whose output is read line by line; it never hangs a test."""

    def __init__(self, *arguments: str, environment: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        super().__init__(
            [sys.executable, *arguments],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        )
        self._alarm = threading.Timer(TIMEOUT_S, self.kill)
        self._alarm.start()

    def line(self) -> str:
        """Wait for its next line."""
        assert self.stdout is not None
        return self.stdout.readline().rstrip("\n")

    def ask(self) -> str:
        """Send it an empty line, and wait for its next one."""
        assert self.stdin is not None
        self.stdin.write("\n")
        self.stdin.flush()
        return self.line()

    def memories(self) -> int:
        """Return how many mappings of shared memory it has."""
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return sum("memfd:asyncps" in line for line in lines)

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def files(self) -> int:
        """Return how many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def __exit__(self, *error: Any) -> None:
        self.kill()
        self._alarm.cancel()
        self._alarm.join()
        super().__exit__(*error)

    def __enter__(self) -> Self:
        return self


@pytest.fixture
def start_process() -> Iterator[StartProcess]:
    """Start processes that end with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> Process:
            return stack.enter_context(Process(*arguments, environment=environment))

        yield start


@pytest.fixture
def home() -> Iterator[Path]:
    """Keep a folder for the servers' sockets, whose paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="ps-") as home:
        yield Path(home)


@pytest.fixture
def serve(start_process: StartProcess, home: Path) -> Serve:
    """Start `psserver serve`; returns the process and its address."""

    def start(port: str = "0") -> tuple[Process, str]:
        process = start_process(
            *("-m", "psserver", "serve", "--rule", "sgd", "-a", "learning_rate=1.0"),
            *("--max-staleness", "off", "--port", port, "--http-port", "off"),
            TMPDIR=str(home),
        )
        first = process.line()
        assert first.startswith("listening on ")
        return process, first.removeprefix("listening on ")

    return start


@pytest.fixture
def connect_near() -> Iterator[ConnectNear]:
    """Connect clients that close with the test."""
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(psworker.connect(address))


def wait_until(is_so: Callable[[], bool], client: psworker.Client) -> None:
    """Wait for what no event of this process tells; the server has turns meanwhile."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so() and time.monotonic() < deadline:
        client.status()


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
    before = server.memories(), server.threads(), server.files()
    clients = 16
    worker = start_process("-c", WORKER, address, str(clients), str(SIZE))
    assert worker.line() == "ready"
    alive = server.memories(), server.threads(), server.files()

    worker.send_signal(signal.SIGKILL)
    worker.wait(TIMEOUT_S)
    verdict, snapshot = other.exchange(UP, snapshot)
    wait_until(lambda: server.memories() <= before[0], other)
    wait_until(lambda: server.threads() < before[1] + clients // 2, other)
    wait_until(lambda: server.files() < before[2] + clients // 2, other)

    # Every client has memory for its gradients and one snapshot at least.
    assert alive[0] >= before[0] + 2 * clients
    assert alive[2] >= before[2] + clients
    assert server.memories() == before[0]
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

    worker.send_signal(signal.SIGSTOP)
    os.waitpid(worker.pid, os.WUNTRACED)
    mine = 20
    for _ in range(mine):
        verdict, snapshot = other.exchange(UP, snapshot)
        assert verdict.applied
    stopped_at = snapshot.step
    worker.send_signal(signal.SIGCONT)
    theirs = int(worker.ask())

    status = other.status()
    assert worker.wait(TIMEOUT_S) == 0
    assert status.step == mine + theirs >= stopped_at
    np.testing.assert_array_equal(other.pull().params["w"], np.full(SIZE, status.step))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_when_the_server_is_another_one_workers_go_on(
    serve: Serve, connect_near: ConnectNear, number: int
) -> None:
    """They bring the variables again, and go past gRPC again; what they hold stays."""
    first, address = serve()
    client = connect_near(address)
    client.initialize(ZEROS)
    held = client.exchange(UP, client.pull())[1]
    first.send_signal(number)
    first.wait(TIMEOUT_S)
    second, again = serve(address.rpartition(":")[2])
    assert again == address

    with pytest.raises(NotInitializedError, match="variables: expected to be init"):
        client.exchange(UP, held)
    assert client.initialize(ZEROS)
    with pytest.raises(GenerationError, match=r"generation: expected \w+, got \w+"):
        client.exchange(UP, held)
    verdict, new = client.exchange(UP, client.pull())

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert second.memories() >= 2
    for snapshot in (held, new):
        np.testing.assert_array_equal(snapshot.params["w"], np.ones(SIZE))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_sockets_folder_is_this_users_and_ends_with_the_server(
    serve: Serve, connect_near: ConnectNear, home: Path, number: int
) -> None:
    """Also while a worker is connected."""
    server, address = serve()
    client = connect_near(address)
    client.initialize(ZEROS)
    (folder,) = home.glob("asyncps-*")
    modes = [oct(path.stat().st_mode & 0o777) for path in (folder, *folder.iterdir())]

    server.send_signal(number)
    code = server.wait(TIMEOUT_S)

    assert modes == ["0o700", "0o600"]
    assert code == 0
    assert list(home.glob("asyncps-*")) == []
