"""Starts the contestants of a case: limits, and workers at servers."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Self, TypeVar

from benchmarks import product
from benchmarks.figures import Burst, Series, interleave
from benchmarks.processes import LOOPBACK, Child, Children, Place
from benchmarks.sites import MB, Effort, Model, Server, Site

Made = TypeVar("Made")
Ends = tuple[Place, Place]

_NEAR = LOOPBACK, LOOPBACK


class MachineError(Exception):
    """The machine lacks what a case needs."""


class Rig:
    """The processes of one case after another.

    Every case has fresh ones, which no other has left larger than it found them. Most
    of a quick run would go into starting Python and JAX: there, what has the same role
    in several cases is started once, and only the first server is the command's.
    """

    def __init__(self, effort: Effort) -> None:
        """Start nothing yet."""
        self.effort = effort
        self._children = Children()
        self._shared: dict[Hashable, Any] = {}

    def worker(self, role: str = "first") -> Child:
        return self._start(role, "benchmarks.worker")

    def trainer(self, role: str, place: Place) -> Child:
        return self._start(role, "benchmarks.trainer", place)

    def memory(self) -> Child:
        return self._start("memory", "benchmarks.memory")

    def disk(self) -> Child:
        return self._start("disk", "benchmarks.disk")

    def host(self, place: Place = LOOPBACK) -> Child:
        """Start a process for several servers; see `lodge`."""
        return self._start("host", "benchmarks.servers", place)

    def link(self) -> tuple[Place, Place]:
        """Start a link between two places, and return them.

        Raises:
            MachineError: It has no network namespaces, or they are not allowed.
        """
        answer = json.loads(self._start("link", "benchmarks.link").read_line())
        if "refused" in answer:
            raise MachineError(
                "expected root's right to network namespaces and their devices, "
                f"got {answer['refused']}"
            )
        one, other = answer["places"]
        return Place(*one), Place(*other)

    def server(self, model: Model, place: Place = LOOPBACK) -> Server:
        """Start a server, or find the one of such a model that a quick run has."""
        role = (self.effort.nbytes(model.nbytes), model.count, model.rule, place)
        return self._once(role, lambda: self._serve(model.rule, place))

    def site(
        self, name: str, model: Model, worker: Child, server: Server | None = None
    ) -> Site:
        """Describe a worker at a server, which is a new one if none is given."""
        at = server or self.server(model)
        return Site(name, model, self.effort, at, worker)

    def echo(self, name: str, family: str, nbytes: int, ends: Ends = _NEAR) -> Burst:
        """Return what times a message of so many bytes and an answer as long."""
        times = self._socket(family, nbytes, True, self.effort.burst(0.3, 5), ends)
        return lambda: {name: mean(times())}

    def stream(self, name: str, nbytes: int, ends: Ends = _NEAR) -> Burst:
        """Return what measures how fast one socket takes so many bytes, in MB/s."""
        nbytes = self.effort.nbytes(nbytes)
        times = self._socket("tcp", nbytes, False, self.effort.burst(0.3, 2), ends)
        return lambda: {name: nbytes / MB / mean(times())}

    def unary(self, name: str, nbytes: int, seconds: float = 0.3) -> Burst:
        """Return what times a bare unary call of so many bytes each way."""
        far, near = self._pair(_NEAR)
        address = _later(lambda: far.call("serve_unary"))
        burst = self.effort.burst(seconds, 5)

        def run() -> dict[str, float]:
            times = near.call("call_unary", address=address(), nbytes=nbytes, **burst)
            return {name: mean(times)}

        return run

    def copy(self, name: str, nbytes: int) -> Burst:
        """Return what times a copy of so many bytes within memory."""
        child = self.memory()
        arguments: dict[str, Any] = self.effort.burst(0.2, 3) | {
            "nbytes": self.effort.nbytes(nbytes)
        }

        def run() -> dict[str, float]:
            return {name: mean(child.call("copies", **arguments))}

        return run

    def pairs(self, sites: Sequence[Site], second: Child) -> Series:
        """Measure one worker at each site, and two: call this after all else."""
        bursts: list[Burst] = []
        for site in sites:
            site.join(second)
            bursts += [_team(site, "one worker"), _team(site, "two workers", second)]
        return interleave(self.effort.rounds, bursts)

    def close(self, site: Site) -> None:
        """Stop a site's server and worker, which gives their memory back."""
        if not self.effort.quick:
            self._children.end(site.server.child, site.worker)

    def clear(self) -> None:
        """End what a case has started."""
        if not self.effort.quick:
            self._children.end_all()

    def require_memory(self, nbytes: int) -> None:
        """Check that the machine has so much to spare.

        Raises:
            MachineError: It has not.
        """
        rows = Path("/proc/meminfo").read_text().splitlines()
        kib = next(row for row in rows if row.startswith("MemAvailable")).split()[1]
        if int(kib) * 1024 < self.effort.nbytes(nbytes):
            raise MachineError(
                f"memory: expected {nbytes / 1e9:.1f} GB to be available, "
                f"got {int(kib) * 1024 / 1e9:.1f} GB"
            )

    def _socket(
        self,
        family: str,
        nbytes: int,
        echo: bool,
        burst: Mapping[str, float],
        ends: Ends,
    ) -> Callable[[], list[float]]:
        far, near = self._pair(ends)
        host = ends[0].host
        address = _later(lambda: far.call("listen", family=family, host=host))
        arguments: dict[str, Any] = {"family": family, "nbytes": nbytes, "echo": echo}
        return lambda: near.call("send", address=address(), **arguments, **burst)

    def _pair(self, ends: Ends) -> tuple[Child, Child]:
        module, (far, near) = "benchmarks.limits", ends
        return self._start("far end", module, far), self._start(
            "near end", module, near
        )

    def _serve(self, rule: str, place: Place) -> Server:
        if any(isinstance(made, Server) for made in self._shared.values()):
            return lodge(self.host(place), rule, place)
        options = product.serve_options(rule, place.host)
        child = self._children.start("psserver", "serve", *options, place=place)
        return Server(child, lambda: child.read_line().split()[-1])

    def _start(self, role: str, module: str, place: Place = LOOPBACK) -> Child:
        return self._once(
            (role, place),
            lambda: self._children.start(module, place=place),
        )

    def _once(self, role: Hashable, make: Callable[[], Made]) -> Made:
        if not self.effort.quick:
            return make()
        if role not in self._shared:
            self._shared[role] = make()
        return self._shared[role]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._children.end_all()


def lodge(host: Child, rule: str, place: Place = LOOPBACK, **options: Any) -> Server:
    """Start a server in a process with others."""
    return Server(
        host, lambda: host.call("serve", rule=rule, host=place.host, **options)
    )


def _team(site: Site, name: str, *others: Child) -> Burst:
    return lambda: {f"{site.name}, {name}": site.together(site.worker, *others)}


def _later(make: Callable[[], Any]) -> Callable[[], Any]:
    """Put off what would wait for a child to come up."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get
