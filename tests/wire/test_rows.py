"""Rows of tables: what makes a table, which ids there are, and what travels."""

import numpy as np
import pytest

from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import VariableMismatchError
from pswire.layout import ArraySpec, Layout
from pswire.rows import IDS_DTYPE, MAX_ROWS, Rows, require_ids, travelling
from pswire.values import PushHeader

FLOAT32 = np.dtype(np.float32)
TABLE = ArraySpec("emb", FLOAT32, (10, 2), by_rows=True)
LAYOUT = Layout(
    (
        ArraySpec("a", FLOAT32, (3,)),
        TABLE,
        ArraySpec("b", FLOAT32, ()),
        ArraySpec("other", FLOAT32, (5, 1), by_rows=True),
    )
)


def test_a_layout_keeps_its_tables_on_the_wire() -> None:
    """They are no part of what travels whole."""
    got = Layout.from_proto(LAYOUT.to_proto())

    assert got == LAYOUT
    assert [spec.name for spec in got.tables] == ["emb", "other"]
    assert [spec.name for spec in got.dense] == ["a", "b"]


@pytest.mark.parametrize(
    ("dtype", "shape"), [(pb.FLOAT32, [3]), (pb.INT32, [3, 2]), (pb.FLOAT32, [])]
)
def test_not_every_array_can_be_a_table(dtype: pb.DType, shape: list[int]) -> None:
    """It needs rows that are more than a number, and gradients."""
    spec = pb.ArraySpec(name="t", dtype=dtype, shape=shape, by_rows=True)

    with pytest.raises(VariableMismatchError, match=r"^t: expected of a table 2 or"):
        Layout.from_proto(pb.Layout(arrays=[spec]))


def test_gradients_of_one_row_are_summed() -> None:
    """In single precision, whatever the type; the ids rise then."""
    values = np.array([[1, 2], [3, 4], [256, 0], [1, 0], [1, 1]], np.float16)
    table = ArraySpec("emb", np.dtype(np.float16), (10, 2), by_rows=True)

    summed = Rows([7, 2, 3, 7, 2], values).summed(table)

    assert summed.ids.tolist() == [2, 3, 7]
    assert summed.values.tolist() == [[4, 5], [256, 0], [2, 2]]
    assert summed.values.dtype == np.float16


def test_ids_may_be_of_any_shape() -> None:
    """Then the values begin with that shape."""
    rows = Rows(np.array([[1, 0], [0, 1]]), np.ones((2, 2, 2), np.float32))

    summed = rows.summed(TABLE)

    assert summed.ids.tolist() == [0, 1]
    assert summed.values.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    ("ids", "values", "told"),
    [
        ([0.5], np.ones((1, 2), np.float32), "expected ids of rows in whole numbers"),
        ([1], np.ones((2, 2), np.float32), r"expected rows of \(1, 2\) float32, got"),
        ([1], np.ones((1, 2)), r"expected rows of \(1, 2\) float32, got \(1, 2\) flo"),
    ],
)
def test_what_is_no_rows_of_the_table_is_told(
    ids: list[float], values: np.ndarray, told: str
) -> None:
    """By the table's name."""
    with pytest.raises(VariableMismatchError, match=f"^emb: {told}"):
        Rows(ids, values).summed(TABLE)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([0, 10], "from 0 to 9, got 0 to 10"),
        ([-1, 2], "from 0 to 9, got -1 to 2"),
        ([2, 2], "ids of rows that rise"),
        ([3, 2], "ids of rows that rise"),
    ],
)
def test_ids_that_have_travelled_are_checked(ids: list[int], told: str) -> None:
    """They rise, and there are such rows."""
    with pytest.raises(VariableMismatchError, match=f"^emb: expected .*{told}"):
        require_ids("emb", np.array(ids), 10)


def test_a_table_travels_as_ids_and_rows() -> None:
    """One of which no rows travel does not at all."""
    got = travelling(LAYOUT, (3, 0))

    assert [(spec.dtype, spec.shape) for spec in got] == [
        (FLOAT32, (3,)),
        (IDS_DTYPE, (3,)),
        (FLOAT32, (3, 2)),
        (FLOAT32, ()),
    ]
    assert travelling(LAYOUT, ()) == LAYOUT.dense


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((1,), "^rows: expected 2 counts, one a table, got 1"),
        ((MAX_ROWS + 1, 0), "^emb: expected at most 1048576 rows, got 1048577"),
    ],
)
def test_counts_of_rows_are_checked(counts: tuple[int, ...], told: str) -> None:
    """Before any memory is taken."""
    with pytest.raises(VariableMismatchError, match=told):
        travelling(LAYOUT, counts)


def test_a_push_brings_the_tables_that_it_has_rows_of() -> None:
    """The header keeps how many on the wire."""
    header = PushHeader("s", 1, "g", 0, 0, rows=(0, 2))

    got = PushHeader.from_proto(header.to_proto())

    assert got == header
    assert got.brought(LAYOUT) == {"a", "b", "other"}
