"""Which variables are tables, and which rows of them a worker wants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pswire.errors import VariableMismatchError
from pswire.layout import Layout
from pswire.patterns import fits
from pswire.rows import Ids, Rows, whole_ids


def with_tables(layout: Layout, patterns: Sequence[str]) -> Layout:
    """Return a layout of which some arrays are tables.

    Args:
        layout: Of the variables.
        patterns: The tables' names, or patterns of them.

    Raises:
        VariableMismatchError: A pattern fits no variable, or one that can be no table.
    """
    names = set[str]()
    for pattern in patterns:
        found = {name for name in layout.places if fits(pattern, name)}
        if not found:
            raise VariableMismatchError(
                f"tables: expected names or patterns of variables, got {pattern!r}"
            )
        names |= found
    return layout.by_rows(names) if names else layout


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows that a caller wants, in any order, some perhaps several times.

    Attributes:
        asked: Their ids by table, in arrays of any shape.
        ids: The same, each once: rising.
        places: Where among these each of those that were asked for is.
    """

    asked: Mapping[str, npt.NDArray[Any]]
    ids: Mapping[str, Ids]
    places: Mapping[str, npt.NDArray[np.intp]]

    @classmethod
    def of(cls, rows: Mapping[str, npt.ArrayLike]) -> Self:
        """Read what `Client.pull` takes.

        Raises:
            VariableMismatchError: Ids are no whole numbers.
        """
        asked = {name: np.asarray(ids) for name, ids in rows.items()}
        unique = {
            name: np.unique(whole_ids(name, ids), return_inverse=True)
            for name, ids in asked.items()
        }
        return cls(
            asked,
            {name: ids for name, (ids, _) in unique.items()},
            {n: places.reshape(asked[n].shape) for n, (_, places) in unique.items()},
        )

    def spread(self, found: Mapping[str, Rows]) -> dict[str, Rows]:
        """Return what was asked for, from the rows that have come."""
        return {
            name: Rows(self.asked[name], rows.values[self.places[name]])
            for name, rows in found.items()
        }
