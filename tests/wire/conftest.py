"""What the tests of the contract share: arrays of every kind that can travel."""

import unicodedata
from collections.abc import Callable
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

Arrays = dict[str, npt.NDArray[Any]]

_DTYPES = [
    *(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16)),
    *(np.dtype(kind) for kind in (np.float32, np.float64, np.bool_)),
    *(np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
]
_NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)
_SHAPES = np_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
_PATTERNS = st.one_of(
    st.binary(min_size=1),
    # Infinities and NaNs of the floating-point types, and -0.0.
    st.sampled_from([b"\x00\x80", b"\x01\x7f\x80\xff", b"\x01\x00\x80\x7f"]),
)


def _swapped(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    big = array.dtype.newbyteorder(">")
    # bfloat16 has one byte order only.
    return array if big == array.dtype else array.byteswap().view(big)


def _strided(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array


_FORMS: list[Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = [
    np.asarray,
    np.asfortranarray,
    np.flip,
    _swapped,
    _strided,
]


@st.composite
def _arrays(draw: st.DrawFn) -> npt.NDArray[Any]:
    dtype, shape = draw(st.sampled_from(_DTYPES)), draw(_SHAPES)
    pattern = np.frombuffer(draw(_PATTERNS), np.uint8)
    bits = np.resize(pattern, prod(shape) * dtype.itemsize)
    if dtype == np.bool_:
        bits = bits & 1
    return draw(st.sampled_from(_FORMS))(bits.view(dtype).reshape(shape))


@pytest.fixture(scope="session")
def named_arrays() -> st.SearchStrategy[Arrays]:
    """Draw {name: array}: every dtype, any bits, any order of bytes and elements."""
    pairs = st.tuples(_NAMES, _arrays())
    return st.lists(
        pairs,
        max_size=5,
        unique_by=lambda pair: unicodedata.normalize("NFC", pair[0]),
    ).map(dict)
