"""What was measured: one run of a row with one seed, and the file of them all."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What all runs have in common.

    Attributes:
        machine: What it is, and the packages.
        seconds: How long each run trained.
        seeds: How many runs each row has.
        target: The accuracy on held-out images that is waited for, 0 to 1.
    """

    machine: str
    seconds: float
    seeds: int
    target: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. What is of workers has one number each; the last is the slow one.

    Attributes:
        group: The table that it belongs to.
        options: The row.
        seed: Of the order of images, and of the pauses.
        applied: Pushes that were applied.
        dropped: Pushes that were dropped.
        staleness: Their mean staleness, in steps; None: there was no push.
        most_stale: The largest staleness of all, in steps.
        accuracy: On all held-out images at the end, 0 to 1.
        own_accuracy: On those of the digit that only the last worker has.
        loss: On all held-out images at the end.
        target_s: When the target was first seen to be reached, in seconds; None: never.
        target_pushes: Pushes computed until then.
    """

    group: str
    options: str
    seed: int
    applied: list[int]
    dropped: list[int]
    staleness: list[float | None]
    most_stale: int
    accuracy: float
    own_accuracy: float
    loss: float
    target_s: float | None
    target_pushes: int | None

    def applied_percent(self, workers: slice = slice(None)) -> float:
        """Return how many of a hundred pushes of some workers, or all, were applied."""
        applied, dropped = sum(self.applied[workers]), sum(self.dropped[workers])
        return 100 * applied / max(1, applied + dropped)


@dataclass(frozen=True, slots=True)
class Study:
    """All runs, in the order of the tables and of their rows."""

    conditions: Conditions
    runs: list[Run]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `to_lines` has made."""
        first, *others = map(json.loads, path.read_text().splitlines())
        return cls(Conditions(**first), [Run(**other) for other in others])

    def rows(self, group: str) -> dict[str, list[Run]]:
        """Return the runs of one table, by their options."""
        rows: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.group == group:
                rows.setdefault(run.options, []).append(run)
        return rows


def to_line(record: Conditions | Run) -> str:
    """Write one line of the file; the conditions are the first."""
    return json.dumps(asdict(record)) + "\n"
