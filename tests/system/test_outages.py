"""A server that is away for a while: its workers wait for it, and then lose no time."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import psworker
from kit.audit import Call, Calls, require_sound, work, zeros
from kit.processes import Served, Successors

InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]
Size = Callable[[int, int], int]

WORKERS = 4
DOWN_S = (1.0, 5.0, 20.0)
MEASURED_S = 1.0
TIMEOUT_S = 60.0


class Rate:
    """How many pushes a second workers get through."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def measure(self) -> float:
        """Wait until there were pushes for a second from now on; return how many."""
        first = len(self._calls.noted)
        assert self._calls.wait(lambda: self._lasted_s(first) >= MEASURED_S)
        return len(self._pushes(first)) / self._lasted_s(first)

    def reaches(self, rate: float, timeout_s: float) -> bool:
        """Wait until there were so many in the last second; say whether it was so."""
        first = len(self._calls.noted)

        def recent() -> int:
            since = time.monotonic_ns() - MEASURED_S * 1e9
            return sum(push.returned >= since for push in self._pushes(first))

        return self._calls.wait(lambda: recent() >= rate * MEASURED_S, timeout_s)

    def _lasted_s(self, first: int) -> float:
        pushes = self._pushes(first)
        return (pushes[-1].returned - pushes[0].returned) / 1e9 if pushes else 0.0

    def _pushes(self, first: int) -> list[Call]:
        return [call for call in self._calls.noted[first:] if call.pushed]


@pytest.fixture
def start_next(tmp_path: Path) -> Iterator[Callable[[], Served]]:
    """Start one server after another with the same log and at one address."""
    options = "--rule sgd -a learning_rate=1.0 --max-staleness off --http-port off"
    options += f" --durability log --data-dir {tmp_path}"
    servers = Successors(*options.split(), timeout_s=2 * TIMEOUT_S)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(servers.start())


@pytest.mark.soak
def test_workers_ride_through_outages_and_push_as_fast_as_before(
    start_next: Callable[[], Served],
    in_parallel: InParallel,
    size: Size,
) -> None:
    """Each is of a server that is killed; no worker ends, no push is lost."""
    server = start_next()
    address = server.address()
    calls, told = Calls(), threading.Event()
    rate = Rate(calls)

    def exchange(index: int) -> None:
        with psworker.connect(address, same_host=bool(index % 2)) as client:
            work(client, index, WORKERS, told, calls.note)

    def break_down(server: Served) -> None:
        try:
            for down_s in DOWN_S[: size(1, len(DOWN_S))]:
                before = rate.measure()
                server.end(signal.SIGKILL)
                told.wait(down_s)
                server = start_next()
                assert server.address() == address
                # Elsewhere more than this runs, and takes its share.
                enough, within_s = before * size(50, 80) / 100, size(20, 5)
                assert rate.reaches(enough, within_s), down_s
        finally:
            told.set()

    with psworker.connect(address) as client:
        client.initialize(zeros(WORKERS))
        workers = [partial(exchange, index) for index in range(WORKERS)]
        in_parallel([partial(break_down, server), *workers])
        require_sound(calls.noted, client.pull())
