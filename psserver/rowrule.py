"""A rule that runs on some rows of a table alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax.tree_util import DictKey, keystr, tree_leaves_with_path

from psserver.rulefaults import failures_told
from pswire.layout import ArraySpec

_ROWS = "\0rows"  # What the rule sees them as: no array of a user's has such a name.
_LEAST = 64  # Rows: for fewer, no program of its own is worth the compiling.

Columns = Sequence[npt.NDArray[Any]]
"""Of some rows, the variable and then each of its slots."""


class Scalars(NamedTuple):
    """What a step takes beside arrays.

    Attributes:
        value: The loss; None: the rule takes none.
        factor: What the update is multiplied by; None: nothing.
    """

    value: Any
    factor: Any


class _Slots(NamedTuple):
    """What the rule keeps of rows of one type, leaf by leaf.

    Attributes:
        structure: Of the whole state.
        shared: Of a leaf that belongs to no array, its number in the model's own
            state; None: the leaf is of the rows.
        own: Where each of the latter is, and of which type it becomes.
    """

    structure: Any
    shared: tuple[int | None, ...]
    own: tuple[tuple[tuple[Any, ...], np.dtype[Any]], ...]


class RowRule:
    """Runs an elementwise rule on rows, as if they were one array.

    What it keeps of no array, a count say, is the model's own: it is read here, and
    advances where the rule runs on the other variables.
    """

    def __init__(
        self,
        init: Callable[..., Any],
        step: Callable[..., Any],
        others: Mapping[int, jax.ShapeDtypeStruct],
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Prepare; nothing is compiled.

        Args:
            init: The rule's: variables -> slots.
            step: (variables, slots, gradients, value, factor) -> (variables, slots).
            others: What the rule sees of the model's other variables.
            precision: Enters what all has to run in.
        """
        self._init = init
        self._step = step
        self._others = others
        self._precision = precision
        self._slots = cache(self._read_slots)
        self._first = jax.jit(self._traced_first)
        self._update = jax.jit(self._traced_update)
        self._prepared: set[tuple[Any, ...]] = set()

    def slots(self, spec: ArraySpec) -> dict[str, np.dtype[Any]]:
        """Return the names of a table's slots, and of what type each is."""
        named: dict[str, np.dtype[Any]] = {}
        for path, dtype in self._slots(spec.dtype).own:
            keys = (DictKey(spec.name) if _is_rows(key) else key for key in path)
            named[f"slots{keystr(tuple(keys))}"] = dtype
        return named

    def first(self, rows: npt.NDArray[Any]) -> Columns:
        """Return the first slots of rows that nothing has changed yet."""
        with self._context():
            slots = self._first(rows.reshape(-1))
        return [np.asarray(slot).reshape(rows.shape) for slot in slots]

    def prepare(
        self, state: Any, spec: ArraySpec, count: int, scalars: Scalars
    ) -> None:
        """Compile for pushes of about so many rows, unless that is done.

        Args:
            state: The model's own slots.
            spec: The table's.
            count: How many rows.
            scalars: Any of the kind that there will be.
        """
        if self.is_prepared(spec, count, scalars):
            return
        shape = (count, *spec.shape[1:])
        dtypes = (spec.dtype, *self.slots(spec).values())
        columns = [np.zeros(shape, dtype) for dtype in dtypes]
        self.apply(state, columns, columns[0], scalars)
        self._prepared.add(_kind(spec, count, scalars))

    def is_prepared(self, spec: ArraySpec, count: int, scalars: Scalars) -> bool:
        """Say whether such a push need not wait; see `prepare`."""
        return _kind(spec, count, scalars) in self._prepared

    def apply(
        self,
        state: Any,
        columns: Columns,
        gradients: npt.NDArray[Any],
        scalars: Scalars,
    ) -> Columns:
        """Run the rule once on rows, and return what comes of them.

        Args:
            state: The model's own slots before the step.
            columns: Of the rows, before it.
            gradients: Of the rows.
            scalars: Of the push.

        Raises:
            InternalError: The rule failed.
        """
        count, *row = gradients.shape
        size = _padded(count)
        leaves = jax.tree.leaves(state)
        shared = self._slots(gradients.dtype).shared
        with failures_told(), self._context():
            variable, *own = (_pad(column, size) for column in columns)
            after = self._update(
                [leaves[number] for number in shared if number is not None],
                *(variable, own, _pad(gradients, size), *scalars),
            )
            return [np.asarray(column).reshape(size, *row)[:count] for column in after]

    def _read_slots(self, dtype: np.dtype[Any]) -> _Slots:
        rows = {_ROWS: jax.ShapeDtypeStruct((1,), dtype)}
        value = jax.ShapeDtypeStruct((), np.float32)
        with self._precision():
            others = tree_leaves_with_path(jax.eval_shape(self._init, self._others))
            state = jax.eval_shape(self._init, rows)
            paths = [path for path, _ in tree_leaves_with_path(state)]
            for _ in range(2):  # Some rules change types in their first update.
                _, state = jax.eval_shape(self._step, rows, state, rows, value)
        numbers = {keystr(path): number for number, (path, _) in enumerate(others)}
        leaves = list(zip(paths, jax.tree.leaves(state), strict=True))
        return _Slots(
            structure=jax.tree.structure(state),
            shared=tuple(
                None if _is_own(path) else numbers[keystr(path)] for path in paths
            ),
            own=tuple((path, leaf.dtype) for path, leaf in leaves if _is_own(path)),
        )

    def _traced_first(self, rows: Any) -> list[Any]:
        leaves = tree_leaves_with_path(self._init({_ROWS: rows}))
        return [leaf for path, leaf in leaves if _is_own(path)]

    def _traced_update(
        self,
        others: Sequence[Any],
        variable: Any,
        own: Sequence[Any],
        gradient: Any,
        value: Any,
        factor: Any,
    ) -> list[Any]:
        slots = self._slots(variable.dtype)
        theirs, ours = iter(others), iter(own)
        leaves = [next(ours if s is None else theirs) for s in slots.shared]
        state = jax.tree.unflatten(slots.structure, leaves)
        changed, after = self._step(
            {_ROWS: variable}, state, {_ROWS: gradient}, value, factor
        )
        pairs = zip(slots.shared, jax.tree.leaves(after), strict=True)
        return [changed[_ROWS], *(leaf for number, leaf in pairs if number is None)]

    @contextmanager
    def _context(self) -> Iterator[None]:
        # On the CPU, where the rows are, whatever else JAX finds.
        cpu = jax.local_devices(backend="cpu")[0]
        with self._precision(), jax.default_device(cpu):
            yield


def _is_rows(key: Any) -> bool:
    return bool(key == DictKey(_ROWS))


def _is_own(path: tuple[Any, ...]) -> bool:
    return any(map(_is_rows, path))


def _kind(spec: ArraySpec, count: int, scalars: Scalars) -> tuple[Any, ...]:
    return spec.dtype, spec.shape[1:], _padded(count), scalars.factor is None


def _padded(count: int) -> int:
    """Return the next power of two: so few programs do for every number of rows."""
    return max(_LEAST, 1 << (count - 1).bit_length())


def _pad(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Return rows as one flat array, with zeros for those that are not there."""
    padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(-1)
