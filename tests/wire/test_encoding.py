"""What of arrays travels, and what is made of it on the other side."""

import re
from collections.abc import Callable
from math import ceil
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire.encoding import BFLOAT16, PLAIN, Encoding
from pswire.errors import InvalidRequestError, VariableMismatchError
from pswire.layout import ArraySpec, Layout

Arrays = dict[str, npt.NDArray[Any]]

F32 = np.dtype(np.float32)
U32 = np.dtype(np.uint32)
NARROW = Encoding(BFLOAT16)

MIXED: Arrays = {
    "a/b": np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4),
    "ünï": np.asarray([1 / 3, -1e-40, 3e38], np.float32),
    "half": np.asarray([1 / 3], np.float16),
    "brain": np.asarray([1 / 3], ml_dtypes.bfloat16),
    "double": np.asarray([1 / 3, 1e300]),
    "scalar": np.asarray(1 / 3, np.float32),
    "none": np.empty((0, 3), np.float32),
    "mask": np.asarray([True, False, True]),
    "n": np.arange(-2, 3, dtype=np.int32),
}
LAYOUT = Layout.of(MIXED)


def sent(
    encoding: Encoding, arrays: body.Arrays, indices: Arrays
) -> tuple[body.Body, bytes]:
    """Return the arrays as they are after their way, and the bytes that went it."""
    layout = Layout.of(arrays)
    travelling = encoding.layout(layout)
    data = bytes(body.join(travelling, encoding.encode(arrays, indices)))
    assembly = body.Assembly(travelling)
    assembly.add(0, data)
    return encoding.decode(layout, assembly.finish()), data


def rounded_bits(bits: int) -> int:
    """Round a float32 to bfloat16 by integers alone; NaN is any NaN's bits."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FC0
    high, low = divmod(bits, 0x10000)
    up = low > 0x8000 or (low == 0x8000 and high % 2 == 1)
    return high + up


def assert_rounded(got: npt.NDArray[Any], given: npt.NDArray[Any]) -> None:
    """Compare with what integer arithmetic makes of every number."""
    assert got.dtype == given.dtype
    assert got.shape == given.shape
    high = got.reshape(-1).view(np.uint32)
    assert not (high & 0xFFFF).any()
    for bits, there in zip(given.reshape(-1).view(np.uint32), high >> 16, strict=True):
        if bits & 0x7FFFFFFF > 0x7F800000:
            assert there & 0x7FFF > 0x7F80
        else:
            assert there == rounded_bits(int(bits))


# Rounding


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F800000, 0x3F80),  # 1.0
        (0x3F808000, 0x3F80),  # Halfway, down to even.
        (0x3F818000, 0x3F82),  # Halfway, up to even.
        (0x3F808001, 0x3F81),  # Just above halfway.
        (0x3F817FFF, 0x3F81),  # Just below it.
        (0x3FFFFFFF, 0x4000),  # Up to the next power of two.
        (0x00000000, 0x0000),  # 0.0
        (0x80000000, 0x8000),  # -0.0
        (0x00000001, 0x0000),  # The smallest subnormal.
        (0x80000001, 0x8000),  # Its sign stays.
        (0x00018000, 0x0002),  # A subnormal, halfway.
        (0x007FFFFF, 0x0080),  # The largest subnormal becomes normal.
        (0x7F7F7FFF, 0x7F7F),  # The last that is finite.
        (0x7F7F8000, 0x7F80),  # Halfway past the largest: infinity.
        (0xFF7FFFFF, 0xFF80),  # Float32's lowest: minus infinity.
        (0x7F800000, 0x7F80),  # Infinity.
        (0xFF800000, 0xFF80),
    ],
)
def test_a_number_is_rounded_to_the_nearest_ties_to_even(
    bits: int, rounded: int
) -> None:
    """The bits are written out, so this is the rule and no second program."""
    array = np.asarray([bits], np.uint32).view(np.float32)

    got, data = sent(NARROW, {"w": array}, {})

    assert data == rounded.to_bytes(2, "little")
    assert got["w"].view(np.uint32) == rounded << 16
    assert rounded_bits(bits) == rounded


@pytest.mark.parametrize("bits", [0x7F800001, 0x7F80FFFF, 0x7FC00000, 0xFF808000])
def test_nan_stays_nan(bits: int) -> None:
    """Also one whose payload lies in the bits that are left out."""
    array = np.asarray([bits], np.uint32).view(np.float32)

    got, _ = sent(NARROW, {"w": array}, {})

    assert np.isnan(got["w"]).all()


@settings(deadline=None, derandomize=True)
@given(
    patterns=st.lists(
        st.integers(0, 2**32 - 1)
        | st.builds(
            # Around the ties, where rules of rounding differ.
            lambda high, low: (high << 16) + 0x8000 + low,
            st.integers(0, 2**16 - 1),
            st.integers(-1, 1),
        ),
        max_size=40,
    )
)
def test_any_bits_are_rounded_as_integers_say(patterns: list[int]) -> None:
    """Subnormals, infinities and NaN among them; what is rounded stays so."""
    array = np.asarray(patterns, np.uint32).view(np.float32)

    once, data = sent(NARROW, {"w": array}, {})
    twice, again = sent(NARROW, {"w": once["w"]}, {})

    assert len(data) == 2 * len(patterns)
    assert_rounded(once["w"], array)
    assert again == data
    assert twice["w"].tobytes() == once["w"].tobytes()


def test_only_float32_is_rounded() -> None:
    """Float16 and bfloat16 are narrow, float64 was chosen; others are no reals."""
    got, data = sent(NARROW, MIXED, {})

    assert list(got) == list(MIXED)
    for name, array in MIXED.items():
        if array.dtype == np.float32:
            assert_rounded(got[name], array)
        else:
            assert got[name].dtype == array.dtype
            assert got[name].tobytes() == array.tobytes()
    assert len(data) == NARROW.layout(LAYOUT).nbytes


# Layouts


def test_a_plain_encoding_is_the_arrays_as_they_are() -> None:
    """The very layout and, of a body, the very memory."""
    kept = body.Body.gather(LAYOUT, MIXED)

    assert PLAIN.layout(LAYOUT) is LAYOUT
    assert PLAIN.decode(LAYOUT, kept) is kept
    assert list(PLAIN.encode(MIXED, {})) == list(MIXED)


def test_a_narrow_layout_has_the_same_arrays() -> None:
    """In the same order and shapes, whatever they are called."""
    narrow = NARROW.layout(LAYOUT)

    expected = [
        (s.name, BFLOAT16 if s.dtype == F32 else s.dtype, s.shape) for s in LAYOUT
    ]
    assert [(s.name, s.dtype, s.shape) for s in narrow] == expected
    assert NARROW.layout(LAYOUT) is narrow


@pytest.mark.parametrize(
    ("wire_dtype", "elements"), [(None, F32), (BFLOAT16, BFLOAT16)], ids=["f32", "bf16"]
)
def test_a_part_of_an_array_travels_as_its_indices_then_its_elements(
    wire_dtype: np.dtype[Any] | None, elements: np.dtype[Any]
) -> None:
    """Each at a multiple of 64; one of which all elements travel is one array."""
    layout = Layout(
        (
            ArraySpec("a/b", F32, (4, 5)),
            ArraySpec("ü", F32, (3,)),
            ArraySpec("nothing", F32, (9,)),
            ArraySpec("none", F32, (0, 3)),
            ArraySpec("b", F32, ()),
        )
    )

    got = Encoding(wire_dtype, (17, 3, 0, 0, 1)).layout(layout)

    assert [(spec.dtype, spec.shape) for spec in got] == [
        (U32, (17,)),
        (elements, (17,)),
        (elements, (3,)),
        (U32, (0,)),
        (elements, (0,)),
        (elements, (0, 3)),
        (elements, ()),
    ]
    size = elements.itemsize
    after = 128 + ceil(17 * size / 64) * 64
    assert got.offsets[:3] == (0, 128, after)
    assert got.nbytes == after + 64 + size


@pytest.mark.parametrize("wire_dtype", [None, BFLOAT16], ids=["f32", "bf16"])
def test_gaps_are_zero(wire_dtype: np.dtype[Any] | None) -> None:
    """Byte for byte: what a client in any other language would write."""
    arrays = {"w": np.asarray([0, 1, 0, -2, 0], np.float32), "b": np.ones(1, F32)}

    _, data = sent(
        Encoding(wire_dtype, (2, 1)), arrays, {"w": np.asarray([1, 3], np.uint32)}
    )

    indices = bytes([1, 0, 0, 0, 3, 0, 0, 0])
    elements, one = bytes.fromhex("0000803f000000c0"), bytes.fromhex("0000803f")
    if wire_dtype:
        elements, one = bytes.fromhex("803f00c0"), bytes.fromhex("803f")
    assert data == indices.ljust(64, b"\0") + elements.ljust(64, b"\0") + one


# There and back


@st.composite
def _parts(draw: st.DrawFn, arrays: Arrays) -> tuple[tuple[int, ...], Arrays]:
    counts, indices = [], {}
    for name, array in arrays.items():
        chosen = draw(st.sets(st.integers(0, max(array.size - 1, 0))))
        chosen = {index for index in chosen if index < array.size}
        counts.append(len(chosen))
        if len(chosen) < array.size:
            indices[name] = np.asarray(sorted(chosen), np.uint32)
    return tuple(counts), indices


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_what_is_chosen_arrives_and_the_rest_is_zero(
    data: st.DataObject, named_arrays: st.SearchStrategy[Arrays]
) -> None:
    """Bit for bit: any names, shapes, types and orders of bytes; none or all too."""
    arrays = data.draw(named_arrays)
    counts, indices = data.draw(_parts(arrays))

    got, _ = sent(Encoding(None, counts), arrays, indices)

    assert list(got) == list(arrays)
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        where = indices.get(name, slice(None))
        expected = np.zeros(array.size, native.dtype)
        expected[where] = native.reshape(-1)[where]
        assert got[name].shape == array.shape
        assert got[name].dtype == native.dtype
        assert got[name].tobytes() == expected.tobytes()


def test_a_part_of_an_array_is_rounded_too() -> None:
    """Only what travels as float32: the part of a float64 is exact."""
    arrays = {"w": np.asarray([1, 1 / 3, 1 / 7], F32), "d": np.asarray([1 / 3, 1 / 7])}
    indices = {"w": np.asarray([1], np.uint32), "d": np.asarray([1], np.uint32)}

    got, _ = sent(Encoding(BFLOAT16, (1, 1)), arrays, indices)

    assert_rounded(got["w"], np.asarray([0, 1 / 3, 0], F32))
    assert got["d"].tolist() == [0, 1 / 7]


# What anyone at all may say


@pytest.mark.parametrize(
    ("number", "wire_dtype"), [(pb.DTYPE_UNSPECIFIED, None), (pb.BFLOAT16, BFLOAT16)]
)
def test_an_encoding_is_read_from_a_message(
    number: pb.DType, wire_dtype: np.dtype[Any] | None
) -> None:
    """And written again; no counts are none, not counts of nothing."""
    read = Encoding.from_proto(number, [])

    assert read == Encoding(wire_dtype)
    assert read.wire_dtype_number == number
    assert Encoding.from_proto(number, [3, 0]).counts == (3, 0)


@pytest.mark.parametrize("number", [pb.FLOAT16, pb.FLOAT32, pb.BOOL, 14, 99, -1])
def test_another_wire_dtype_is_refused(number: Any) -> None:
    """Also float32, which would say what is so anyway."""
    text = f"^wire_dtype: expected BFLOAT16 or none, got number {number}$"
    with pytest.raises(InvalidRequestError, match=text):
        Encoding.from_proto(number)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1,), "counts: expected 2, one an array, got 1"),
        ((1, 1, 1), "counts: expected 2, one an array, got 3"),
        ((1,) * 10**6, "counts: expected 2, one an array, got 1000000"),
        ((7, 1), "a/b: expected at most 6 elements, got 7"),
        ((1, 1), "none: expected at most 0 elements, got 1"),
        ((2**64 - 1,) * 2, f"a/b: expected at most 6 elements, got {2**64 - 1}"),
    ],
    ids=["fewer", "more", "a million", "too large", "of none", "huge"],
)
def test_counts_that_do_not_fit_are_named(counts: tuple[int, ...], text: str) -> None:
    """Before anything is taken to hold what they announce."""
    layout = Layout((ArraySpec("a/b", F32, (2, 3)), ArraySpec("none", F32, (0,))))

    with pytest.raises(VariableMismatchError, match=f"^{re.escape(text)}$"):
        Encoding(None, counts).layout(layout)


@pytest.mark.parametrize(
    "where",
    [[2, 1], [0, 0], [1, 1], [0, 6], [6, 7], [2**32 - 1, 0], [5, 2**32 - 1]],
    ids=str,
)
@pytest.mark.parametrize("encoding", [PLAIN, NARROW], ids=["f32", "bf16"])
def test_indices_that_do_not_rise_or_reach_too_far_are_refused(
    where: list[int], encoding: Encoding
) -> None:
    """An element twice would be a sum to some and the last one to others."""
    arrays = {"a/b": np.ones((2, 3), np.float32)}
    indices = {"a/b": np.asarray(where, np.uint32)}
    short = Encoding(encoding.wire_dtype, (2,))
    received = {
        **short.encode(arrays, {"a/b": np.asarray([0, 1], np.uint32)}),
        "a/b\0": indices["a/b"],
    }

    text = "^a/b: expected indices that rise and are below 6$"
    with pytest.raises(VariableMismatchError, match=text):
        short.decode(Layout.of(arrays), received)


@pytest.mark.parametrize("where", [[0], [5], [0, 5], [0, 1, 2, 3, 4]], ids=str)
def test_indices_may_reach_from_the_first_element_to_the_last(where: list[int]) -> None:
    """The bounds are the array's own."""
    arrays = {"w": np.arange(1, 7, dtype=np.float32).reshape(2, 3)}

    got, _ = sent(
        Encoding(None, (len(where),)), arrays, {"w": np.asarray(where, np.uint32)}
    )

    assert np.flatnonzero(got["w"]).tolist() == where


MAKE: dict[str, Callable[[], body.Arrays]] = {
    "arrays": lambda: MIXED,
    "body": lambda: body.Body.gather(LAYOUT, MIXED),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_what_is_sent_is_left_as_it_was(make: Callable[[], body.Arrays]) -> None:
    """The server's own copy stays exact, whoever wants it rounded."""
    arrays = make()
    before = {name: array.tobytes() for name, array in arrays.items()}

    bytes(body.join(NARROW.layout(LAYOUT), arrays))
    Encoding(BFLOAT16, tuple(a.size for a in MIXED.values())).encode(arrays, {})

    assert {name: array.tobytes() for name, array in arrays.items()} == before
