"""The case of workers behind a link: what each option makes of their training."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Burst, Claim, Series, interleave
from benchmarks.link import DELAY_S, RATE
from benchmarks.processes import Child, Place
from benchmarks.rig import Rig
from benchmarks.sites import MB, SLOW_S, Effort, Model, Server

_MODEL_20MB = Model(20 * MB, 20, seconds=4, cycles=1)
_MODEL_4KB = Model(4_000, 1, seconds=1, cycles=1)
_COMPUTE_S = 0.05

_TCP = "link: raw TCP, one way"
_PING = "link: raw TCP, 4 KB there and back"
_NOMINAL_RATE = "1 Gbit/s"
_NOMINAL_PING = "twice 5 ms"


@dataclass(frozen=True, slots=True)
class _Contestant:
    """A worker's options.

    Attributes:
        name: What they are called.
        connecting: Those of `connect`.
        training: Those of `train`.
    """

    name: str
    connecting: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = _Contestant("plain")
_SMALLER = (
    _Contestant("bf16", {"wire_dtype": "bf16"}),
    _Contestant("bf16:pull", {"wire_dtype": "bf16:pull"}),
    _Contestant("bf16:push", {"wire_dtype": "bf16:push"}),
    _Contestant("topk:0.01", {"compression": "topk:0.01"}),
    _Contestant("bf16 + topk:0.01", {"wire_dtype": "bf16", "compression": "topk:0.01"}),
)
_SOONER = (
    _Contestant("prefetch", training={"prefetch": True}),
    _Contestant("background push", training={"background_push": True}),
    _Contestant(
        "prefetch + background",
        training={"prefetch": True, "background_push": True},
    ),
)

_FIELDS = {
    "20 MB": (_MODEL_20MB, (_PLAIN, *_SMALLER, *_SOONER)),
    # What takes no time to transfer takes none less if it is smaller.
    "4 KB": (_MODEL_4KB, (_PLAIN, *_SOONER)),
}
"""Who takes part with which model."""


class _Entry:
    """A contestant with a model, at a server over the link."""

    def __init__(
        self,
        name: str,
        contestant: _Contestant,
        model: Model,
        effort: Effort,
        server: Server,
    ) -> None:
        """Describe it.

        Args:
            name: What its series begin with.
            contestant: The workers' options.
            model: What the server keeps.
            effort: How long to measure.
            server: It may have other entries.
        """
        self.name = name
        self._server = server
        self._arguments = effort.burst(model.seconds, model.cycles) | {
            "nbytes": effort.nbytes(model.nbytes),
            "count": model.count,
            "compute_s": _COMPUTE_S,
            "connecting": contestant.connecting,
            "training": contestant.training,
        }

    def alone(self, worker: Child) -> dict[str, float]:
        """Measure one worker."""
        (cycle,), staleness = self._train(worker)
        return {
            **{f"{self.name}: {what}": value for what, value in cycle.items()},
            f"{self.name}, one worker": 1 / cycle["a cycle"],
            f"{self.name}: staleness, one worker": staleness,
        }

    def together(self, *workers: Child) -> dict[str, float]:
        """Measure two workers, which share the link."""
        cycles, staleness = self._train(*workers)
        return {
            f"{self.name}, two workers": sum(1 / cycle["a cycle"] for cycle in cycles),
            f"{self.name}: staleness, two workers": staleness,
        }

    def _train(self, *workers: Child) -> tuple[list[dict[str, float]], float]:
        """Let workers train at once, and return their cycles and the mean staleness."""
        before = self._staleness(workers[0])
        for worker in workers:
            worker.begin(
                "train",
                address=self._server.address,
                server_pid=self._server.child.pid,
                **self._arguments,
            )
        cycles = [worker.end(SLOW_S) for worker in workers]
        judged = self._staleness(workers[0]) - before
        return cycles, sum(steps * n for steps, n in judged.items()) / judged.total()

    def _staleness(self, worker: Child) -> Counter[int]:
        return Counter(dict(worker.call("staleness", address=self._server.address)))


def run(rig: Rig) -> Series:
    """Measure every contestant with one worker, and with two."""
    ends = far, near = rig.link()
    one, other = rig.trainer("first", near), rig.trainer("second", near)
    entries = list(_entries(rig, far))
    bursts: list[Burst] = [
        rig.stream(_TCP, 100 * MB, ends),
        rig.echo(_PING, "tcp", 4_000, ends),
    ]
    for entry in entries:
        bursts += [_alone(entry, one), _together(entry, one, other)]
    series = interleave(rig.effort.few_rounds, bursts)
    for entry in entries:
        series[_bound(entry.name)] = _bounds(entry.name, series)
    return series | {
        _NOMINAL_RATE: [RATE / MB],
        _NOMINAL_PING: [2 * DELAY_S],
        "a step": [1.0],
        **{
            _variables(size): [rig.effort.nbytes(model.nbytes)]
            for size, (model, _) in _FIELDS.items()
        },
    }


def claims() -> Iterator[Claim]:
    """Yield what is told of the link, and of every contestant."""
    yield Claim(_TCP, _NOMINAL_RATE, unit="MB/s")
    yield Claim(_PING, _NOMINAL_PING)
    for size, (_, contestants) in _FIELDS.items():
        for contestant in contestants:
            yield from _claims_of(size, contestant)


def _claims_of(size: str, contestant: _Contestant) -> Iterator[Claim]:
    name, plain = f"{size}, {contestant.name}", f"{size}, {_PLAIN.name}"
    yield Claim(f"{name}, one worker", _bound(name), unit="cycles/s")
    if contestant is not _PLAIN:
        for workers in ("one worker", "two workers"):
            measured, against = f"{name}, {workers}", f"{plain}, {workers}"
            yield Claim(measured, against, unit="cycles/s")
    yield Claim(f"{name}, two workers", f"{name}, one worker", unit="cycles/s")
    for way in ("pulled", "pushed"):
        yield Claim(f"{name}: bytes {way} a cycle", _variables(size), unit="B")
    for who in ("worker", "server"):
        yield Claim(f"{name}: {who} CPU a cycle", f"{name}: a cycle")
    for workers in ("one worker", "two workers"):
        yield Claim(f"{name}: staleness, {workers}", "a step", unit="steps")


def _entries(rig: Rig, place: Place) -> Iterator[_Entry]:
    for size, (model, contestants) in _FIELDS.items():
        server = rig.server(model, place)
        for contestant in contestants:
            name = f"{size}, {contestant.name}"
            yield _Entry(name, contestant, model, rig.effort, server)


def _alone(entry: _Entry, worker: Child) -> Burst:
    return lambda: entry.alone(worker)


def _together(entry: _Entry, *workers: Child) -> Burst:
    return lambda: entry.together(*workers)


def _bounds(name: str, series: Series) -> list[float]:
    """Return the cycles a second that wait for computation and bytes in turn."""
    rounds = zip(
        series[_TCP],
        series[_PING],
        series[f"{name}: bytes pulled a cycle"],
        series[f"{name}: bytes pushed a cycle"],
        strict=True,
    )
    return [
        1 / (_COMPUTE_S + ping_s + (pulled + pushed) / (rate * MB))
        for rate, ping_s, pulled, pushed in rounds
    ]


def _bound(name: str) -> str:
    return f"{name}: no overlap"


def _variables(size: str) -> str:
    return f"{size} of variables"
