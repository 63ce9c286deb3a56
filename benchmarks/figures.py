"""What was measured, what it is measured against, and what is promised."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import median
from typing import Any, Self

Series = dict[str, list[float]]
"""Values by name, one for each round."""

Burst = Callable[[], Mapping[str, float]]
"""Runs one contestant for a short while, and returns its values by name."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What the rounds say of a value."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio's median is promised to be.

    Attributes:
        bound: The ratio, inclusive.
        at_most: True: no more than that. False: no less.
    """

    bound: float
    at_most: bool

    def is_met(self, ratio: Spread) -> bool:
        if self.at_most:
            return ratio.median <= self.bound
        return ratio.median >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


def at_most(bound: float) -> Target:
    """Promise no more than a ratio."""
    return Target(bound, at_most=True)


def at_least(bound: float) -> Target:
    """Promise no less than a ratio."""
    return Target(bound, at_most=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """One series as a multiple of another, of the same rounds.

    Attributes:
        measured: The series' name.
        limit: The other's.
        target: What the ratio should be; None: it is only told.
        unit: Of both: "s", "MB/s", "cycles/s", "B" or "yes".
    """

    measured: str
    limit: str
    target: Target | None = None
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Figure:
    """A claim with its numbers."""

    case: str
    claim: Claim
    measured: Spread
    limit: Spread
    ratio: Spread

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: there is none."""
        target = self.claim.target
        return None if target is None else target.is_met(self.ratio)

    def to_json(self) -> dict[str, Any]:
        target = self.claim.target
        return {
            "case": self.case,
            "figure": self.claim.measured,
            "against": self.claim.limit,
            "unit": self.claim.unit,
            "measured": asdict(self.measured),
            "limit": asdict(self.limit),
            "ratio": asdict(self.ratio),
            "target": None if target is None else asdict(target),
            "met": self.met,
        }


def weigh(case: str, claims: Iterable[Claim], series: Series) -> list[Figure]:
    """Return the figures of all claims; ratios are taken round by round."""
    return [
        Figure(
            case,
            claim,
            measured=Spread.of(series[claim.measured]),
            limit=Spread.of(series[claim.limit]),
            ratio=Spread.of(_ratios(series[claim.measured], series[claim.limit])),
        )
        for claim in claims
    ]


def interleave(rounds: int, bursts: Sequence[Burst]) -> Series:
    """Run all bursts, one after another, in every round.

    What slows the machine for a while then slows a contestant and its limit alike.
    """
    series: Series = defaultdict(list)
    for _ in range(rounds):
        for burst in bursts:
            for name, value in burst().items():
                series[name].append(value)
    return dict(series)


def p99(times: Sequence[float]) -> float:
    """Return what all but a hundredth of some times do not exceed."""
    return sorted(times)[ceil(0.99 * len(times)) - 1]


def _ratios(measured: list[float], limit: list[float]) -> list[float]:
    # What does not change from round to round is said once.
    limits = limit * len(measured) if len(limit) == 1 else limit
    return [a / b for a, b in zip(measured, limits, strict=True)]
