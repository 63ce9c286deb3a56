"""What a report says of a run, as plain JSON types: each start apart, and all added."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from psserver.report.samples import Moment
from psserver.report.starts import Start, Terms, told
from psserver.report.sums import add_counts, add_tables, mean_staleness, middle
from psserver.report.targets import levels, reached
from psserver.report.workers import BUCKETS, workers

_POINTS = 1000


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
        "staleness": _staleness([start.counted for start in starts]),
        "best_loss": min(losses, default=None),
        "last_loss": losses[-1] if losses else None,
        "curves": _curves(starts, began),
        "terms": _terms(starts, began),
        "buckets": BUCKETS,
        "workers": workers(starts),
        "unjoined": add_counts(start.counted.unjoined for start in starts).to_json(),
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
        "policy": start.last.policy,
        "time": start.first.time - start.first.uptime_s,
        "began_s": began_s,
        "uptime_s": start.last.uptime_s,
        "first_uptime_s": start.first.uptime_s,
        "is_whole": start.is_whole,
        "samples": start.samples,
        "step": start.own_steps,
        **start.counted.counts.to_json(),
    }


def _total(starts: Sequence[Start]) -> dict[str, Any]:
    return {
        "uptime_s": sum(start.last.uptime_s for start in starts),
        "samples": sum(start.samples for start in starts),
        "step": sum(start.own_steps for start in starts),
        **add_counts(start.counted.counts for start in starts).to_json(),
    }


def _curves(starts: Sequence[Start], began: Sequence[float]) -> dict[str, list[Any]]:
    """Return the points of all starts, one after the other; a first one is empty."""
    every = -(-sum(start.samples for start in starts) // _POINTS)
    rows: list[tuple[Any, ...]] = []
    steps = 0
    for start, began_s in zip(starts, began, strict=True):
        before = steps - start.first_step
        rows += (
            (
                *(began_s + point.uptime_s, before + point.step),
                *(point.drop_rate, point.steps_per_s, point.loss, point.staleness),
            )
            for point in start.points(every)
        )
        steps += start.own_steps
    names = ("seconds", "steps", "drop_rate", "steps_per_s", "loss", "staleness")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _terms(starts: Sequence[Start], began: Sequence[float]) -> list[dict[str, Any]]:
    """Return by what pushes were judged, on the curves' time line: each change."""
    rows: list[dict[str, Any]] = []
    before: Terms | None = None
    steps = 0
    for start, began_s in zip(starts, began, strict=True):
        for terms in start.terms:
            if before and terms.are_like(before):
                continue
            before = terms
            rows.append(
                {
                    "seconds": began_s + terms.uptime_s,
                    "step": steps - start.first_step + terms.step,
                    "limit": terms.limit,
                    "policy": terms.policy,
                }
            )
        steps += start.own_steps
    return rows


def _staleness(moments: Sequence[Moment]) -> dict[str, Any]:
    counts = add_tables(moment.staleness for moment in moments)
    ages = sorted(counts)
    median = middle([counts[age] for age in ages])
    return {
        "counts": {str(age): counts[age] for age in ages},
        "mean": mean_staleness(moments),
        "median": None if median is None else ages[median],
    }
