"""Gradients in the order in which they travel."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pswire.body import Arrays, Body
from pswire.errors import VariableMismatchError
from pswire.layout import ArraySpec, Layout
from pswire.rows import Rows, ids_name, travelling


class LaidOut(NamedTuple):
    """Gradients that can travel.

    Attributes:
        variables: The layout of the variables that they are of.
        rows: How many rows of each table among these there are; empty: none of any.
        layout: Of the gradients, and of the ids of rows.
        arrays: All of that, by name.
    """

    variables: Layout
    rows: tuple[int, ...]
    layout: Layout
    arrays: Arrays


def lay_out(gradients: Mapping[str, Any], usual: Layout | None) -> LaidOut:
    """Lay gradients out.

    Args:
        gradients: By name: arrays, and of tables `Rows`.
        usual: The layout of all that has a gradient; None: nobody knows yet.

    Raises:
        VariableMismatchError: One is of no variable, or of another shape or type.
    """
    rows, dense = _rows(gradients)
    if usual is None:
        layout = dense.layout if isinstance(dense, Body) else Layout.of(dense)
        return LaidOut(layout, (), layout, dense)
    for table in usual.tables:
        if table.name in dense:
            raise VariableMismatchError(
                f"{table.name}: expected Rows, as it is a table, got a whole gradient"
            )
    variables = _dense(dense, usual.dense)
    summed: dict[str, Rows] = {}
    for name, each in rows.items():
        spec: ArraySpec | None
        spec, _ = usual.places.get(name, (None, 0))
        if spec is None or not spec.by_rows:
            known = ", ".join(table.name for table in usual.tables) or "none"
            raise VariableMismatchError(
                f"{name}: expected rows of one of {known}, got those of another array"
            )
        summed[name] = each.summed(spec)
    if variables is usual.dense and usual.tables:
        variables = usual
    elif summed:
        names = variables.places.keys() | summed.keys()
        variables = Layout(tuple(spec for spec in usual if spec.name in names))
    if not summed:
        return LaidOut(variables, (), travelling(variables, ()), dense)
    arrays = dict(dense)
    for name, each in summed.items():
        arrays |= {ids_name(name): each.ids, name: each.values}
    counts = tuple(
        len(summed[table.name].values) if table.name in summed else 0
        for table in variables.tables
    )
    return LaidOut(variables, counts, travelling(variables, counts), arrays)


def _rows(gradients: Mapping[str, Any]) -> tuple[dict[str, Rows], Arrays]:
    """Part rows from arrays; a body, which has none, stays as it is."""
    if isinstance(gradients, Body):
        return {}, gradients
    rows = {name: each for name, each in gradients.items() if isinstance(each, Rows)}
    if not rows:
        return {}, gradients
    return rows, {name: a for name, a in gradients.items() if name not in rows}


def _dense(arrays: Arrays, usual: Layout) -> Layout:
    """Return the layout of arrays, in the usual order; all must be as usual."""
    if isinstance(arrays, Body):
        got = arrays.layout
        is_usual = got == usual
    else:
        is_usual = usual.describes(arrays)
        got = usual if is_usual else Layout.of(arrays)
    if is_usual:
        return usual
    if not got.arrays:
        return got
    usual.require_some(got)
    if len(got.arrays) == len(usual.arrays):
        return usual
    return Layout(tuple(spec for spec in usual if spec.name in got.places))
