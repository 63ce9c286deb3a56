"""What stays the same from one step of a model to the next."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from psserver.checkpoint import Slots
from psserver.rules import CompiledRule, State
from pswire.body import Arrays, Body, Bytes
from pswire.layout import Layout
from pswire.values import PushHeader


@dataclass(frozen=True, slots=True)
class Push:
    """A push, ready for the rule.

    Attributes:
        header: What it brings.
        received: What has travelled.
        gradients: All of them, laid out as the rule takes them: the absent ones zero.
        without: The names of variables that it has brought, but is too stale for; the
            fields above are as if it had not.
    """

    header: PushHeader
    received: Body
    gradients: Body
    without: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Model:
    """Variables but for their values.

    Attributes:
        layout: Of the variables.
        rule: Compiled for them.
        initializer: The session that brought them.
        kept: The runs of those that are not trainable.
    """

    layout: Layout
    rule: CompiledRule
    initializer: str
    kept: tuple[tuple[int, Bytes], ...]

    def body(self, state: State) -> Body:
        """Return all variables, without a copy."""
        runs = [*self.kept, *self.rule.runs(state)]
        if self.kept:
            runs.sort(key=lambda run: run[0])
        return Body(self.layout, runs)

    def wire_layout(self, header: PushHeader) -> Layout:
        """Return the layout that a push's body has to have."""
        return header.encoding.layout(header.layout or self.layout.trainable)

    def present(self, header: PushHeader) -> Set[str] | None:
        """Return the names of the variables that a push brings; None: all."""
        brought = header.layout or self.layout.trainable
        if len(brought.arrays) == len(self.layout.trainable.arrays):
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
        return Push(header, received, self._gradients(header, received), without)

    def brought(self, push: Push) -> Sequence[npt.NDArray[Any]]:
        """Return the gradients that a push has brought, in parts of any size."""
        present = self.present(push.header)
        if present is None:
            return list(self.rule.parts(push.gradients))
        return [push.gradients[name] for name in present]

    def _gradients(self, header: PushHeader, received: Arrays) -> Body:
        layout = header.layout or self.layout.trainable
        decoded = header.encoding.decode(layout, received)
        if self.present(header) is None:
            return Body.gather(self.layout.trainable, decoded)
        gradients = Body.zeros(self.layout.trainable)
        for name, gradient in decoded.items():
            np.copyto(gradients[name], gradient)
        return gradients

    def _without(
        self, names: Set[str], header: PushHeader, received: Body
    ) -> tuple[PushHeader, Body]:
        brought = header.layout or self.layout.trainable
        kept = [n for n, spec in enumerate(brought) if spec.name not in names]
        layout = Layout(tuple(brought.arrays[n] for n in kept))
        encoding, counts = header.encoding, header.encoding.counts
        if counts is not None:
            encoding = replace(encoding, counts=tuple(counts[n] for n in kept))
        body = Body.gather(encoding.layout(layout), received)
        nbytes = body.layout.nbytes
        narrowed = replace(header, layout=layout, encoding=encoding, nbytes=nbytes)
        return narrowed, body


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
    state = rule.start(variables.freeze(), slots)
    # Copied, what never changes does not keep the body that all came in alive.
    kept = tuple(
        (start, variables.between(start, start + spec.nbytes).copy())
        for spec, start in variables.layout.places.values()
        if not spec.trainable
    )
    return Model(variables.layout, rule, initializer, kept), state
