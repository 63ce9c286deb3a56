"""A server and its workers, as processes, that train again and again."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import Child, Children
from benchmarks.study.cases import Group, Options
from benchmarks.study.runs import Run
from benchmarks.study.task import measure
from examples import digits
from pswire import trees
from pswire.body import Body
from pswire.status import Status
from pswire.values import Snapshot
from psworker.connection import Connection

TARGET = 0.93
_EVERY_S = 0.05
_LEAD_S = 0.1  # For the command to get to every worker.
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a server had at one moment; `time_s` is since the beginning."""

    time_s: float
    snapshot: Snapshot[Body]
    status: Status


class Crew:
    """Processes that are started once: most of a short run would go into that."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._children = Children()
        self._host: Child | None = None
        self._workers: list[Child] = []

    def close(self) -> None:
        """End all processes."""
        self._children.end_all()

    def train(
        self, name: str, group: Group, row: str, seed: int, seconds: float
    ) -> Run:
        """Run one row once.

        Args:
            name: The group's.
            group: Who trains.
            row: Its options, beside the rule's.
            seed: Of this run.
            seconds: How long it trains.

        Raises:
            ChildError: The server did not start, or a worker failed.
        """
        options = Options.parse(f"{group.rule} {row}")
        workers = self._muster(group.workers)
        names = [f"worker-{index}" for index in range(group.workers)]
        address = self._serve(options)
        for worker, each in zip(workers, names, strict=True):
            worker.begin("join", address=address, name=each)
        for worker in workers:
            worker.end()
        begin = time.monotonic() + _LEAD_S
        for index, worker in enumerate(workers):
            worker.begin(
                "train",
                index=index,
                count=group.workers,
                seed=seed,
                slowdown=group.slowdown if index == group.workers - 1 else 1,
                begin=begin,
                end=begin + seconds,
                training=options.training,
            )
        with closing(_Watcher(address, begin)) as watcher:
            watcher.watch(begin + seconds)
            for worker in workers:
                worker.end()
            watcher.look()
        return Run(
            group=name, options=row, seed=seed, **_sum_up(watcher.samples, names)
        )

    def _muster(self, count: int) -> list[Child]:
        while len(self._workers) < count:
            self._workers.append(self._children.start("benchmarks.study.worker"))
        return self._workers[:count]

    def _serve(self, options: Options) -> str:
        if self._host is None:
            self._host = self._children.start("benchmarks.study.server")
        return self._host.call(
            "serve",
            rule=options.rule,
            arguments=options.arguments,
            settings=options.server,
        )


class _Watcher:
    """Looks at a server again and again, without joining it."""

    def __init__(self, address: str, begin: float) -> None:
        self.samples: list[_Sample] = []
        self._begin = begin
        self._connection = Connection(address, timeout_s=_TIMEOUT_S, outage_s=0.0)
        self._known: Snapshot[Body] | None = None

    def watch(self, end: float) -> None:
        """Look until then, by `time.monotonic`."""
        moment = self._begin
        while moment < end:
            time.sleep(max(0.0, moment - time.monotonic()))
            self.look()
            moment = max(moment + _EVERY_S, time.monotonic())

    def look(self) -> None:
        """Look once."""
        known = self._connection.pull(self._known) or self._known
        assert known is not None  # What a pull leaves out is known.
        self._known = known
        time_s = time.monotonic() - self._begin
        self.samples.append(_Sample(time_s, known, self._connection.status()))

    def close(self) -> None:
        self._connection.close()


def _sum_up(samples: Sequence[_Sample], names: Sequence[str]) -> dict[str, Any]:
    """Return what is said of a run; images are looked at only now, in nobody's way."""
    template = digits.init()
    said = [
        measure(trees.unflatten(template, sample.snapshot.params)) for sample in samples
    ]
    status = samples[-1].status
    rows = {worker.name: worker for worker in status.workers}
    workers = [rows[name] for name in names]
    reached = next(
        (
            s
            for s, found in zip(samples, said, strict=True)
            if found["accuracy"] >= TARGET
        ),
        None,
    )
    return {
        "applied": [worker.counts.applied for worker in workers],
        "dropped": [worker.counts.dropped for worker in workers],
        "staleness": [_rounded(worker.mean_staleness) for worker in workers],
        "most_stale": max(status.staleness, default=0),
        **{key: _rounded(value) for key, value in said[-1].items()},
        "target_s": _rounded(reached.time_s if reached else None),
        "target_pushes": reached.status.counts.judged if reached else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
