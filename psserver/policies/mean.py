"""The mean of pushes, which makes a step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


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
