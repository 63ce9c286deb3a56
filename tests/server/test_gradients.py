"""The checks of a push's gradients: finite, and of a bounded norm."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from psserver.gradients import require_finite, require_norm
from pswire.errors import GradientNormError, NonFiniteError

_LARGEST: dict[Any, float] = {
    np.float16: 65504.0,
    ml_dtypes.bfloat16: (2 - 2**-7) * 2.0**127,
    np.float32: (2 - 2**-23) * 2.0**127,
    np.float64: (2 - 2**-52) * 2.0**1023,
}
_by_dtype = pytest.mark.parametrize("dtype", _LARGEST)

Array = npt.NDArray[Any]


@_by_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 7, 8, 127, 128, 9_999])
def test_one_bad_number_is_found_wherever_it_is(
    dtype: npt.DTypeLike, bad: float, place: int
) -> None:
    """The message names the variable and the place, so that a loss can be mended."""
    gradient = np.ones(10_000, dtype)
    gradient[place] = bad

    with pytest.raises(
        NonFiniteError, match=rf"^b: expected finite gradients, got {bad} at \({place},"
    ):
        require_finite({"a": np.ones(3, dtype), "b": gradient})


@_by_dtype
def test_infinities_that_cancel_out_are_found(dtype: npt.DTypeLike) -> None:
    """Their sum is NaN; the first of them is named, by all of its indices."""
    gradient = np.zeros((2, 3), dtype)
    gradient[0, 2], gradient[1, 0] = math.inf, -math.inf

    with pytest.raises(NonFiniteError, match=r"^w: .*, got inf at \(0, 2\)$"):
        require_finite({"w": gradient})


@_by_dtype
@pytest.mark.parametrize("sign", [1, -1])
def test_large_numbers_are_not_taken_for_infinities(dtype: Any, sign: int) -> None:
    """Their sum overflows, as that of 3e38 and 3e38 does in float32."""
    gradient = np.full(1000, sign * _LARGEST[dtype]).astype(dtype)

    require_finite({"w": gradient, "v": gradient[:2]})

    assert np.isfinite(gradient).all()


@_by_dtype
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_gradients_are_finite(
    dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> None:
    """They have a norm as well: the number's own, or none."""
    gradients = {"w": np.ones(shape, dtype)}

    require_finite(gradients)
    require_norm(gradients.values(), 1.0)

    with pytest.raises(NonFiniteError, match=r"^w: .*, got nan at \(\)$"):
        require_finite({"w": np.full((), math.nan, dtype)})


@given(
    array=st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=5))
    )
)
def test_finite_means_every_element_is(array: Array) -> None:
    """Any bit pattern, subnormal numbers and negative zeros too."""
    finite = all(map(math.isfinite, array.ravel().tolist()))

    try:
        require_finite({"w": array})
    except NonFiniteError:
        assert not finite
    else:
        assert finite


@_by_dtype
def test_the_norm_is_over_all_gradients_and_may_reach_the_bound(
    dtype: npt.DTypeLike,
) -> None:
    """3, 4 and a zero have norm 5, in whatever variables they are."""
    gradients = {"a": np.array([3], dtype), "b": np.array([[0, -4]], dtype)}

    require_norm(gradients.values(), 5.0)

    with pytest.raises(
        GradientNormError,
        match=r"^gradients: expected a global norm of at most 4\.99, got 5$",
    ):
        require_norm(gradients.values(), 4.99)


@_by_dtype
@given(data=st.data())
def test_the_norm_is_that_of_float64(dtype: Any, data: st.DataObject) -> None:
    """Squares overflow in the smaller types long before the norm does."""
    largest = min(_LARGEST[dtype], 1e150)
    numbers = st.lists(st.floats(-largest, largest), min_size=1, max_size=8)
    gradients = {
        name: np.array(data.draw(numbers)).astype(dtype) for name in ("a", "b")
    }
    exact = math.hypot(*(float(x) for array in gradients.values() for x in array))

    require_norm(gradients.values(), exact * (1 + 1e-12) + 1e-150)

    if exact > 1e-150:
        with pytest.raises(GradientNormError, match=r"^gradients: .* global norm"):
            require_norm(gradients.values(), exact * (1 - 1e-12))


@_by_dtype
@pytest.mark.parametrize("place", [0, 2**16 - 1, 2**16, 2**17 + 4])
def test_every_element_of_a_long_gradient_counts(
    dtype: npt.DTypeLike, place: int
) -> None:
    """Also where it is cut to be summed, and as a matrix."""
    gradient = np.zeros((2**17 + 5, 1), dtype)
    gradient[place] = 2

    require_norm([gradient], 2.0)

    with pytest.raises(GradientNormError, match=r"at most 1\.99, got 2$"):
        require_norm([gradient], 1.99)


@pytest.mark.parametrize("size", [1.3e154, 1e200, 1.7e308])
def test_a_norm_whose_squares_overflow_is_over_any_bound_people_set(
    size: float,
) -> None:
    """Even float64 has an end: the squares or their sum lie beyond it."""
    gradients = {"a": np.array([size]), "b": np.array([size])}

    with pytest.raises(GradientNormError, match=r"^gradients: .* at most 1e\+06, got"):
        require_norm(gradients.values(), 1e6)
