"""Which variables a worker differentiates and pushes."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from pswire import trees
from pswire.errors import VariableMismatchError
from pswire.layout import Layout, some
from pswire.patterns import fits


def chosen(variables: Any, layout: Layout) -> frozenset[str]:
    """Return the names of the variables that are meant.

    Args:
        variables: A name, or a pattern, see `fits`; some of them; or a pytree of
            bools like the params. None: all that can be trained.
        layout: Of the params.

    Raises:
        VariableMismatchError: A pattern fits nothing that can be trained, the pytree is
            not like the params, or none is left.
    """
    trainable = layout.trainable.places.keys()
    if variables is None:
        return frozenset(trainable)
    patterns = _patterns(variables)
    if patterns is None:
        names = trainable & _masked(variables, layout)
    else:
        names = {name for each in patterns for name in _fitting(each, trainable)}
    if not names:
        raise VariableMismatchError(
            f"variables: expected one at least of {some(trainable)}, got none"
        )
    return frozenset(names)


def _patterns(variables: Any) -> Iterable[str] | None:
    """Return the patterns; None: there are none, so it is a pytree."""
    if isinstance(variables, str):
        return (variables,)
    if isinstance(variables, Sequence | AbstractSet) and all(
        isinstance(each, str) for each in variables
    ):
        return variables
    return None


def _fitting(pattern: str, names: AbstractSet[str]) -> list[str]:
    found = [name for name in names if fits(pattern, name)]
    if not found:
        raise VariableMismatchError(
            f"variables: expected names or patterns of {some(names)}, got {pattern!r}"
        )
    return found


def _masked(mask: Any, layout: Layout) -> set[str]:
    bools = trees.flatten(mask)
    like = {name: np.empty((), np.bool_) for name in layout.places}
    Layout.of(like).require(Layout.of(bools))
    return {name for name, is_chosen in bools.items() if is_chosen}
