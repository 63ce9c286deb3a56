"""Pushes of some variables: what the others keep, within a compiled function."""

from collections.abc import Iterator, Sequence, Set
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from pswire.memory import zeros
from pswire.segments import Segment

Masks = tuple[Any, ...]
"""For every segment, of its elements or of its variables, whether they are present."""


class Presence:
    """Keeps, of a step, what is of present variables or of none in particular."""

    def __init__(self, segments: Sequence[Segment], *, elementwise: bool) -> None:
        """Prepare.

        Args:
            segments: Of the variables.
            elementwise: Whether these are what the rule sees in place of variables.
        """
        self._segments = segments
        self._elementwise = elementwise

    def masks(self, present: Set[str]) -> Masks:
        """Return what `keep` takes.

        Args:
            present: The names of the variables that a push brings.
        """
        mask = _of_elements if self._elementwise else _of_variables
        return tuple(mask(segment, present) for segment in self._segments)

    def keep(self, masks: Masks, before: Any, after: Any) -> Any:
        """Return a tree of what the rule sees, or of its slots, after a push.

        Args:
            masks: From `masks`.
            before: The tree before the push.
            after: What the rule has made of it. What lies in a dict of a value for each
                variable is that variable's; whatever else there is belongs to none.
        """
        present = self._by_key(masks)
        owners = _owners(after, present.keys(), None)
        leaves, structure = jax.tree.flatten(after)
        kept = [
            new if owner is None else _select(present[owner], old, new)
            for owner, old, new in zip(
                owners, jax.tree.leaves(before), leaves, strict=True
            )
        ]
        return jax.tree.unflatten(structure, kept)

    def _by_key(self, masks: Masks) -> dict[Any, Any]:
        if self._elementwise:
            return dict(enumerate(masks))
        return {
            spec.name: mask[number]
            for segment, mask in zip(self._segments, masks, strict=True)
            for number, (spec, _) in enumerate(segment.arrays)
        }


def _of_elements(segment: Segment, present: Set[str]) -> npt.NDArray[np.bool_]:
    mask = zeros(segment.size).view(np.bool_)
    for spec, start in segment.arrays:
        if spec.name in present:
            mask[start : start + prod(spec.shape)] = True
    return mask


def _of_variables(segment: Segment, present: Set[str]) -> npt.NDArray[np.bool_]:
    return np.array([spec.name in present for spec, _ in segment.arrays])


def _owners(tree: Any, keys: Set[Any], owner: Any) -> Iterator[Any]:
    """Yield for each leaf whose it is: of the innermost dict that has just the keys."""

    def is_whole(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == keys

    for node in jax.tree.leaves(tree, is_leaf=is_whole):
        if is_whole(node):
            for key in sorted(node):  # As JAX does.
                yield from _owners(node[key], keys, key)
        else:
            yield owner


def _select(present: Any, old: Any, new: Any) -> Any:
    if old.dtype != new.dtype:  # Some rules change types in their first update.
        old = old.astype(new.dtype)
    return jnp.where(present, new, old)
