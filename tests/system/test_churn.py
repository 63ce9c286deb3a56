"""Workers that are killed and relaunched: training goes on, the server stays small."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import psworker
from kit.audit import Call, require_sound, zeros
from kit.processes import Process, Served, wait_until

Size = Callable[[int, int], int]

TIMEOUT_S = 300.0


class Workers:
    """Workers of an audit, each of which can be launched again under its name."""

    def __init__(
        self, address: str, folder: Path, number: int, stack: ExitStack
    ) -> None:
        self.names = [f"worker-{index}" for index in range(number)]
        self.launches = 0
        self._address = address
        self._folder = folder
        self._stack = stack
        self._running: dict[int, Process] = {}

    def launch(self, index: int) -> None:
        """Start one; it is there once `wait` has returned."""
        log = self._folder / f"{self.launches}.log"
        self.launches += 1
        place = str(index), str(len(self.names)), str(log)
        self._running[index] = self._stack.enter_context(
            Process(
                *("-m", "kit.audit", self._address, self.names[index], *place),
                timeout_s=TIMEOUT_S,
            )
        )

    def wait(self, index: int) -> None:
        """Wait until one has had an answer to a push."""
        assert self._running[index].line() == "ready"

    def kill(self, index: int) -> None:
        """End one in the midst of what it does."""
        self._running[index].end(signal.SIGKILL)

    def finish(self) -> None:
        """Let all end; none of them has failed."""
        for process in self._running.values():
            assert process.stdin
            process.stdin.close()
        assert {process.wait() for process in self._running.values()} == {0}

    def calls(self) -> list[Call]:
        """Return the calls of all, those of the killed too."""
        logs = [self._folder / f"{number}.log" for number in range(self.launches)]
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return list(map(Call.read, lines))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """End what the test has started."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.soak
def test_one_worker_after_the_other_is_killed_and_relaunched(
    stack: ExitStack, size: Size, tmp_path: Path
) -> None:
    """By all their logs it is one history; the server is as large as at the start."""
    options = "--rule sgd -a learning_rate=1.0 --max-staleness off --port 0"
    options += f" --http-port off --durability log --data-dir {tmp_path / 'data'}"
    server = stack.enter_context(Served(*options.split(), timeout_s=TIMEOUT_S))
    client = stack.enter_context(psworker.connect(server.address(), name="operator"))
    number, kills = size(3, 8), size(3, 30)
    client.initialize(zeros(number))
    workers = Workers(server.address(), tmp_path, number, stack)
    for index in range(number):
        workers.launch(index)
    for index in range(number):
        workers.wait(index)
    threads, files = server.threads(), server.files()

    for kill in range(kills):
        due = time.monotonic() + size(0, 2)
        workers.kill(kill % number)
        workers.launch(kill % number)
        workers.wait(kill % number)
        threading.Event().wait(due - time.monotonic())

    wait_until(lambda: server.files() <= files, client)
    assert server.files() <= files
    # gRPC has some of its own, and its pool has as many as were ever wanted at once.
    assert server.threads() <= threads + number
    workers.finish()
    last, status = client.pull(), client.status()
    require_sound(workers.calls(), last, unknown=kills)
    rows, counts = status.workers, status.counts
    assert [row.name for row in rows] == ["operator", *workers.names]
    assert [row.counts.applied for row in rows] == [0, *last.params["A"].tolist()]
    assert (counts.applied, counts.dropped, counts.duplicate) == (last.step, 0, 0)
    assert sum(counts.rejected.values()) <= kills
