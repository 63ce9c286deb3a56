"""The policy by which a stale gradient is taken to the variables that it changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from psserver.policies.policy import Policy

_ADAPTIVE = "adaptive"
_MOMENT = 0.95
_EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class DelayCompensation(Policy):
    """Apply a gradient as it would be about now, as far as its own square tells.

    Attributes:
        strength: The paper's lambda, over 0: how much of `compensated`'s term counts.
        adaptive: Whether each element has its own, from `adapted`.

    Raises:
        ValueError: `strength` is something else.

    References:
        S. Zheng, Q. Meng, T. Wang, W. Chen, N. Yu, Z.-M. Ma, T.-Y. Liu, "Asynchronous
        Stochastic Gradient Descent with Delay Compensation", ICML 2017: DC-ASGD-c and,
        adaptive, DC-ASGD-a.
    """

    name: ClassVar[str] = "delay-compensation"
    takes_tables: ClassVar[bool] = False

    strength: float
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise ValueError(
                f"lambda: expected a finite number over 0, got {self.strength}"
            )

    def require_limit(self, limit: int | None) -> None:
        if limit is None:
            raise ValueError(
                "max_staleness: expected a whole number of steps beside "
                f"{self.name}, which keeps as many snapshots, got off"
            )

    @property
    def spec(self) -> str:
        told = repr(self.strength).removesuffix(".0")
        return f"{self.name}:{told}" + (f",{_ADAPTIVE}" if self.adaptive else "")

    @classmethod
    def form(cls) -> str:
        return f"{cls.name}:lambda[,{_ADAPTIVE}]"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        strength, *more = arguments or ("",)
        if more not in ([], [_ADAPTIVE]):
            raise ValueError(f"expected {cls.form()}, got {','.join(arguments)!r}")
        try:
            return cls(float(strength), bool(more))
        except ValueError:
            raise ValueError(
                f"lambda: expected a finite number over 0, got {strength!r}"
            ) from None


# Of arrays of any library, or of numbers.


def compensated(gradient: Any, now: Any, read: Any, strength: Any) -> Any:
    """Return the gradient at `now`, of that at `read`: the Taylor series' first terms.

    The square of a gradient stands for the second derivative.
    """
    return gradient + strength * gradient * gradient * (now - read)


def mean_square(before: Any, gradient: Any) -> Any:
    """Return a moving average of squared gradients, after one more of these."""
    return _MOMENT * before + (1 - _MOMENT) * gradient * gradient


def adapted(strength: Any, mean: Any) -> Any:
    """Return the strength of elements that have this mean square."""
    return strength / (mean + _EPSILON) ** 0.5
