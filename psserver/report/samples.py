"""The samples of a run, read back from the files that `JsonLines` wrote."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from psserver.metrics.jsonlines import files
from pswire.counts import STALENESS_BOUNDS, Counts

_BUCKETS = (*map(str, STALENESS_BOUNDS), "+Inf")
_DAMAGED = (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WorkerMoment:
    """One worker in a sample; see `pswire.counts.WorkerStatus`."""

    name: str
    state: str
    counts: Counts
    longest_drops: int
    loss: float | None
    mean_staleness: float | None
    staleness_buckets: tuple[int, ...]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            name=str(table["name"]),
            state=str(table["state"]),
            counts=_counts(table),
            longest_drops=int(table["longest_drops"]),
            loss=_optional(table["loss"]),
            mean_staleness=_optional(table["mean_staleness"]),
            staleness_buckets=tuple(int(table["staleness"][name]) for name in _BUCKETS),
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """A sample, every figure of which has been checked; see `pswire.status.Status`."""

    time: float
    incarnation: str
    step: int
    limit: int | None
    rule: str
    uptime_s: float
    loss: float | None
    counts: Counts
    staleness: Mapping[int, int]
    unjoined: Counts
    workers: tuple[WorkerMoment, ...]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            time=_finite(table["time"]),
            incarnation=str(table["incarnation"]),
            step=int(table["step"]),
            limit=None if table["limit"] is None else int(table["limit"]),
            rule=str(table["rule"]),
            uptime_s=_finite(table["uptime_s"]),
            loss=_optional(table["loss"]),
            counts=_counts(table),
            staleness={int(age): int(n) for age, n in table["staleness"].items()},
            unjoined=_counts(table["unjoined"]),
            workers=tuple(map(WorkerMoment.from_json, table["workers"])),
        )


def read(path: Path, tell: Tell) -> Iterator[Moment]:
    """Yield the samples of a file and of the full ones beside it, the oldest first.

    Args:
        path: The file that `psserver serve --metrics-file` was given.
        tell: Is told of every line that is damaged, by file and number.

    Raises:
        OSError: A file cannot be read.
        ValueError: There is no sample.
    """
    found = False
    for file in files(path) or [path]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    moment = Moment.from_json(json.loads(line))
                except _DAMAGED as error:
                    why = f"{type(error).__name__}: {error}"
                    tell(f"{file}:{number}: expected a sample, got {why}; left out")
                    continue
                found = True
                yield moment
    if not found:
        raise ValueError(f"{path}: expected a sample or more, got none")


def _counts(table: Mapping[str, Any]) -> Counts:
    return Counts(
        applied=int(table["applied"]),
        dropped=int(table["dropped"]),
        duplicate=int(table["duplicate"]),
        rejected={str(why): int(n) for why, n in table["rejected"].items()},
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {number}")
    return number


def _optional(value: Any) -> float | None:
    return None if value is None else _finite(value)
