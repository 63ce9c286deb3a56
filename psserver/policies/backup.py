"""The policy by which each step is the mean of the first few pushes for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from psserver.policies.policy import Policy

_MOST = 64
"""Of these all but one wait, each in a thread of the server, which has 128: so many are
left for whatever else is called, as who waits calls nothing."""


@dataclass(frozen=True, slots=True)
class Backup(Policy):
    """Make each step of the mean of the first n gradients for it; drop the rest.

    With more than n workers, the slowest of each step are the backup.

    Attributes:
        n: How many, 1 to 64; 1: each push makes a step.

    Raises:
        ValueError: There cannot be so many.

    References:
        J. Chen, X. Pan, R. Monga, S. Bengio, R. Jozefowicz, "Revisiting Distributed
        Synchronous SGD", 2016.
    """

    name: ClassVar[str] = "backup"
    takes_tables: ClassVar[bool] = False

    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= _MOST:
            raise ValueError(f"n: expected 1 to {_MOST} pushes, got {self.n}")

    @property
    def pushes_a_step(self) -> int:
        return self.n

    def limit(self, recent: Sequence[int]) -> int:
        return 0
