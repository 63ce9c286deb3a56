"""What stays the same from one step of a model to the next."""

from dataclasses import dataclass

from psserver.rules import CompiledRule, State
from pswire.body import Body, Bytes
from pswire.layout import Layout


@dataclass(frozen=True, slots=True)
class Model:
    """Variables but for their values."""

    layout: Layout
    rule: CompiledRule
    initializer: str
    kept: tuple[tuple[int, Bytes], ...]
    """The runs of the variables that are not trainable."""

    def body(self, state: State) -> Body:
        """Return all variables, without a copy."""
        runs = [*self.kept, *self.rule.runs(state)]
        if self.kept:
            runs.sort(key=lambda run: run[0])
        return Body(self.layout, runs)
