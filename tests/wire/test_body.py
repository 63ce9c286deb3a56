"""The arrays' bytes survive the way, bit for bit, and broken ones are refused."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
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


MIXED: Arrays = {
    "a": np.arange(20, dtype=np.float32).reshape(4, 5),
    "none": np.empty((0, 3), np.int8),
    "mask": np.array([True, False, True]),
    "scalar": np.array(-2.5, np.float64),
    "b": np.arange(40, dtype=np.int16),
}
LAYOUT = Layout.of(MIXED)


def in_runs(layout: Layout, arrays: Arrays, starts: Sequence[str]) -> body.Body:
    """Keep arrays in several runs, each of which begins with one of the names."""
    whole = np.frombuffer(bytes(body.join(layout, arrays)), np.uint8)
    edges = [layout.places[name][1] for name in starts]
    runs = []
    for start, stop in pairwise([*edges, layout.nbytes]):
        # Up to the last array's end: the gap behind it belongs to no run.
        last = max(
            offset + spec.nbytes
            for spec, offset in layout.places.values()
            if spec.nbytes and start <= offset < stop
        )
        memory = aligned(last - start)
        memory[:] = whole[start:last]
        runs.append((start, memory))
    return body.Body(layout, runs)


KEPT: dict[str, Callable[[], body.Arrays]] = {
    "dict": lambda: MIXED,
    "one run": lambda: body.Body.gather(LAYOUT, MIXED),
    "two runs": lambda: in_runs(LAYOUT, MIXED, ["a", "mask"]),
    "four runs": lambda: in_runs(LAYOUT, MIXED, ["a", "mask", "scalar", "b"]),
    "in another order": lambda: body.Body.gather(
        Layout(tuple(reversed(LAYOUT.arrays))), MIXED
    ),
    "with others": lambda: body.Body.gather(
        Layout.of({"more": np.ones(3), **MIXED}), {"more": np.ones(3), **MIXED}
    ),
}


@pytest.fixture(params=[*KEPT.values()], ids=[*KEPT])
def kept(request: pytest.FixtureRequest) -> body.Arrays:
    """Keep the same arrays in one way or another."""
    return request.param()


def test_a_body_of_zeros_is_zero_and_can_be_written() -> None:
    """Its gaps, too; and what is written through one array is in no other."""
    zeros = body.Body.zeros(LAYOUT)
    before = bytes(body.join(LAYOUT, zeros))

    zeros["mask"][:] = True

    assert before == bytes(LAYOUT.nbytes)
    assert zeros["mask"].tolist() == [True] * 3
    assert not any(zeros[name].any() for name in LAYOUT.places if name != "mask")


def test_a_large_body_of_zeros_is_zero_in_memory_used_before() -> None:
    """Memory that is taken again still holds what it held."""
    layout = Layout.of({"w": np.empty(2**18 + 3, np.float32)})
    used = body.Body.zeros(layout)
    used["w"][:] = 7
    del used

    assert not body.Body.zeros(layout)["w"].any()


def test_arrays_gather_in_one_run(kept: body.Arrays) -> None:
    """In the layout's order, whatever they were kept in before."""
    gathered = body.Body.gather(LAYOUT, kept)

    assert [(start, memory.size) for start, memory in gathered.runs] == [
        (0, LAYOUT.nbytes)
    ]
    assert gathered.layout == LAYOUT
    assert_same_bits(dict(gathered), MIXED)
    assert gathered.runs[0][1].tobytes() == bytes(body.join(LAYOUT, MIXED))


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_any_arrays_gather(
    data: st.DataObject, named_arrays: st.SearchStrategy[Arrays]
) -> None:
    """Of any dtype and bits, stored in any order."""
    arrays = data.draw(named_arrays)
    layout = Layout.of(arrays)

    gathered = body.Body.gather(layout, arrays)

    assert_same_bits(dict(gathered), arrays)
    assert bytes(body.join(layout, gathered)) == bytes(body.join(layout, arrays))


def test_a_body_in_one_run_is_gathered_already() -> None:
    """It is not copied, unless other arrays are wanted or in another order."""
    gathered = body.Body.gather(LAYOUT, MIXED)
    turned = Layout(tuple(reversed(LAYOUT.arrays)))
    split = in_runs(LAYOUT, MIXED, ["a", "scalar"])

    assert body.Body.gather(LAYOUT, gathered) is gathered
    for other in (
        body.Body.gather(turned, gathered),
        body.Body.gather(LAYOUT.trainable, gathered),
        body.Body.gather(LAYOUT, split),
    ):
        assert not any(np.shares_memory(other["a"], b["a"]) for b in (gathered, split))


@pytest.mark.parametrize("nbytes", [1, 7, 64, 100, 127, 128, 10_000])
def test_a_body_is_cut_as_its_arrays_are(kept: body.Arrays, nbytes: int) -> None:
    """Into the same pieces of the same bytes, however it is kept."""
    expected = [(at, bytes(data)) for at, data in body.cut(LAYOUT, MIXED, nbytes)]

    pieces = [(at, bytes(data)) for at, data in body.cut(LAYOUT, kept, nbytes)]

    assert pieces == expected
    assert_same_bits(assembled(LAYOUT, pieces), MIXED)


def test_a_body_is_joined_and_copied_as_its_arrays_are(kept: body.Arrays) -> None:
    """Memory behind its end is left alone, and gaps are zero in memory used before."""
    expected = bytes(body.join(LAYOUT, MIXED))
    memory = np.full(LAYOUT.nbytes + 9, 255, np.uint8)

    body.copy(LAYOUT, kept, memory)

    assert bytes(body.join(LAYOUT, kept)) == expected
    assert memory.tobytes() == expected + bytes([255]) * 9


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_any_arrays_are_copied_as_they_are_joined(
    data: st.DataObject, named_arrays: st.SearchStrategy[Arrays]
) -> None:
    """Gaps, empty arrays and no arrays at all included."""
    arrays = data.draw(named_arrays)
    layout = Layout.of(arrays)
    memory = np.full(layout.nbytes, 255, np.uint8)

    body.copy(layout, arrays, memory)

    assert memory.tobytes() == bytes(body.join(layout, arrays))


def test_what_lies_in_one_run_is_sent_from_where_it_is() -> None:
    """As a whole, or in pieces; of two runs the whole is a copy."""
    gathered = body.Body.gather(LAYOUT, MIXED)
    split = in_runs(LAYOUT, MIXED, ["a", "mask"])
    memory = gathered.runs[0][1]

    sent = [body.join(LAYOUT, gathered)]
    sent += [data for _, data in body.cut(LAYOUT, gathered, 100)]

    assert all(np.shares_memory(memory, np.frombuffer(s, np.uint8)) for s in sent)
    whole = np.frombuffer(body.join(LAYOUT, split), np.uint8)
    assert not any(np.shares_memory(run, whole) for _, run in split.runs)


def test_a_body_of_other_arrays_is_sent_by_the_layout_asked_for(
    kept: body.Arrays,
) -> None:
    """Some of its arrays, say: the trainable ones."""
    expected = {name: MIXED[name] for name in ("a", "scalar")}
    layout = LAYOUT.trainable

    sent = bytes(body.join(layout, kept))

    assert_same_bits(assembled(layout, [(0, sent)]), expected)


@pytest.mark.parametrize("starts", [["a"], ["a", "mask"], ["a", "mask", "b"]])
def test_bytes_are_found_in_the_run_that_holds_them(starts: list[str]) -> None:
    """Up to both its ends, as a view."""
    kept = in_runs(LAYOUT, MIXED, starts)
    whole = bytes(body.join(LAYOUT, MIXED))

    for start, memory in kept.runs:
        end = start + memory.size
        for first, last in ((start, end), (start + 1, end - 1), (start, start + 1)):
            between = kept.between(first, last)

            assert between.tobytes() == whole[first:last]
            assert np.shares_memory(between, memory)


def test_a_body_is_a_mapping(kept: body.Arrays) -> None:
    """In its layout's order, with what any mapping offers."""
    assert len(kept) == len(list(kept)) == len(list(kept.items()))
    assert MIXED.keys() <= set(kept)
    assert "a" in kept
    assert "z" not in kept
    assert kept.get("z") is None
    with pytest.raises(KeyError, match="z"):
        kept["z"]
    assert_same_bits({name: kept[name] for name in MIXED}, MIXED)


def test_arrays_of_a_body_are_views() -> None:
    """What is written to one is there when it is asked for again."""
    zeros = body.Body.zeros(LAYOUT)

    zeros["a"][1, 2] = 5
    zeros["scalar"][...] = 6

    assert zeros["a"][1, 2] == 5
    assert zeros["scalar"] == 6
    assert np.shares_memory(zeros["a"], zeros["a"])


def test_a_frozen_body_cannot_be_written() -> None:
    """Through none of its runs; freezing it gives itself."""
    kept = in_runs(LAYOUT, MIXED, ["a", "mask"])
    before = [kept[name].flags.writeable for name in ("a", "b")]

    frozen = kept.freeze()

    assert frozen is kept
    assert before == [True, True]
    assert [frozen[name].flags.writeable for name in ("a", "b")] == [False, False]
    with pytest.raises(ValueError, match="read-only"):
        frozen["b"][0] = 1
    assert bytes(body.join(LAYOUT, frozen)) == bytes(body.join(LAYOUT, MIXED))


def test_a_body_of_nothing_has_no_bytes() -> None:
    """No arrays, or only such as have no elements."""
    arrays: Arrays = {"none": np.empty((0, 2), np.float32)}

    for layout, kept in ((Layout.of({}), {}), (Layout.of(arrays), arrays)):
        gathered = body.Body.gather(layout, kept)
        received = body.Assembly(layout).finish()

        assert_same_bits(dict(gathered), kept)
        assert_same_bits(dict(received), kept)
        assert bytes(body.join(layout, gathered)) == b""
        assert list(body.cut(layout, gathered)) == []


@pytest.mark.parametrize("nbytes", [1000, 50])
@pytest.mark.parametrize("index", [80, 127, 131, 191, 200, 255])
def test_bytes_between_arrays_are_zero(index: int, nbytes: int) -> None:
    """Nothing may hide there; the first and the last byte of each gap are read."""
    whole = bytearray(body.join(LAYOUT, MIXED))
    whole[index] = 1
    pieces = [
        (at, bytes(whole[at : at + nbytes])) for at in range(0, len(whole), nbytes)
    ]

    text = "^body: expected zeros between the arrays, got something else$"
    with pytest.raises(VariableMismatchError, match=text):
        assembled(LAYOUT, pieces)


def test_a_large_body_survives_in_pieces_and_in_one() -> None:
    """Beyond the size from which the work of copying is shared."""
    arrays: Arrays = {
        "a": np.arange(2**22 + 1, dtype=np.float32),
        "b": np.arange(5, dtype=np.float32),
    }
    layout = Layout.of(arrays)
    memory = np.full(layout.nbytes + 1, 255, np.uint8)

    body.copy(layout, arrays, memory)

    assert memory[-1] == 255
    assert_same_bits(assembled(layout, list(body.cut(layout, arrays))), arrays)
    assert_same_bits(assembled(layout, [(0, memory[:-1].data)]), arrays)
