"""A rule in plain numpy, which starts in no time."""

from collections.abc import Iterator, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from psserver.checkpoint import Slots
from psserver.rowrule import Scalars
from psserver.rules import State
from pswire.body import Body, Bytes
from pswire.layout import Layout

Floats = npt.NDArray[np.float32]

MOMENTUM = np.float32(0.9)
_SLOT = "slots['trace']"


class NumpyRule:
    """Stands in for a `CompiledRule`: descent, with momentum for all that is not `A`.

    So the order of pushes makes a difference to the one, and none to the other.
    """

    def __init__(self, rule: object, layout: Layout) -> None:
        spec, start = layout.places["A"]
        self._decay = np.full(layout.nbytes // 4, MOMENTUM)
        self._decay[start // 4 : start // 4 + spec.shape[0]] = 0
        self._layout = layout

    def start(self, variables: Body, slots: Slots | None = None) -> State:
        trace = slots.arrays[_SLOT] if slots else np.zeros_like(self._decay)
        return State((_floats(variables),), trace)

    def apply(
        self,
        state: State,
        gradients: Body,
        value: float | None,
        factor: float,
        present: Set[str] | None,
    ) -> State:
        trace = self._decay * state.slots + _floats(gradients)
        after = state.variables[0] - np.float32(factor) * trace
        for name, (spec, start) in self._layout.places.items():
            if present is not None and name not in present:
                absent = slice(start // 4, (start + spec.nbytes) // 4)
                trace[absent] = state.slots[absent]
                after[absent] = state.variables[0][absent]
        return State((after,), trace)

    def prepare(self, state: State, *, weighed: bool, some: bool) -> None:
        pass

    def for_rows(self) -> None:
        pass  # There are no tables.

    def scalars(self, value: float | None, factor: float) -> Scalars:
        return Scalars(value, factor)

    def is_prepared(self, *, weighed: bool, some: bool) -> bool:
        return True

    def let_go(self) -> None:
        pass

    def parts(self, gradients: Body) -> Iterator[Floats]:
        yield _floats(gradients)

    def runs(self, state: State) -> Iterator[tuple[int, Bytes]]:
        yield 0, np.asarray(state.variables[0]).view(np.uint8)

    def slots(self, state: State) -> Slots:
        return Slots({_SLOT: state.slots}, frozenset())


def _floats(body: Body) -> Any:
    return body.between(0, body.layout.nbytes).view(np.float32)
