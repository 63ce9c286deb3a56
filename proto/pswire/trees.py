"""Pytrees as named arrays, and back against a template."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import jax
import numpy as np
import numpy.typing as npt

from pswire.errors import VariableMismatchError
from pswire.layout import Layout
from pswire.rows import Rows

Tree = TypeVar("Tree")


@dataclass(frozen=True, slots=True)
class _Same:
    """Ids of rows, which JAX is to compare."""

    ids: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ids is other.ids

    def __hash__(self) -> int:
        return id(self.ids)


# To JAX, rows are their values: what maps gradients maps these, and keeps the ids.
jax.tree_util.register_pytree_node(
    Rows,
    lambda rows: ((rows.values,), _Same(rows.ids)),
    lambda same, values: Rows(same.ids, *values),
)

_ROOT = "params"  # The name of a tree that is a single array.


def flatten(tree: Any) -> dict[str, Any]:
    """Name every array of a pytree by its path, its parts joined by `/`.

    Args:
        tree: Any pytree of arrays and numbers. Leaves of `None` are none, and neither
            are the float0 leaves that `jax.grad` returns for integers.

    Returns:
        {name: array}, in the tree's order, sharing memory with the tree on a CPU.
        `Rows` stay what they are.

    Raises:
        VariableMismatchError: A leaf is no array, or two paths give one name.
        TypeError: JAX traces a leaf, so there are no numbers yet.
    """
    named = _named(tree)
    for name, leaf in named.items():
        require_concrete(name, leaf)
    return {
        name: leaf if isinstance(leaf, Rows) else np.asarray(leaf)
        for name, leaf in named.items()
        if leaf.dtype != jax.dtypes.float0
    }


def unflatten(
    like: Tree, arrays: Mapping[str, npt.NDArray[Any]], but: Container[str] = ()
) -> Tree:
    """Put named arrays in the places of a template's leaves.

    Args:
        like: A pytree whose leaves have the arrays' shapes and dtypes; structs from
            `jax.eval_shape` will do. Where it has numpy arrays, numpy arrays are
            returned, elsewhere JAX arrays.
        arrays: {name: array}, of the names that `flatten(like)` gives.
        but: Those of them that get None.

    Raises:
        VariableMismatchError: The names, shapes or dtypes are not the template's.
    """
    named = _named(like)
    wanted = {name: leaf for name, leaf in named.items() if name not in but}
    Layout.of(wanted).require(Layout.of(arrays))
    return _filled(like, named, arrays)


def fill(like: Tree, arrays: Mapping[str, npt.NDArray[Any]]) -> Tree:
    """Put named arrays in their places of a template, and None in all others.

    Args:
        like: See `unflatten`.
        arrays: {name: array}, of some of the names that `flatten(like)` gives; `Rows`
            are put there as they are.
    """
    return _filled(like, _named(like), arrays)


def require_concrete(name: str, tree: Any) -> None:
    """Check that the arrays of a pytree are numbers, not what JAX traces.

    Raises:
        TypeError: JAX is tracing; the message begins with the name.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{name}: expected numbers, got what JAX traces; the server cannot be "
            "called within jit, grad or vmap"
        )


@dataclass(frozen=True, slots=True)
class Form:
    """All of a pytree but its numbers.

    Attributes:
        structure: JAX's word for it.
        layout: The names, shapes and dtypes of the leaves, in the tree's order.
    """

    structure: Any
    layout: Layout

    @classmethod
    def of(cls, tree: Any) -> Self:
        """Read a pytree's form.

        Raises:
            VariableMismatchError: As from `flatten`.
        """
        return cls(jax.tree.structure(tree), Layout.of(_named(tree)))

    def build(self, leaves: Iterable[Any]) -> Any:
        """Make a tree of this form, out of leaves that are not looked at."""
        return jax.tree.unflatten(self.structure, leaves)


def _filled(like: Tree, named: Mapping[str, Any], arrays: Mapping[str, Any]) -> Tree:
    leaves = [
        _as(leaf, arrays[name]) if name in arrays else None
        for name, leaf in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _as(leaf: Any, array: npt.NDArray[Any]) -> Any:
    if isinstance(leaf, np.ndarray) or isinstance(array, Rows):
        return array
    # The array is never written again, so JAX may use its memory where it fits.
    return jax.device_put(array, may_alias=True)


def _named(tree: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, Rows)
    )
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or _ROOT
        if name in named:
            raise VariableMismatchError(f"{name}: expected one leaf, got two")
        named[name] = _array(name, leaf)
    return named


def _array(name: str, leaf: Any) -> Any:
    if isinstance(leaf, Rows):
        return leaf
    if type(leaf) in (bool, int, float):
        try:
            return jax.numpy.asarray(leaf)
        except OverflowError as error:
            raise VariableMismatchError(
                f"{name}: expected a number of JAX's default type, got {leaf}"
            ) from error
    has_form = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    if not has_form or jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise VariableMismatchError(
            f"{name}: expected an array, got {type(leaf).__name__}"
        )
    return leaf
