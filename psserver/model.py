"""What stays the same from one step of a model to the next."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from psserver.checkpoint import Slots
from psserver.rowrule import Scalars
from psserver.rules import CompiledRule, State
from psserver.tables import Tables
from pswire.body import Arrays, Body, Bytes
from pswire.layout import Layout
from pswire.rows import Rows, ids_name, require_ids
from pswire.values import PushHeader


@dataclass(frozen=True, slots=True)
class Push:
    """A push, ready for the rule.

    Attributes:
        header: What it brings.
        received: What has travelled.
        gradients: All but tables', laid out as the rule takes them: absent ones zero.
        rows: Those of tables' rows, by table.
        without: The names of variables that it has brought, but is too stale for; the
            fields above are as if it had not.
    """

    header: PushHeader
    received: Body
    gradients: Body
    rows: Mapping[str, Rows]
    without: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Model:
    """Variables but for their values.

    Attributes:
        layout: Of the variables.
        rule: Compiled for them.
        tables: Those of the variables that are, which change; the core guards them.
        initializer: The session that brought them.
        kept: The runs of those that are not trainable.
    """

    layout: Layout
    rule: CompiledRule
    tables: Tables
    initializer: str
    kept: tuple[tuple[int, Bytes], ...]

    def body(self, state: State) -> Body:
        """Return all variables that are no tables, without a copy."""
        runs = [*self.kept, *self.rule.runs(state)]
        if self.kept:
            runs.sort(key=lambda run: run[0])
        return Body(self.layout.dense, runs)

    def wire_layout(self, header: PushHeader) -> Layout:
        """Return the layout that a push's body has to have."""
        return header.body_layout(self.layout.trainable)

    def present(self, header: PushHeader) -> Set[str] | None:
        """Return the names of the variables, but tables, that a push brings.

        Returns:
            None: all.
        """
        if header.layout is None:
            return None
        brought = header.layout.dense
        if len(brought.arrays) == len(self.layout.dense.trainable.arrays):
            return None
        return brought.places.keys()

    def push(
        self, header: PushHeader, received: Body, without: Set[str] = frozenset()
    ) -> Push:
        """Return what the rule takes of a push.

        Args:
            header: The push's.
            received: What has travelled.
            without: The names of variables to leave out; not all that it brings.

        Raises:
            VariableMismatchError: What was received is not what its header says.
        """
        if without:
            header, received = self._without(without, header, received)
        decoded = self._decode(header, received)
        dense, rows = self._gradients(header, decoded), self._rows(decoded)
        return Push(header, received, dense, rows, without)

    def brought(self, push: Push) -> Sequence[npt.NDArray[Any]]:
        """Return the gradients that a push has brought, in parts of any size."""
        present = self.present(push.header)
        rows = [each.values for each in push.rows.values()]
        if present is None:
            return [*self.rule.parts(push.gradients), *rows]
        return [*(push.gradients[name] for name in present), *rows]

    def prepare(self, state: State, push: Push, *, weighed: bool) -> None:
        """Compile for pushes like one, so that it need not wait; see `is_prepared`.

        Args:
            state: Of some step.
            push: The push.
            weighed: Whether it has a factor.
        """
        some = self.present(push.header) is not None
        self.rule.prepare(state, weighed=weighed, some=some)
        self.tables.prepare(state.slots, push.rows, self._scalars(weighed))

    def is_prepared(self, push: Push, *, weighed: bool) -> bool:
        """Say whether a push need not wait for anything to be compiled."""
        some = self.present(push.header) is not None
        is_ready = self.rule.is_prepared(weighed=weighed, some=some)
        return is_ready and self.tables.is_prepared(push.rows, self._scalars(weighed))

    def _scalars(self, weighed: bool) -> Scalars:
        return self.rule.scalars(1.0, 0.5 if weighed else 1.0)

    def _decode(self, header: PushHeader, received: Arrays) -> Body:
        layout = header.decoded_layout(self.layout.trainable)
        return header.encoding.decode(layout, received)

    def _gradients(self, header: PushHeader, decoded: Body) -> Body:
        layout = self.layout.dense.trainable
        present = self.present(header)
        if present is None:
            return Body.gather(layout, decoded)
        gradients = Body.zeros(layout)
        for name in present:
            np.copyto(gradients[name], decoded[name])
        return gradients

    def _rows(self, decoded: Body) -> dict[str, Rows]:
        rows: dict[str, Rows] = {}
        for spec in decoded.layout.tables:
            ids = decoded[ids_name(spec.name)]
            require_ids(spec.name, ids, self.layout.places[spec.name][0].shape[0])
            rows[spec.name] = Rows(ids, decoded[spec.name])
        return rows

    def _without(
        self, names: Set[str], header: PushHeader, received: Body
    ) -> tuple[PushHeader, Body]:
        brought = header.layout or self.layout.trainable
        layout = Layout(tuple(spec for spec in brought if spec.name not in names))
        rows = dict(zip((s.name for s in brought.tables), header.rows, strict=False))
        narrowed = replace(
            header,
            layout=layout,
            rows=tuple(rows[s.name] for s in layout.tables if s.name in rows),
        )
        counts = header.encoding.counts
        if counts is not None:
            travelled = header.decoded_layout(self.layout.trainable)
            of = dict(zip(travelled.places, counts, strict=True))
            left = narrowed.decoded_layout(self.layout.trainable)
            encoding = replace(
                header.encoding, counts=tuple(of[n] for n in left.places)
            )
            narrowed = replace(narrowed, encoding=encoding)
        body = Body.gather(narrowed.body_layout(self.layout.trainable), received)
        return replace(narrowed, nbytes=body.layout.nbytes), body


def start(
    rule: CompiledRule, variables: Body, initializer: str, slots: Slots | None = None
) -> tuple[Model, State]:
    """Return a model and its state before the next step.

    Args:
        rule: For variables of this layout; it is compiled here.
        variables: All of them; not to be changed any more.
        initializer: The session that brought them first.
        slots: The rule's, as they were left; None: the rule begins.

    Raises:
        ValueError: The slots are those of another rule.
    """
    layout = variables.layout
    tables = Tables(rule.for_rows(), layout.tables)
    tables.start(variables, slots.arrays if slots else None)
    dense = Body.gather(layout.dense, variables)
    state = rule.start(
        dense.freeze(), slots.but(tables.slot_names()) if slots else None
    )
    # Copied, what never changes does not keep the body that all came in alive.
    kept = tuple(
        (start, dense.between(start, start + spec.nbytes).copy())
        for spec, start in dense.layout.places.values()
        if not spec.trainable
    )
    return Model(layout, rule, tables, initializer, kept), state
