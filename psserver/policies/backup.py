"""The policy by which each step is the mean of the first few pushes for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

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


def mean(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the mean of arrays of one type, in that type.

    They are added in their order, in float32 or in float64 for arrays of that; the sum
    is divided by how many there are, and rounded to the type once.
    """
    dtype = arrays[0].dtype
    total = arrays[0].astype(np.promote_types(dtype, np.float32))
    with np.errstate(over="ignore"):  # It is for the caller to look.
        for array in arrays[1:]:
            total += array
    total /= len(arrays)
    return total.astype(dtype, copy=False)
