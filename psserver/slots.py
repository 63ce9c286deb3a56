"""A rule's slots by names of their own: taken out of its state, and put back."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.tree_util import (
    DictKey,
    keystr,
    tree_leaves_with_path,
    tree_structure,
    tree_unflatten,
)

from psserver.checkpoint import Slots
from pswire.memory import copied
from pswire.segments import Segment

Tree = Any
"""A rule's state: a pytree that only the rule understands."""

Path = tuple[Any, ...]


class SlotNames:
    """Names the slots of one rule; one that is of a segment is several variables'."""

    def __init__(self, segments: Sequence[Segment], *, elementwise: bool) -> None:
        """Prepare.

        Args:
            segments: What the rule sees in place of variables, if it is elementwise.
            elementwise: Whether it is.
        """
        self._segments = segments if elementwise else ()

    def take(self, tree: Tree) -> Slots:
        """Return the slots of a state, without a copy."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        weak: set[str] = set()
        for path, leaf in tree_leaves_with_path(tree):
            named = dict(self._named(path, _array(leaf)))
            arrays |= named
            if _is_weak(leaf):
                weak.update(named)
        return Slots(arrays, frozenset(weak))

    def put(self, forms: Sequence[Tree], slots: Slots) -> Tree:
        """Return a state with these slots.

        Args:
            forms: States of the forms that the rule's may have.
            slots: From `take`.

        Raises:
            ValueError: They are of none of the forms; the message begins with the name
                of one that is amiss.
        """
        rest = dict(slots.arrays)
        leaves = [
            self._put(path, [leaf, *others], slots, rest)
            for (path, leaf), *others in zip(
                tree_leaves_with_path(forms[0]),
                *(jax.tree.leaves(form) for form in forms[1:]),
                strict=True,
            )
        ]
        for name in rest:
            raise ValueError(f"{name}: expected no such slot, got {_form(rest[name])}")
        return tree_unflatten(tree_structure(forms[0]), leaves)

    def _put(
        self, path: Path, forms: Sequence[Any], slots: Slots, rest: dict[str, Any]
    ) -> Any:
        for leaf in forms:
            memory = _copy(_array(leaf))
            views = dict(self._named(path, memory))
            if all(
                name in rest
                and _form(view) == _form(rest[name])
                and (name in slots.weak) == _is_weak(leaf)
                for name, view in views.items()
            ):
                for name, view in views.items():
                    view[...] = rest.pop(name)
                return _leaf(leaf, memory)
        for name, view in self._named(path, _array(forms[0])):
            got = _form(rest[name]) if name in rest else "none"
            if got != _form(view):
                raise ValueError(f"{name}: expected {_form(view)}, got {got}")
        raise ValueError(f"{keystr(path)}: expected slots of the types that it has")

    def _named(
        self, path: Path, array: npt.NDArray[Any]
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for at, entry in enumerate(path):
            if self._is_segment(entry, array):
                for name, part in self._segments[entry.key].cut(array).items():
                    named = (*path[:at], DictKey(name), *path[at + 1 :])
                    yield f"slots{keystr(named)}", part
                return
        yield f"slots{keystr(path)}", array

    def _is_segment(self, entry: Any, array: npt.NDArray[Any]) -> bool:
        """Say whether a slot's path tells by this entry which segment it is for."""
        number = entry.key if isinstance(entry, DictKey) else None
        if type(number) is not int or not 0 <= number < len(self._segments):
            return False
        return array.shape == (self._segments[number].size,)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _is_weak(leaf: Any) -> bool:
    return not _is_key(leaf) and bool(leaf.weak_type)


def _array(leaf: Any) -> npt.NDArray[Any]:
    """Return a leaf's numbers; those of a random key are what it is made of."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return copied(flat).view(array.dtype).reshape(array.shape)


def _leaf(like: Any, memory: npt.NDArray[Any]) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(
            jnp.asarray(memory), impl=jax.random.key_impl(like)
        )
    if _is_weak(like):
        return like.at[...].set(memory)
    return jax.device_put(memory, like.device, may_alias=True)


def _form(array: npt.NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype.name}"
