"""A child with clients, which does what it is told and times it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import grpc

import psworker
from benchmarks import product
from benchmarks.commands import elapsed, obey, timed


class _Seat:
    """One client, with gradients to push."""

    def __init__(self, client: psworker.Client) -> None:
        self._client = client
        self._snapshot = product.pull(client)
        self._gradients = product.gradients(self._snapshot.params.layout)

    def cycle(self) -> None:
        _, self._snapshot = self._client.exchange(self._gradients, self._snapshot)

    def push(self) -> None:
        self._client.push(self._gradients, self._snapshot)

    def pull(self) -> None:
        # Only a step later than the known one travels: a push comes before.
        self._snapshot = product.pull(self._client)

    def close(self) -> None:
        self._client.close()


class _Load:
    """Runs cycles without a pause, in a thread, until it is halted."""

    def __init__(self, cycle: Callable[[], None]) -> None:
        self._cycle = cycle
        self._halted = threading.Event()
        self._failure: Exception | None = None
        self.cycles = 0
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def halt(self) -> int:
        """End it, and return how many cycles there have been."""
        self._halted.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.cycles

    def _run(self) -> None:
        try:
            while not self._halted.is_set():
                self._cycle()
                self.cycles += 1
        except Exception as error:
            self._failure = error


class _Worker:
    """The commands; `seat` names one of the clients."""

    def __init__(self) -> None:
        self._seats: dict[str, _Seat] = {}
        self._cycles: dict[str, Callable[[], None]] = {}
        self._crowd = ExitStack()
        self._load: _Load | None = None

    def join(
        self, seat: str, address: str, same_host: bool, nbytes: int, count: int
    ) -> None:
        if seat in self._seats:
            self._seats.pop(seat).close()
        client = product.connect(address, same_host=same_host)
        client.initialize(product.variables(nbytes, count))
        self._seats[seat] = _Seat(client)
        self._cycles[seat] = self._seats[seat].cycle

    def join_table(self, seat: str, address: str, same_host: bool, rows: int) -> None:
        client = self._crowd.enter_context(
            product.connect(address, same_host=same_host)
        )
        product.initialize_table(client, rows)
        self._cycles[seat] = product.row_cycle(client, rows)

    def cycles(self, seat: str, seconds: float, at_least: int) -> list[float]:
        return timed(self._cycles[seat], seconds, at_least)

    def halves(self, seat: str, seconds: float, at_least: int) -> list[list[float]]:
        """Push and pull in turns; returns the times of the pushes, then the pulls."""
        client = self._seats[seat]
        pushes: list[float] = []
        pulls: list[float] = []

        def both() -> None:
            pushes.append(elapsed(client.push))
            pulls.append(elapsed(client.pull))

        timed(both, seconds, at_least)
        return [pushes[1:], pulls[1:]]

    def start_load(self, seat: str) -> None:
        self._load = _Load(self._seats[seat].cycle)

    def halt_load(self) -> int:
        assert self._load is not None
        return self._load.halt()

    def gather(self, address: str, same_host: bool, count: int) -> None:
        """Connect many clients, which then do nothing."""
        with _connections_of_their_own():
            for _ in range(count):
                client = product.connect(address, same_host=same_host)
                product.pull(self._crowd.enter_context(client))

    def push_together(
        self, address: str, same_host: bool, count: int, seconds: float
    ) -> int:
        """Let many clients push at once, and return how many pushes there were."""
        with ExitStack() as stack, _connections_of_their_own():
            seats = [
                _Seat(
                    stack.enter_context(product.connect(address, same_host=same_host))
                )
                for _ in range(count)
            ]
            with ThreadPoolExecutor(count) as pool:
                times = pool.map(lambda seat: timed(seat.push, seconds, 1), seats)
                # The first of each is not counted among the times.
                return sum(len(each) + 1 for each in times)

    def disperse(self) -> None:
        self._crowd.close()


@contextmanager
def _connections_of_their_own() -> Any:
    """Give every client a connection, as if each had its own process.

    Left alone, gRPC lets all channels of a process that call one address share one.
    """
    plain = grpc.insecure_channel

    def lone(address: str, options: Any = None, **more: Any) -> grpc.Channel:
        own = ("grpc.use_local_subchannel_pool", 1)
        return plain(address, (*(options or ()), own), **more)

    with mock.patch.object(grpc, "insecure_channel", lone):
        yield


def main() -> None:
    """Take commands until the input ends."""
    worker = _Worker()
    names = [name for name in dir(worker) if not name.startswith("_")]
    obey({name: getattr(worker, name) for name in names})


if __name__ == "__main__":
    main()
