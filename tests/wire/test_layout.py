"""Layouts: what travels under which name, and where its bytes are."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import VariableMismatchError
from pswire.layout import ArraySpec, Layout

DTYPES = {
    "FLOAT16": np.dtype(np.float16),
    "BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "FLOAT32": np.dtype(np.float32),
    "FLOAT64": np.dtype(np.float64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
FLOAT32 = np.dtype(np.float32)


def message(*shape: int, name: str = "w", dtype: int = pb.FLOAT32) -> pb.ArraySpec:
    """Write a spec as a stranger might, with nothing checked."""
    spec = pb.ArraySpec(name=name, shape=shape)
    spec.dtype = dtype  # type: ignore[assignment]
    return spec


def layout(**shapes: tuple[int, ...]) -> Layout:
    """Lay out float32 arrays without allocating them."""
    return Layout(tuple(ArraySpec(n, FLOAT32, s) for n, s in shapes.items()))


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_a_layout_survives_the_wire(
    data: st.DataObject, named_arrays: st.SearchStrategy[dict[str, npt.NDArray[Any]]]
) -> None:
    """Through the bytes of its message; the arrays' order is kept, too."""
    sent = Layout.of(data.draw(named_arrays))

    wire = sent.to_proto().SerializeToString()

    assert Layout.from_proto(pb.Layout.FromString(wire)) == sent


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_every_array_has_its_own_aligned_place(
    data: st.DataObject, named_arrays: st.SearchStrategy[dict[str, npt.NDArray[Any]]]
) -> None:
    """At the first multiple of 64 after the one before; the end is the last byte."""
    layout = Layout.of(data.draw(named_arrays))

    end = 0
    for offset, spec in zip(layout.offsets, layout.arrays, strict=True):
        assert offset % 64 == 0
        assert 0 <= offset - end < 64
        end = offset + spec.nbytes if spec.nbytes else end

    assert layout.nbytes == end


@pytest.mark.parametrize(("number", "dtype"), DTYPES.items(), ids=DTYPES.keys())
def test_a_dtype_has_its_number(number: str, dtype: np.dtype[Any]) -> None:
    """The number is the contract: it never changes, whatever the library calls it."""
    layout = Layout.of({"w": np.empty((2, 3), dtype.newbyteorder(">"))})

    sent = layout.to_proto()

    assert sent == pb.Layout(
        arrays=[message(2, 3, dtype=pb.DType.Value(number))],
    )
    assert layout.arrays == (ArraySpec("w", dtype, (2, 3)),)


def test_every_number_of_the_schema_is_a_dtype() -> None:
    """The table above holds them all, but for the one that means none."""
    numbers = set(pb.DType.keys()) - {"DTYPE_UNSPECIFIED"}

    assert numbers == DTYPES.keys()


def test_only_floating_point_types_are_trainable() -> None:
    """What is left keeps its order."""
    arrays = {name: np.empty(1, dtype) for name, dtype in DTYPES.items()}

    trainable = Layout.of(arrays).trainable

    names = [spec.name for spec in trainable]
    assert names == ["FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64"]


def test_offsets_do_not_stop_at_32_bits() -> None:
    """No array is made: a layout is numbers alone."""
    big = 2**33 + 1

    got = layout(a=(big,), empty=(0, big), b=(3,), scalar=(), c=(big, 2))

    a_end = 4 * big
    b = a_end + 60
    assert got.offsets == (0, b, b, b + 64, b + 128)
    assert got.nbytes == b + 128 + 8 * big


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        ([message(name="")], "name: expected 1 to 1024 bytes, got 0"),
        ([message(name="é" * 513)], "name: expected 1 to 1024 bytes, got 1026"),
        ([message(name="a\0")], r"'a\x00': expected a name without control characters"),
        ([message(name="\x9b")], r"'\x9b': expected a name without control characters"),
        ([message(), message()], "w: expected once, got twice"),
        (
            [message(name="e\u0301"), message(name="\u00e9")],
            "\u00e9: expected once, got twice",
        ),
        ([message(dtype=0)], "w: expected a known dtype, got number 0"),
        ([message(dtype=99)], "w: expected a known dtype, got number 99"),
        ([message(2, -1)], "w: expected dimensions of 0 or more, got (2, -1)"),
        ([message(*[1] * 65)], "w: expected at most 64 dimensions, got 65"),
        (
            [message(2**62)],
            f"w: expected at most {2**62} bytes, got ({2**62},)",
        ),
        (
            [message(0, 2**62, 2**62)],
            f"w: expected at most {2**62} bytes, got (0, {2**62}, {2**62})",
        ),
        (
            [message(2**60, name="a"), message(1, name="b")],
            f"layout: expected at most {2**62} bytes, got {2**62 + 4}",
        ),
    ],
)
def test_a_layout_from_a_stranger_is_refused(
    specs: list[pb.ArraySpec], text: str
) -> None:
    """The message begins with the name that is amiss."""
    received = pb.Layout(arrays=specs)

    with pytest.raises(VariableMismatchError, match=f"^{re.escape(text)}$"):
        Layout.from_proto(received)


@pytest.mark.parametrize(
    ("name", "dtype", "text"),
    [
        ("w", np.complex64, "w: expected one of float16, .*, bool, got complex64"),
        ("w", object, "w: expected one of float16, .*, bool, got object"),
        ("w", ml_dtypes.int4, "w: expected one of float16, .*, bool, got int4"),
        ("w", "U3", "w: expected one of float16, .*, bool, got <U3"),
        ("", np.float32, "name: expected 1 to 1024 bytes, got 0"),
        ("w\n", np.float32, r"'w\\n': expected a name without control characters"),
        ("w\ud800", np.float32, r".*w\\ud800.*: expected "),
    ],
)
def test_an_array_that_cannot_travel_is_refused_before_it_is_sent(
    name: str, dtype: npt.DTypeLike, text: str
) -> None:
    """The sender learns it from its own side, by the variable's name."""
    arrays = {name: np.empty(1, dtype)}

    with pytest.raises(VariableMismatchError, match=f"^{text}"):
        Layout.of(arrays)


def test_a_layout_wants_its_arrays_in_any_order() -> None:
    """A body's order is its sender's to choose."""
    ordered = layout(a=(2,), b=())

    ordered.require(layout(b=(), a=(2,)))


@pytest.mark.parametrize(
    ("got", "text"),
    [
        (layout(b=()), "a: expected (2,) float32, got none"),
        (layout(a=(3,), b=()), "a: expected (2,) float32, got (3,) float32"),
        (layout(a=(2,), b=(1,)), "b: expected () float32, got (1,) float32"),
        (
            Layout.of({"a": np.empty(2, np.float64), "b": np.empty((), np.float32)}),
            "a: expected (2,) float32, got (2,) float64",
        ),
        (
            layout(a=(2,), b=(), c=(4,)),
            "c: expected one of a, b, got (4,) float32 of another name",
        ),
    ],
    ids=["missing", "shape", "rank", "dtype", "extra"],
)
def test_a_layout_names_what_is_amiss(got: Layout, text: str) -> None:
    """First the variable, then what was expected, then what came."""
    expected = layout(a=(2,), b=())

    with pytest.raises(VariableMismatchError, match=f"^{re.escape(text)}$"):
        expected.require(got)


@pytest.mark.parametrize("got", [layout(b=()), layout(b=(), a=(2,))])
def test_some_of_a_layouts_arrays_will_do_where_not_all_are_wanted(
    got: Layout,
) -> None:
    """In any order."""
    layout(a=(2,), b=()).require_some(got)


@pytest.mark.parametrize(
    ("got", "text"),
    [
        (layout(), "layout: expected one or more of a, b, got none"),
        (layout(b=(1,)), "b: expected () float32, got (1,) float32"),
        (layout(b=(), c=(4,)), "c: expected one of a, b, got (4,) float32 of another"),
    ],
    ids=["none", "rank", "extra"],
)
def test_a_layout_names_what_is_amiss_among_some(got: Layout, text: str) -> None:
    """Also that nothing is there at all."""
    with pytest.raises(VariableMismatchError, match=f"^{re.escape(text)}"):
        layout(a=(2,), b=()).require_some(got)


def test_a_long_list_of_names_is_cut_short() -> None:
    """A model of thousands of variables still gets a message that can be read."""
    expected = layout(**{f"v{i}": () for i in range(9)})

    text = "^x: expected one of v0, v1, v2, v3, v4 and 4 more, got"
    with pytest.raises(VariableMismatchError, match=text):
        expected.require(layout(**{f"v{i}": () for i in range(9)}, x=()))


def _mixed() -> Layout:
    return Layout.of(
        {
            "mask": np.empty(3, np.bool_),
            "none": np.empty((0, 5), np.bool_),
            "w": np.empty((4, 4), np.float32),
            "flag": np.empty((), np.bool_),
            "b": np.empty(9, np.int8),
        }
    )


def test_an_array_s_place_is_found_by_its_name() -> None:
    """In the layout's order; one of no elements has a place, too."""
    mixed = _mixed()

    places = mixed.places

    assert list(places) == ["mask", "none", "w", "flag", "b"]
    assert [spec for spec, _ in places.values()] == list(mixed.arrays)
    assert [offset for _, offset in places.values()] == [0, 64, 64, 128, 192]


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_every_byte_is_an_array_s_or_of_a_gap(
    data: st.DataObject, named_arrays: st.SearchStrategy[dict[str, npt.NDArray[Any]]]
) -> None:
    """Of one or the other, never of both; behind the last array there is none."""
    layout = Layout.of(data.draw(named_arrays))

    filled = [
        index
        for spec, offset in layout.places.values()
        for index in range(offset, offset + spec.nbytes)
    ]

    assert sorted([*filled, *layout.gaps.tolist()]) == list(range(layout.nbytes))


@pytest.mark.parametrize(
    ("shapes", "gaps"),
    [
        ({}, []),
        ({"a": (3,)}, []),
        ({"a": (16,), "b": (16,)}, []),
        ({"a": (15,), "b": ()}, [60, 61, 62, 63]),
        ({"a": (15,), "none": (0,), "b": (1,)}, [60, 61, 62, 63]),
        ({"a": (15,), "none": (0,)}, []),
        ({"none": (0,), "a": (16,), "b": (31,), "c": (1,)}, [188, 189, 190, 191]),
    ],
)
def test_gaps_lie_between_arrays_that_have_bytes(
    shapes: dict[str, tuple[int, ...]], gaps: list[int]
) -> None:
    """An array of no elements neither ends a gap nor begins one."""
    assert layout(**shapes).gaps.tolist() == gaps


def test_bools_are_named() -> None:
    """Bytes are not bools, though as large."""
    assert _mixed().bools == ("mask", "none", "flag")
    assert layout(a=(2,)).bools == ()


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_a_layout_describes_the_arrays_that_it_is_of(
    data: st.DataObject, named_arrays: st.SearchStrategy[dict[str, npt.NDArray[Any]]]
) -> None:
    """As soon as they are in this machine's order of bytes."""
    arrays = {
        name: array.astype(array.dtype.newbyteorder("="))
        for name, array in data.draw(named_arrays).items()
    }

    assert Layout.of(arrays).describes(arrays)


def _of(**arrays: tuple[int | tuple[int, ...], npt.DTypeLike]) -> Any:
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in arrays.items()}


@pytest.mark.parametrize(
    ("arrays", "described"),
    [
        (_of(a=(2, "f4"), b=((), "f4")), True),
        (_of(b=((), "f4"), a=(2, "f4")), False),
        (_of(a=(2, "f4")), False),
        (_of(a=(2, "f4"), b=((), "f4"), c=(2, "f4")), False),
        (_of(a=(2, "f4"), c=((), "f4")), False),
        (_of(a=(3, "f4"), b=((), "f4")), False),
        (_of(a=((2, 1), "f4"), b=((), "f4")), False),
        (_of(a=(2, "f4"), b=(1, "f4")), False),
        (_of(a=(2, "i4"), b=((), "f4")), False),
        (_of(a=(2, "f8"), b=((), "f4")), False),
        (_of(a=(2, ">f4"), b=((), "f4")), False),
        ({}, False),
    ],
    ids=[
        *("same", "order", "missing", "extra", "name", "size", "rank", "scalar"),
        *("kind", "width", "byte-order", "none"),
    ],
)
def test_a_layout_describes_no_other_arrays(arrays: Any, described: bool) -> None:
    """Names, their order, shapes and dtypes are all the same, or it does not."""
    assert layout(a=(2,), b=()).describes(arrays) is described


def test_an_empty_layout_describes_no_arrays() -> None:
    """And them alone."""
    assert Layout(()).describes({})
    assert not Layout(()).describes(_of(a=(0, "f4")))
