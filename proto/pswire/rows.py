"""Some rows of a table, and what of a layout travels where tables do by rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pswire.errors import VariableMismatchError
from pswire.layout import ArraySpec, Layout

MAX_ROWS = 2**20
"""Of one table, in one pull or push."""

Ids = npt.NDArray[np.int64]

IDS_DTYPE = np.dtype(np.int64)

_IDS = "\0rows"
"""Behind a table's name, that of its ids: no array of a user's has such a name."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a table, or gradients of them.

    Attributes:
        ids: Which rows, counted from 0, in an array of whole numbers of any shape. One
            may be there several times: then its gradients are added up.
        values: The rows: an array of the shape of the ids, then of a row.
    """

    ids: Any
    values: Any

    @property
    def dtype(self) -> np.dtype[Any]:
        """The values'."""
        return np.dtype(self.values.dtype)

    def summed(self, spec: ArraySpec) -> "Rows":
        """Return rows whose ids rise, each once: its values are the sum.

        Args:
            spec: The table's.

        Raises:
            VariableMismatchError: These are no rows of it.
        """
        ids, values = whole_ids(spec.name, self.ids), np.asarray(self.values)
        expected = (*np.shape(self.ids), *spec.shape[1:])
        if (values.shape, values.dtype) != (expected, spec.dtype):
            raise VariableMismatchError(
                f"{spec.name}: expected rows of {expected} {spec.dtype.name}, "
                f"got {values.shape} {values.dtype.name}"
            )
        values = values.reshape(-1, *spec.shape[1:])
        if not (ids[1:] > ids[:-1]).all():
            order = np.argsort(ids, kind="stable")
            ids, first = np.unique(ids[order], return_index=True)
            # Halves would lose what is small beside the sum.
            exact = np.promote_types(values.dtype, np.float32)
            sums = np.add.reduceat(values[order].astype(exact), first, axis=0)
            with np.errstate(over="ignore"):  # For the server to refuse, by name.
                values = sums.astype(spec.dtype)
        return Rows(ids, values)


def whole_ids(name: str, ids: npt.ArrayLike) -> Ids:
    """Return ids of rows, one after another.

    Args:
        name: The table's.
        ids: In an array of any shape.

    Raises:
        VariableMismatchError: They are no whole numbers.
    """
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise VariableMismatchError(
            f"{name}: expected ids of rows in whole numbers, got {array.dtype}"
        )
    return array.reshape(-1).astype(IDS_DTYPE, copy=False)


def require_ids(name: str, ids: Ids, size: int) -> None:
    """Check the ids of rows that have travelled.

    Args:
        name: The table's.
        ids: Which rows.
        size: How many the table has.

    Raises:
        VariableMismatchError: They do not rise, there is no such row, or there are too
            many.
    """
    if len(ids) > MAX_ROWS:
        raise _too_many(name, len(ids))
    _require_within(name, ids, size)
    if (ids[1:] <= ids[:-1]).any():
        raise VariableMismatchError(f"{name}: expected ids of rows that rise")


def of_rows(spec: ArraySpec, count: int) -> ArraySpec:
    """Return what so many rows of a table are."""
    shape = (count, *spec.shape[1:])
    return ArraySpec(spec.name, spec.dtype, shape, by_rows=True)


def with_rows(layout: Layout, rows: Mapping[str, Ids], *, has_dense: bool) -> Layout:
    """Return the layout of what a pull brings.

    Args:
        layout: Of all variables.
        rows: The ids of the rows that it brings, by table; there need be no such table.
        has_dense: Whether it also brings what is no table.
    """
    if has_dense and not rows:
        return layout.dense
    dense = layout.dense.arrays if has_dense else ()
    tables = {spec.name: spec for spec in layout.tables}
    found = (of_rows(tables[n], len(ids)) for n, ids in rows.items() if n in tables)
    return Layout((*dense, *found))


def ids_name(table: str) -> str:
    """Return the name under which the ids of a table's rows travel."""
    return table + _IDS


def travelling(layout: Layout, counts: tuple[int, ...]) -> Layout:
    """Return the layout of what travels of gradients.

    Args:
        layout: Of the variables that they are of.
        counts: How many rows of each table among them; empty: none of any.

    Raises:
        VariableMismatchError: There is not one count for each table, or one is of more
            rows than may travel.
    """
    if counts and len(counts) != len(layout.tables):
        raise VariableMismatchError(
            f"rows: expected {len(layout.tables)} counts, one a table, "
            f"got {len(counts)}"
        )
    return _with_ids(layout, counts) if counts else layout.dense


# A push asks several times; a worker often sends as many rows as before.
@lru_cache(maxsize=8)
def _with_ids(layout: Layout, counts: tuple[int, ...]) -> Layout:
    left = iter(counts)

    def specs() -> Iterator[ArraySpec]:
        for spec in layout:
            if not spec.by_rows:
                yield spec
            elif count := next(left):
                if count > MAX_ROWS:
                    raise _too_many(spec.name, count)
                yield ArraySpec(ids_name(spec.name), IDS_DTYPE, (count,))
                yield of_rows(spec, count)

    return Layout(tuple(specs()))


def _require_within(name: str, ids: Ids, size: int) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
        raise VariableMismatchError(
            f"{name}: expected ids of rows from 0 to {size - 1}, "
            f"got {ids.min()} to {ids.max()}"
        )


def _too_many(name: str, count: int) -> VariableMismatchError:
    return VariableMismatchError(
        f"{name}: expected at most {MAX_ROWS} rows, got {count}"
    )
