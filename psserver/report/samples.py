"""The samples of a run, read back from the files that `JsonLines` wrote."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from psserver.metrics.jsonlines import files
from pswire.counts import STALENESS_BUCKETS, Counts

_MOST_COUNT = 2**63
_MOST_S = 1e11  # Three thousand years: a browser can still write the date.
_MOST_LOSS = 1e300  # Sums of them stay finite.
_DAMAGED = (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)

_TOLD = 5

Tell = Callable[[str], None]
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class WorkerMoment:
    """One worker in a sample; see `pswire.counts.WorkerStatus`."""

    name: str
    state: str
    counts: Counts
    longest_drops: int
    loss: float | None
    staleness_sum: int
    staleness_buckets: tuple[int, ...]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            name=str(table["name"]),
            state=str(table["state"]),
            counts=_counts(table),
            longest_drops=_count(table["longest_drops"]),
            loss=_loss(table["loss"]),
            staleness_sum=_staleness_sum(table),
            staleness_buckets=tuple(
                _count(table["staleness"][name]) for name in STALENESS_BUCKETS
            ),
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """A sample, every figure of which has been checked; see `pswire.status.Status`.

    Whatever lies within the bounds can be added up, and drawn.
    """

    time: float
    incarnation: str
    step: int
    limit: int | None
    policy: str
    rule: str
    uptime_s: float
    loss: float | None
    counts: Counts
    staleness_sum: int
    staleness: Mapping[int, int]
    unjoined: Counts
    workers: tuple[WorkerMoment, ...]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            time=_seconds(table["time"]),
            incarnation=str(table["incarnation"]),
            step=_count(table["step"]),
            limit=_limit(table["limit"]),
            policy=str(table.get("staleness_policy", "drop")),  # Old files name none.
            rule=str(table["rule"]),
            uptime_s=_seconds(table["uptime_s"]),
            loss=_loss(table["loss"]),
            counts=_counts(table),
            staleness_sum=_staleness_sum(table),
            staleness={_count(age): _count(n) for age, n in table["staleness"].items()},
            unjoined=_counts(table["unjoined"]),
            workers=tuple(map(WorkerMoment.from_json, table["workers"])),
        )


def read(path: Path, tell: Tell) -> Iterator[Moment]:
    """Yield the samples of a file and of the full ones beside it, the oldest first.

    Args:
        path: The file that `psserver serve --metrics-file` was given.
        tell: Is told of the first damaged lines, by file and number, and then of how
            many more there are.

    Raises:
        OSError: A file cannot be read.
        ValueError: There is no sample.
    """
    found, damaged = False, 0
    for file in files(path) or [path]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    moment = Moment.from_json(json.loads(line))
                except _DAMAGED as error:
                    damaged += 1
                    if damaged <= _TOLD:
                        why = f"{type(error).__name__}: {error}"
                        tell(f"{file}:{number}: expected a sample, got {why}; left out")
                    continue
                found = True
                yield moment
    if damaged > _TOLD:
        tell(f"{path}: {damaged - _TOLD} more damaged lines, left out too")
    if not found:
        raise ValueError(f"{path}: expected a sample or more, got none")


def _counts(table: Mapping[str, Any]) -> Counts:
    return Counts(
        applied=_count(table["applied"]),
        dropped=_count(table["dropped"]),
        duplicate=_count(table["duplicate"]),
        rejected={str(why): _count(n) for why, n in table["rejected"].items()},
        snapshot_gone=_count(table.get("snapshot_gone", 0)),
    )


def _count(value: Any) -> int:
    return _within(int(value), 0, _MOST_COUNT)


def _limit(value: Any) -> int | None:
    return None if value is None else _within(int(value), -_MOST_COUNT, _MOST_COUNT)


def _seconds(value: Any) -> float:
    return _within(float(value), 0.0, _MOST_S)


def _staleness_sum(table: Mapping[str, Any]) -> int:
    mean = table["mean_staleness"]
    if mean is None:
        return 0
    return round(_within(float(mean), 0.0, _MOST_COUNT) * _counts(table).judged)


def _loss(value: Any) -> float | None:
    """Check a loss; one that diverges is no damage, it is only told no larger."""
    if value is None:
        return None
    loss = float(value)
    if not math.isfinite(loss):
        raise ValueError(f"expected a finite loss, got {loss}")
    return max(-_MOST_LOSS, min(loss, _MOST_LOSS))


def _within(number: _Number, least: _Number, most: _Number) -> _Number:
    if not least <= number <= most:  # A NaN is not either.
        raise ValueError(f"expected {least} to {most}, got {number}")
    return number
