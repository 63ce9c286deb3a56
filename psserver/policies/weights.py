"""Policies by which a stale push still counts, but less the staler it is."""

import math
from dataclasses import dataclass
from typing import ClassVar

from psserver.policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Inverse(Policy):
    """1 / max(1, staleness).

    References:
        W. Zhang, S. Gupta, X. Lian, J. Liu, "Staleness-aware Async-SGD for Distributed
        Deep Learning", IJCAI 2016: the learning rate is divided by the staleness.
    """

    name: ClassVar[str] = "inverse"

    def factor(self, staleness: int) -> float:
        return 1.0 / max(1, staleness)


@dataclass(frozen=True, slots=True)
class Polynomial(Policy):
    """(1 + staleness) ** -a.

    Attributes:
        a: How fast it falls, over 0.

    Raises:
        ValueError: `a` is something else.

    References:
        C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", 2019.
    """

    name: ClassVar[str] = "polynomial"

    a: float

    def __post_init__(self) -> None:
        _require_positive("a", self.a)

    def factor(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.a)


@dataclass(frozen=True, slots=True)
class Hinge(Policy):
    """1 up to a staleness of b, 1 / (a * (staleness - b) + 1) beyond.

    Attributes:
        a: How fast it falls then, over 0.
        b: Up to where it stays 1, in steps, 0 or more.

    Raises:
        ValueError: One of them is something else.

    References:
        C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", 2019.
    """

    name: ClassVar[str] = "hinge"

    a: float
    b: float

    def __post_init__(self) -> None:
        _require_positive("a", self.a)
        if not (math.isfinite(self.b) and self.b >= 0):
            raise ValueError(f"b: expected 0 or more steps, got {self.b}")

    def factor(self, staleness: int) -> float:
        return 1.0 / (self.a * max(0.0, staleness - self.b) + 1.0)


@dataclass(frozen=True, slots=True)
class Exponential(Policy):
    """exp(-a * staleness).

    Attributes:
        a: How fast it falls, over 0.

    Raises:
        ValueError: `a` is something else.

    References:
        C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", 2019, has
        the family of such functions; this one falls fastest.
    """

    name: ClassVar[str] = "exponential"

    a: float

    def __post_init__(self) -> None:
        _require_positive("a", self.a)

    def factor(self, staleness: int) -> float:
        return math.exp(-self.a * staleness)


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number over 0, got {value}")
