"""What a server keeps of its model, told array by array."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType

from psserver import printed
from pswire.inspection import Inspection
from pswire.layout import ArraySpec

_BLOCK = 2**20  # Elements that are looked at together.
_NUMBERS, _SHARES = ("min", "max", "mean", "norm"), ("nan", "zero")


def to_json(found: Inspection) -> dict[str, Any]:
    """Return all arrays and, if one was asked for, what its numbers are like."""
    head = {"generation": found.generation, "step": found.step}
    if found.arrays:
        (spec,) = found.arrays.layout
        told = figures(found.arrays[spec.name])
        # JSON has no infinity, and no NaN.
        rest = {k: v if math.isfinite(v) else None for k, v in told.items()}
        return {**head, **_row(spec), **rest}
    return {**head, "arrays": [_row(spec) for spec in found.layout]}


def draw(found: Inspection) -> RenderableType:
    """Draw the same."""
    if found.arrays:
        (spec,) = found.arrays.layout
        told = figures(found.arrays[spec.name])
        numbers = [f"{told[k]:.6g}" for k in _NUMBERS]
        shares = [f"{told[k]:.1%}" for k in _SHARES]
        table = printed.table(
            (*_row(spec), *told), [(*_row(spec).values(), *numbers, *shares)]
        )
    else:
        rows = [_row(spec) for spec in found.layout]
        table = printed.table(rows[0], (row.values() for row in rows))
    nbytes = sum(spec.nbytes for spec in found.layout)
    head = f"step {found.step}, generation {found.generation}: {nbytes} bytes in all"
    return Group(printed.text(head), "", table)


def figures(array: npt.NDArray[Any]) -> Mapping[str, float]:
    """Return what an array's numbers are like, in double precision.

    Returns:
        The least, the largest, the mean and the L2 norm of those that are not NaN;
        NaN, but for the norm, if there are none. The shares of NaN and of zeros among
        all, 0 to 1.
    """
    flat = array.reshape(-1)
    least, most, total, squares, count, zero = math.inf, -math.inf, 0.0, 0.0, 0, 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        numbers = block[~np.isnan(block)]
        count += numbers.size
        zero += int((numbers == 0).sum())
        least = min(least, numbers.min(initial=math.inf))
        most = max(most, numbers.max(initial=-math.inf))
        with np.errstate(all="ignore"):
            total += numbers.sum()
            squares += np.square(numbers).sum()
    size = flat.size or 1
    return {
        "min": float(least) if count else math.nan,
        "max": float(most) if count else math.nan,
        "mean": float(total / count) if count else math.nan,
        "norm": math.sqrt(squares),
        "nan": (flat.size - count) / size,
        "zero": zero / size,
    }


def _row(spec: ArraySpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype.name,
        "shape": list(spec.shape),
        "nbytes": spec.nbytes,
    }
