"""What a report says of a run, as plain JSON types: each start apart, and all added."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from psserver.runfile import WorkerMoment
from psserver.runhistory import Start, told
from psserver.runtargets import levels, reached
from pswire.counts import STALENESS_BOUNDS, Counts

_POINTS = 1000
_BEYOND = STALENESS_BOUNDS[-1] + 1
# The staleness, inclusive, between which each bucket of a worker's lies.
_EDGES = [
    (0, 0),
    *((below + 1, bound) for below, bound in pairwise(STALENESS_BOUNDS)),
    (_BEYOND, _BEYOND),
]


def figures(starts: Sequence[Start], targets: Sequence[float]) -> dict[str, Any]:
    """Sum a run up.

    Args:
        starts: The server's starts, one or more, in their order.
        targets: Losses to say of when they were reached; none: a few round ones.
    """
    began, losses = _began(starts), told(starts)
    return {
        "starts": list(map(_start, starts, began)),
        "total": _total(starts),
        "staleness": _staleness(_add(start.last.staleness for start in starts)),
        "best_loss": min(losses, default=None),
        "last_loss": losses[-1] if losses else None,
        "curves": _curves(starts, began),
        "buckets": [_bucket(*edges) for edges in _EDGES],
        "workers": _workers(starts),
        "unjoined": _sum(start.last.unjoined for start in starts).to_json(),
        "targets": [asdict(reached(starts, x)) for x in targets or levels(starts)],
    }


def _began(starts: Sequence[Start]) -> list[float]:
    """Return when each start was, in seconds since the first one, on one time line."""
    zero = starts[0].first.time - starts[0].first.uptime_s
    began, ended = [], 0.0
    for start in starts:
        # The clock may have been set back meanwhile; the uptimes never are.
        began.append(max(start.first.time - start.first.uptime_s - zero, ended))
        ended = began[-1] + start.last.uptime_s
    return began


def _start(start: Start, began_s: float) -> dict[str, Any]:
    return {
        "incarnation": start.last.incarnation,
        "rule": start.last.rule,
        "limit": start.last.limit,
        "time": start.first.time - start.first.uptime_s,
        "began_s": began_s,
        "uptime_s": start.last.uptime_s,
        "first_uptime_s": start.first.uptime_s,
        "is_whole": start.is_whole,
        "samples": start.samples,
        "step": start.last.step,
        **start.last.counts.to_json(),
    }


def _total(starts: Sequence[Start]) -> dict[str, Any]:
    return {
        "uptime_s": sum(start.last.uptime_s for start in starts),
        "samples": sum(start.samples for start in starts),
        "step": sum(start.last.step for start in starts),
        **_sum(start.last.counts for start in starts).to_json(),
    }


def _curves(starts: Sequence[Start], began: Sequence[float]) -> dict[str, list[Any]]:
    """Return the points of all starts, one after the other, parted by an empty one."""
    every = -(-sum(start.samples for start in starts) // _POINTS)
    rows: list[tuple[Any, ...]] = []
    steps = 0
    for start, began_s in zip(starts, began, strict=True):
        if rows:
            rows.append((began_s, steps, None, None, None, None))
        rows += (
            (
                *(began_s + point.uptime_s, steps + point.step),
                *(point.drop_rate, point.steps_per_s, point.loss, point.staleness),
            )
            for point in start.points(every)
        )
        steps += start.last.step
    names = ("seconds", "steps", "drop_rate", "steps_per_s", "loss", "staleness")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _workers(starts: Sequence[Start]) -> list[dict[str, Any]]:
    rows: dict[str, list[WorkerMoment]] = {}
    for start in starts:
        for worker in start.last.workers:
            rows.setdefault(worker.name, []).append(worker)
    present = {worker.name for worker in starts[-1].last.workers}
    starved_s = {
        name: sum(start.starved_s.get(name, 0.0) for start in starts) for name in rows
    }
    return [
        _worker(rows[name], starved_s[name], name in present) for name in sorted(rows)
    ]


def _worker(
    rows: Sequence[WorkerMoment], starved_s: float, present: bool
) -> dict[str, Any]:
    columns = zip(*(row.staleness_buckets for row in rows), strict=True)
    buckets = [sum(column) for column in columns]
    return {
        "name": rows[-1].name,
        "state": rows[-1].state if present else None,
        **_sum(row.counts for row in rows).to_json(),
        "longest_drops": max(row.longest_drops for row in rows),
        "starved_s": starved_s,
        "loss": rows[-1].loss,
        "staleness": buckets,
        **_about(buckets),
    }


def _staleness(counts: Counter[int]) -> dict[str, Any]:
    ages = sorted(counts)
    judged = counts.total()
    total = sum(age * pushes for age, pushes in counts.items())
    return {
        "counts": {str(age): counts[age] for age in ages},
        "mean": total / judged if judged else None,
        "median": ages[_middle([counts[age] for age in ages])] if judged else None,
    }


def _about(buckets: Sequence[int]) -> dict[str, Any]:
    """Estimate from buckets: each push counts as the middle of its own."""
    judged = sum(buckets)
    if not judged:
        return {"staleness_mean": None, "staleness_median": None}
    middles = [(low + high) / 2 for low, high in _EDGES]
    total = sum(n * middle for n, middle in zip(buckets, middles, strict=True))
    median = _bucket(*_EDGES[_middle(buckets)])
    return {"staleness_mean": total / judged, "staleness_median": median}


def _middle(numbers: Sequence[int]) -> int:
    """Return the first index up to which at least half of all are."""
    seen, half = 0, sum(numbers) / 2
    for index, number in enumerate(numbers):
        seen += number
        if seen >= half:
            return index
    raise ValueError("numbers: expected one or more, got none")


def _bucket(low: int, high: int) -> str:
    if low == _BEYOND:
        return f"{low}+"
    return f"{low}" if low == high else f"{low}-{high}"


def _sum(counts: Iterable[Counts]) -> Counts:
    rows = list(counts)
    return Counts(
        applied=sum(row.applied for row in rows),
        dropped=sum(row.dropped for row in rows),
        duplicate=sum(row.duplicate for row in rows),
        rejected=_add(row.rejected for row in rows),
    )


def _add(tables: Iterable[Mapping[Any, int]]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for table in tables:
        total.update(table)
    return total
