"""The tables of a model: by rows, whatever their size, one push at a time."""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from psserver.columns import Column, Cut
from psserver.rowrule import Columns, RowRule, Scalars
from psserver.rulefaults import require_finite
from pswire.body import Arrays
from pswire.errors import VariableMismatchError
from pswire.inspection import VARIABLES
from pswire.layout import ArraySpec
from pswire.rows import Ids, Rows, require_ids

_BLOCK = 2**16  # Rows that get their first slots together.


@dataclass(frozen=True, slots=True)
class Patch:
    """What a push makes of rows.

    Attributes:
        step: The step after it, in steps.
        rows: By table, whose rows' ids rise: the ids, and the new rows.
    """

    step: int
    rows: Mapping[str, tuple[Ids, Columns]]


class Tables:
    """All tables of one model, with their slots; whoever owns them guards them.

    What a push changes is a patch over what is published, and costs what its rows do.
    `publish` writes patches down, `roll_back` forgets them.
    """

    def __init__(self, rule: RowRule, specs: Iterable[ArraySpec]) -> None:
        """Take memory for tables; `start` comes next.

        Args:
            rule: That of the model.
            specs: The tables'.
        """
        self._rule = rule
        self._specs = {spec.name: spec for spec in specs}
        self._columns = {s.name: _columns(s, rule) for s in self._specs.values()}
        self._patches = deque[Patch]()

    def start(self, variables: Arrays, slots: Arrays | None) -> None:
        """Set all rows for the first time.

        Args:
            variables: With the tables among them.
            slots: With theirs among them; None: no push has changed them yet.

        Raises:
            ValueError: The slots are those of another rule; the message begins with
                the name of one that is amiss.
        """
        for name, (variable, *own) in self._columns.items():
            variable.fill(0, variables[name])
            if slots is None:
                for start in range(0, len(variables[name]), _BLOCK):
                    first = self._rule.first(variables[name][start : start + _BLOCK])
                    for column, rows in zip(own, first, strict=True):
                        column.fill(start, rows)
            else:
                for column in own:
                    column.fill(0, _slot(column.spec, slots))

    def slot_names(self) -> set[str]:
        """Return the names of all slots of tables."""
        columns = (own for _, *own in self._columns.values())
        return {column.spec.name for own in columns for column in own}

    def require(self, wanted: Mapping[str, Ids]) -> None:
        """Check that there are such rows; needs no guard.

        Raises:
            VariableMismatchError: There are not, or too many are wanted of a table.
        """
        for name, ids in wanted.items():
            if name not in self._specs:
                known = ", ".join(self._specs) or "there are none"
                raise VariableMismatchError(
                    f"{name[:100]}: expected one of the tables ({known}), "
                    "got another name"
                )
            require_ids(name, ids, self._specs[name].shape[0])

    def read(self, wanted: Mapping[str, Ids]) -> dict[str, Rows]:
        """Return published rows, as `require` has checked them."""
        return {
            name: Rows(ids, self._columns[name][0].read(ids))
            for name, ids in wanted.items()
        }

    def prepare(self, state: Any, pushed: Mapping[str, Rows], scalars: Scalars) -> None:
        """Compile for such a push; needs no guard.

        Args:
            state: The model's own slots.
            pushed: The gradients, by table.
            scalars: Any of the push's kind.
        """
        for name, rows in pushed.items():
            self._rule.prepare(state, self._specs[name], len(rows.values), scalars)

    def is_prepared(self, pushed: Mapping[str, Rows], scalars: Scalars) -> bool:
        """Say whether such a push need not wait; see `prepare`."""
        return all(
            self._rule.is_prepared(self._specs[name], len(rows.values), scalars)
            for name, rows in pushed.items()
        )

    def patch(
        self, step: int, state: Any, pushed: Mapping[str, Rows], scalars: Scalars
    ) -> Patch:
        """Return what a push makes of the newest rows; nothing changes.

        Args:
            step: The step after it, in steps.
            state: The model's own slots before it.
            pushed: The gradients, by table.
            scalars: The push's.

        Raises:
            NonFiniteError: The rule would make a finite number NaN or infinite.
            InternalError: The rule failed.
        """
        rows: dict[str, tuple[Ids, Columns]] = {}
        for name, gradients in pushed.items():
            ids = np.asarray(gradients.ids)
            before = self._newest(name, ids)
            after = self._rule.apply(state, before, gradients.values, scalars)
            names = [name, *self._rule.slots(self._specs[name])]
            require_finite(
                dict(zip(names, before, strict=True)),
                dict(zip(names, after, strict=True)),
            )
            rows[name] = ids, after
        return Patch(step, rows)

    def add(self, patch: Patch) -> None:
        """Make a patch part of the newest rows."""
        if patch.rows:
            self._patches.append(patch)

    def publish(self, step: int) -> None:
        """Write down what has been made up to a step."""
        while self._patches and self._patches[0].step <= step:
            for name, (ids, rows) in self._patches.popleft().rows.items():
                for column, new in zip(self._columns[name], rows, strict=True):
                    column.write(ids, new)

    def roll_back(self) -> None:
        """Forget what is not published."""
        self._patches.clear()

    def cut(self, lock: threading.Lock) -> dict[str, Cut]:
        """Return all that is published, by the names that `checkpoint.named` gives.

        Args:
            lock: Guards these tables.
        """
        columns = (column for own in self._columns.values() for column in own)
        return {column.spec.name: column.cut(lock) for column in columns}

    def _newest(self, name: str, ids: Ids) -> Columns:
        """Return rows with all patches."""
        rows = [column.read(ids) for column in self._columns[name]]
        for patch in self._patches:
            if name in patch.rows:
                patched, new = patch.rows[name]
                _, here, there = np.intersect1d(
                    ids, patched, assume_unique=True, return_indices=True
                )
                for column, values in zip(rows, new, strict=True):
                    column[here] = values[there]
        return rows


def _columns(table: ArraySpec, rule: RowRule) -> list[Column]:
    """Return memory for a table, and for its slots."""
    named = {f"{VARIABLES}{table.name}": table.dtype, **rule.slots(table)}
    return [Column(ArraySpec(n, dtype, table.shape)) for n, dtype in named.items()]


def _slot(spec: ArraySpec, slots: Arrays) -> npt.NDArray[Any]:
    found = slots.get(spec.name)
    got = f"{found.shape} {found.dtype.name}" if found is not None else "none"
    if found is None or got != str(spec):
        raise ValueError(f"{spec.name}: expected {spec}, got {got}")
    return found
