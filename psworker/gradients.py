"""Gradients in every form that a caller may have them in."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import jax

from pswire import trees
from pswire.body import Body
from pswire.errors import VariableMismatchError
from pswire.values import Snapshot
from psworker.pushes import Origin


@jax.tree_util.register_pytree_node_class
class Gradients:
    """Gradients that know which snapshot they were computed from.

    To JAX they are a pytree whose leaves are the gradients, so what maps it, as
    `jax.tree.map` and optax's clipping do, returns `Gradients` of the same snapshot.
    All but the leaves is static: a function that is compiled for them is so again for
    each new step, and one that is compiled for their `tree` is not. Iterated, they are
    pairs of (gradient, name).
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        like: Any,
        origin: Origin,
        result: Any,
        aux: Any = None,
    ) -> None:
        """Take over what a loss function gave; `Client.compute_gradients` does.

        Args:
            arrays: The gradients by name, those of tables as `Rows`.
            like: A pytree of the form that `tree` is to have.
            origin: What they were computed from.
            result: What the loss function has returned.
            aux: What of that is beside its value.
        """
        self.origin = origin
        self._arrays: Mapping[str, Any] | None = arrays
        self._like = like
        self._tree: Any = None
        self._result = result
        self._aux = aux

    @property
    def tree(self) -> Any:
        """The gradients in the form of the params, None where there is none."""
        if self._arrays is not None:
            # From now on they are the tree's, whose owner may change them.
            self._tree, self._arrays = trees.fill(self._like, self._arrays), None
        return self._tree

    @property
    def arrays(self) -> Mapping[str, Any]:
        """The gradients by name, those of tables as `Rows`."""
        return trees.flatten(self._tree) if self._arrays is None else self._arrays

    @property
    def step_read(self) -> int:
        """The step of the snapshot, in steps."""
        return self.origin.step_read

    @property
    def generation(self) -> str:
        """The history that the step counts in."""
        return self.origin.generation

    @property
    def value(self) -> float | None:
        """The loss; None: it is no scalar."""
        return self.origin.value

    @property
    def result(self) -> Any:
        """What the loss function returned; None once the gradients were mapped."""
        return self._result

    @property
    def aux(self) -> Any:
        """What it returned beside its value; None once the gradients were mapped."""
        return self._aux

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for name, array in self.arrays.items():
            yield array, name

    def tree_flatten(self) -> tuple[tuple[Any], Origin]:
        """Part the leaves from what is static, for JAX."""
        return (self.tree,), self.origin

    @classmethod
    def tree_unflatten(cls, origin: Origin, children: tuple[Any]) -> Self:
        """Put the parts together again, for JAX."""
        gradients = cls.__new__(cls)
        gradients.origin = origin
        (gradients._tree,) = children
        gradients._arrays = gradients._like = None
        gradients._result = gradients._aux = None
        return gradients


def by_name(gradients: Any) -> Mapping[str, Any]:
    """Return gradients by name, those of tables as `Rows`.

    Args:
        gradients: See `Client.push`.

    Raises:
        VariableMismatchError: They have none of these forms, or one comes twice.
        ValueError: There is none.
    """
    arrays: Mapping[str, Any]
    if isinstance(gradients, Gradients):
        arrays = gradients.arrays
    elif isinstance(gradients, Body):
        arrays = gradients
    elif _is_pairs(gradients):
        arrays = trees.flatten(_named(gradients))
    else:
        arrays = trees.flatten(gradients)
    if not arrays:
        raise ValueError("gradients: expected one at least: there is nothing to push")
    return arrays


def origin_of(
    gradients: Any,
    snapshot: Snapshot[Any] | Gradients | None,
    step_read: int | None,
    value: float | None,
    generation: str,
) -> Origin:
    """Return what gradients were computed from.

    Args:
        gradients: See `Client.push`.
        snapshot: See there.
        step_read: See there.
        value: See there.
        generation: The history that `step_read` counts in.

    Raises:
        ValueError: It is told twice, or not at all.
    """
    given = (snapshot is not None) + (step_read is not None)
    if isinstance(gradients, Gradients):
        if given:
            raise ValueError(
                "push: expected neither a snapshot nor step_read beside Gradients"
            )
        snapshot = gradients
    elif given != 1:
        raise ValueError("push: expected either a snapshot or step_read")
    if isinstance(snapshot, Gradients):
        known = snapshot.origin
        return known if value is None else known._replace(value=value)
    if snapshot is not None:
        return Origin(snapshot.generation, snapshot.step, value)
    assert step_read is not None
    return Origin(generation, step_read, value)


def _is_pairs(gradients: Any) -> bool:
    """Say whether these are pairs; if not, they are a pytree."""
    if isinstance(gradients, list | tuple):
        return any(_is_pair(each) for each in gradients)
    return (
        isinstance(gradients, Iterable)
        and not hasattr(gradients, "dtype")
        and jax.tree_util.all_leaves((gradients,))
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)


def _named(pairs: Iterable[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for pair in pairs:
        if not _is_pair(pair):
            raise VariableMismatchError(
                f"gradients: expected pairs of (gradient, name), got {pair!r:.80}"
            )
        gradient, name = pair
        if name in named:
            raise VariableMismatchError(f"{name}: expected one gradient, got two")
        named[name] = gradient
    return named
