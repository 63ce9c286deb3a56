"""The policy whose limit follows the staleness that there is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from psserver.policies.policy import Policy

WINDOW = 100
"""How many of the last judged pushes are looked at."""
_FEW = 20  # Of so few no quantile says much.


@dataclass(frozen=True, slots=True)
class Adaptive(Policy):
    """Apply what is no staler than a share of the last pushes were, within bounds.

    Attributes:
        quantile: That share, over 0 and at most 1.
        least: The least that the limit can become, in steps, 0 or more.
        most: The most, in steps; what it is while fewer than twenty pushes are judged.

    Raises:
        ValueError: One of them is something else.

    References:
        None: it is this project's own.
    """

    name: ClassVar[str] = "adaptive"

    quantile: float
    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(
                f"quantile: expected over 0 and at most 1, got {self.quantile}"
            )
        if self.least < 0:
            raise ValueError(f"least: expected 0 or more steps, got {self.least}")
        if not self.least <= self.most < 2**63:
            raise ValueError(
                f"most: expected {self.least} steps or more, which least is, and 64 "
                f"bits at most, got {self.most}"
            )

    def limit(self, recent: Sequence[int]) -> int:
        if len(recent) < _FEW:
            return self.most
        # Rounded: 0.07 * 100 is a little more than 7.
        rank = max(1, math.ceil(round(self.quantile * len(recent), 9)))
        return min(max(self.least, sorted(recent)[rank - 1]), self.most)
