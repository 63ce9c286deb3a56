"""Workers at servers, and how long each of them is measured."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

from benchmarks.figures import Series
from benchmarks.processes import Child

PATHS = ("gRPC", "same host")
FOUR_MODELS = "4 models and 200 MB"

MB = 10**6
SLOW_S = 600.0
_QUICK_NBYTES = 5 * MB  # More than one message takes: it still travels as a stream.
_QUICK_CYCLES = 3
_FEW_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: How often every contestant has its turn.
        quick: Whether to do only what shows that everything runs.
    """

    rounds: int
    quick: bool

    @property
    def few_rounds(self) -> int:
        """How often, where a round takes so long that what it measures is no noise."""
        return min(self.rounds, _FEW_ROUNDS)

    def burst(self, seconds: float, at_least: int) -> dict[str, Any]:
        """Return the length of a turn, as `timed` takes it."""
        if self.quick:
            return {"seconds": 0, "at_least": min(at_least, _QUICK_CYCLES)}
        return {"seconds": seconds, "at_least": at_least}

    def nbytes(self, nbytes: int) -> int:
        """Return the size to use in place of one."""
        return min(nbytes, _QUICK_NBYTES) if self.quick else nbytes

    def seconds(self, seconds: float) -> float:
        """Return how long to watch what does nothing."""
        return 0.2 if self.quick else seconds


@dataclass(frozen=True, slots=True)
class Model:
    """What a server keeps, and how a worker is timed on it.

    Attributes:
        nbytes: The size of all arrays.
        count: How many arrays, of the same size each.
        seconds: How long a turn lasts.
        cycles: How many cycles it has at least.
        rule: The rule's name among `product.RULES`.
    """

    nbytes: int
    count: int
    seconds: float
    cycles: int
    rule: str = "sgd"


class Server:
    """A server, and the process that it is in."""

    def __init__(self, child: Child, find: Callable[[], str]) -> None:
        """Take a process that has been started.

        Args:
            child: It may have other servers.
            find: Waits for the server to come up, and returns its address.
        """
        self.child = child
        self._find = find

    @cached_property
    def address(self) -> str:
        return self._find()

    def watch_cpu(self, seconds: float) -> float:
        """Return how much processor time it uses meanwhile, in seconds."""
        before = self.child.cpu_s
        time.sleep(seconds)
        return self.child.cpu_s - before


class Site:
    """A worker at a server."""

    def __init__(
        self,
        name: str,
        model: Model,
        effort: Effort,
        server: Server,
        worker: Child,
    ) -> None:
        """Describe it; `join` is to be called before the rest.

        Args:
            name: What its series begin with; it begins with the path itself.
            model: What the server keeps.
            effort: How long to measure.
            server: It may have other sites.
            worker: Likewise.
        """
        self.name = name
        self.same_host = name.startswith(PATHS[1])
        self.nbytes = effort.nbytes(model.nbytes)
        self.server = server
        self.worker = worker
        self._count = model.count
        self._burst = effort.burst(model.seconds, model.cycles)

    def join(self, *others: Child, warm_ups: int = 5) -> None:
        """Let the worker join, or others, and run some cycles that do not count.

        Server and worker take fresh memory at first, which the kernel has to clear.
        """
        for worker in others or (self.worker,):
            worker.call(
                "join",
                seat=self.name,
                address=self.server.address,
                same_host=self.same_host,
                nbytes=self.nbytes,
                count=self._count,
                timeout_s=SLOW_S,
            )
            self.run(worker, {"seconds": 0, "at_least": warm_ups})

    def run(self, worker: Child, burst: Mapping[str, float]) -> list[float]:
        """Run cycles, and return how long each took."""
        worker.begin("cycles", seat=self.name, **burst)
        return worker.end(SLOW_S)

    def cycle(self) -> dict[str, float]:
        """Measure cycles: their time, and what they cost server and worker."""
        before = self.server.child.cpu_s, self.worker.cpu_s
        times = self.run(self.worker, self._burst)
        after = self.server.child.cpu_s, self.worker.cpu_s
        server_s, worker_s = (b - a for a, b in zip(before, after, strict=True))
        return {
            f"{self.name} cycle": mean(times),
            f"{self.name} cycle, both ways": 2 * self._rate(times),
            f"{self.name}: server CPU a cycle": server_s / len(times),
            f"{self.name}: worker CPU a cycle": worker_s / len(times),
        }

    def halves(self) -> dict[str, float]:
        """Measure pushes and pulls, each by itself."""
        self.worker.begin("halves", seat=self.name, **self._burst)
        pushes, pulls = self.worker.end(SLOW_S)
        return {
            f"{self.name} push": self._rate(pushes),
            f"{self.name} pull": self._rate(pulls),
        }

    def peak(self) -> Series:
        """Return the most memory that the server has held, and a yardstick.

        The model before and after a step, a copy to send or receive, and gradients.
        """
        return {
            f"{self.name}: server peak RSS": [self.server.child.peak_rss_nbytes],
            FOUR_MODELS: [4 * self.nbytes + 200 * MB],
        }

    def together(self, *workers: Child) -> float:
        """Return how many cycles a second the workers do at the same time."""
        for worker in workers:
            worker.begin("cycles", seat=self.name, **self._burst)
        all_times = [worker.end(SLOW_S) for worker in workers]
        return sum(len(times) / sum(times) for times in all_times)

    def _rate(self, times: list[float]) -> float:
        return self.nbytes / MB / mean(times)
