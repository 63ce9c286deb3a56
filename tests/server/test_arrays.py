"""What an array's numbers are like."""

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from psserver import arrays
from pswire.body import Body
from pswire.inspection import Inspection
from pswire.layout import Layout

NAN, INF = math.nan, math.inf


def _figures(*numbers: float) -> dict[str, float]:
    names = ("min", "max", "mean", "norm", "nan", "zero")
    return dict(zip(names, numbers, strict=True))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[3, 0], [-4, 1]], np.float32), (-4, 3, 0, 26**0.5, 0, 0.25)),
        (np.array([3, NAN, 0, -4, NAN]), (-4, 3, -1 / 3, 5, 0.4, 0.2)),
        (np.array([NAN, NAN], np.float16), (NAN, NAN, NAN, 0, 1, 0)),
        (np.array([-INF, 2], np.float32), (-INF, 2, -INF, INF, 0, 0)),
        (np.array([-INF, INF]), (-INF, INF, NAN, INF, 0, 0)),
        (np.zeros((0, 3), np.float32), (NAN, NAN, NAN, 0, 0, 0)),
        (np.array(7, np.int64), (7, 7, 7, 7, 0, 0)),
        (np.array([True, False]), (0, 1, 0.5, 1, 0, 0.5)),
        (np.array([1, -2], ml_dtypes.bfloat16), (-2, 1, -0.5, 5**0.5, 0, 0)),
        # More than is looked at together; the mean as float32 would be far off.
        (np.full(2**24 + 1, 0.1, np.float32)[:-1], (*(0.1,) * 3, 409.6, 0, 0)),
    ],
    ids=[
        *("plain", "some NaN", "all NaN", "infinity", "infinities", "empty"),
        *("scalar", "bools", "bfloat16", "large"),
    ],
)
def test_an_array_s_figures_are_those_of_its_numbers(
    array: npt.NDArray[Any], expected: tuple[float, ...]
) -> None:
    """NaN is counted, and left out of the others."""
    got = arrays.figures(array)

    assert got.keys() == _figures(*expected).keys()
    np.testing.assert_allclose([*got.values()], expected, rtol=1e-7)


def test_json_says_null_for_what_it_cannot_say() -> None:
    """Infinities and NaN are no JSON."""
    stored = {"a": np.array([-INF, 0], np.float32)}
    layout = Layout.of(stored)

    told: Mapping[str, Any] = arrays.to_json(
        Inspection("g", 5, layout, Body.gather(layout, stored))
    )

    assert {name: told[name] for name in _figures(*range(6))} == {
        **{"min": None, "max": 0.0, "mean": None, "norm": None},
        **{"nan": 0.0, "zero": 0.5},
    }
