"""The arrays' bytes survive the way, bit for bit, and broken ones are refused."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire import body
from pswire.errors import (
    InvalidRequestError,
    ParameterServerError,
    VariableMismatchError,
)
from pswire.layout import Layout
from pswire.memory import aligned

Arrays = dict[str, npt.NDArray[Any]]
Pieces = Sequence[tuple[int, body.Buffer]]

W = Layout.of({"w": np.empty(2, np.float32)})


def bits(array: npt.NDArray[Any]) -> bytes:
    """Return an array's elements, little-endian in C order, whatever it is like."""
    stored = array.byteswap() if array.dtype.byteorder == ">" else array
    return stored.tobytes()


def assembled(layout: Layout, pieces: Pieces) -> Arrays:
    """Put pieces together as a receiver does."""
    assembly = body.Assembly(layout)
    for offset, data in pieces:
        assembly.add(offset, data)
    return dict(assembly.finish())


def assert_same_bits(got: Arrays, sent: Arrays) -> None:
    """Compare names, order, shapes, dtypes and every bit."""
    assert list(got) == list(sent)
    for name, array in sent.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype.newbyteorder("=")
        assert got[name].tobytes() == bits(array)


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_arrays_survive_in_one_piece(
    data: st.DataObject, named_arrays: st.SearchStrategy[Arrays]
) -> None:
    """Every array starts at a multiple of 64, and the gaps before it are zero."""
    arrays = data.draw(named_arrays)
    layout = Layout.of(arrays)
    expected = b""
    for array in filter(np.size, arrays.values()):
        expected += bytes(-len(expected) % 64) + bits(array)

    whole = bytes(body.join(layout, arrays))

    assert whole == expected
    assert len(whole) == layout.nbytes
    assert_same_bits(assembled(layout, [(0, whole)]), arrays)


@settings(deadline=None, derandomize=True)
@given(data=st.data(), nbytes=st.integers(1, 300))
def test_arrays_survive_in_pieces(
    data: st.DataObject, nbytes: int, named_arrays: st.SearchStrategy[Arrays]
) -> None:
    """Of any size: the pieces follow each other and are full, but for the last."""
    arrays = data.draw(named_arrays)
    layout = Layout.of(arrays)

    pieces = list(body.cut(layout, arrays, nbytes))

    assert [offset for offset, _ in pieces] == list(range(0, layout.nbytes, nbytes))
    assert all(len(piece) == nbytes for _, piece in pieces[:-1])
    assert b"".join(piece for _, piece in pieces) == bytes(body.join(layout, arrays))
    assert_same_bits(assembled(layout, pieces), arrays)


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [
        ("<u2", "017c"),  # float16: a signalling NaN.
        ("<u4", "0100807f"),  # float32: a signalling NaN.
        ("<u4", "efbeedff"),  # float32: a negative NaN with a payload.
        ("<u4", "00000080"),  # float32: -0.0.
        ("<u8", "010000000000f07f"),  # float64: a signalling NaN.
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_no_number_is_made_of_the_bits(
    dtype: str, pattern: str, order: Literal["<", ">"]
) -> None:
    """NaN's payload and zero's sign survive, from either order of bytes."""
    number = np.frombuffer(bytes.fromhex(pattern), dtype)
    stored = number.astype(number.dtype.newbyteorder(order))
    array = stored.view(f"{order}f{number.itemsize}")

    layout = Layout.of({"w": array})
    got = assembled(layout, [(0, bytes(body.join(layout, {"w": array})))])

    assert got["w"].tobytes().hex() == pattern


def test_a_body_in_one_piece_is_not_copied() -> None:
    """It stays where it is, if that is where JAX can use it."""
    memory = aligned(W.nbytes + 64)
    memory[:] = 0
    here, beside = memory[: W.nbytes], memory[4 : 4 + W.nbytes]

    assert np.shares_memory(assembled(W, [(0, here.data)])["w"], here)
    assert not np.shares_memory(assembled(W, [(0, beside.data)])["w"], beside)


@pytest.mark.parametrize("nbytes", [1000, 70])
def test_what_arrives_cannot_be_written(nbytes: int) -> None:
    """Snapshots are shared between calls, so nobody may change one."""
    arrays = {name: np.ones(30, np.float32) for name in "ab"}
    layout = Layout.of(arrays)

    got = assembled(layout, list(body.cut(layout, arrays, nbytes)))

    assert [array.flags.writeable for array in got.values()] == [False, False]


def test_pieces_are_put_where_jax_takes_arrays_without_a_copy() -> None:
    """In memory, too, every array starts at a multiple of 64."""
    arrays = {name: np.ones(30, np.float32) for name in "abc"}
    layout = Layout.of(arrays)

    got = assembled(layout, list(body.cut(layout, arrays, 50)))

    assert [array.ctypes.data % 64 for array in got.values()] == [0, 0, 0]


def test_memory_is_taken_only_when_bytes_have_come() -> None:
    """A header that promises more than any machine has costs nothing by itself."""
    layout = Layout.of({"w": np.broadcast_to(np.float32(0), (2**59,))})

    assembly = body.Assembly(layout)

    text = f"^body: expected {2**61} bytes, got 0$"
    with pytest.raises(VariableMismatchError, match=text):
        assembly.finish()


@pytest.mark.parametrize(
    ("pieces", "error", "text"),
    [
        ([], VariableMismatchError, "body: expected 8 bytes, got 0"),
        ([(0, b"1234567")], VariableMismatchError, "body: expected 8 bytes, got 7"),
        ([(0, b"123456789")], VariableMismatchError, "body: expected 8 bytes, got 9"),
        (
            [(0, b"12345678"), (8, b"9")],
            VariableMismatchError,
            "body: expected 8 bytes, got 9",
        ),
        (
            [(0, b"1234"), (4, b"56789")],
            VariableMismatchError,
            "body: expected 8 bytes, got 9",
        ),
        ([(4, b"5678")], InvalidRequestError, "offset: expected 0 bytes, got 4"),
        (
            [(0, b"1234"), (0, b"1234")],
            InvalidRequestError,
            "offset: expected 4 bytes, got 0",
        ),
        (
            [(0, b"12345678"), (0, b"12345678")],
            InvalidRequestError,
            "offset: expected 8 bytes, got 0",
        ),
        (
            [(0, b"1234"), (2**64 - 1, b"5678")],
            InvalidRequestError,
            f"offset: expected 4 bytes, got {2**64 - 1}",
        ),
    ],
    ids=[
        *("none", "short", "long", "one-more", "last-too-long"),
        *("gap", "repeated", "whole-repeated", "far-away"),
    ],
)
def test_pieces_that_are_not_the_body_are_refused(
    pieces: Pieces, error: type[ParameterServerError], text: str
) -> None:
    """The message says how many bytes were expected, and how many came."""
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        assembled(W, pieces)


@pytest.mark.parametrize("byte", [2, 255])
@pytest.mark.parametrize("nbytes", [1, 3])
def test_a_bool_is_0_or_1(byte: int, nbytes: int) -> None:
    """Other bytes would be both true and unequal to true."""
    layout = Layout.of({"w": np.empty(0, np.float32), "mask": np.empty(3, np.bool_)})
    data = bytes([1, 0, byte])
    pieces = [(at, data[at : at + nbytes]) for at in range(0, 3, nbytes)]

    text = f"^mask: expected bools of 0 or 1, got {byte}$"
    with pytest.raises(VariableMismatchError, match=text):
        assembled(layout, pieces)
