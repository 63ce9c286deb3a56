"""What is kept of a server at one step, so that another one can go on from there."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from psserver.counters import Counters
from psserver.decision import Session
from pswire.body import Arrays, Body, InPieces
from pswire.inspection import VARIABLES


@dataclass(frozen=True, slots=True)
class Slots:
    """What a rule remembers, as arrays.

    Attributes:
        arrays: By where the rule keeps them, and for which variable.
        weak: Those among them that JAX takes for plain Python numbers, which leave
            the type of what they are multiplied with as it is.
    """

    arrays: Arrays
    weak: frozenset[str]

    def but(self, names: Set[str]) -> "Slots":
        """Return the others than those of these names."""
        rest = {name: a for name, a in self.arrays.items() if name not in names}
        return replace(self, arrays=rest)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A server at one step: every part is of the same cut.

    Attributes:
        generation: The history that the step counts in.
        step: Pushes applied until then, in steps.
        variables: All of them; where it is about to be saved, all but tables.
        slots: What the rule remembers, likewise.
        initializer: The session that brought the first variables.
        rule: What `status` calls the rule, with its arguments.
        max_staleness: The limit, in steps; None: any.
        max_grad_norm: The largest global L2 norm of a push; None: any.
        sessions: What is remembered of each session, by its name.
        counters: What became of pushes until then.
        log_from: The number of the log's first segment that may have who joined since.
        staleness_policy: What became of the pushes that the limit admitted.
        server: The server's name; empty: it had none yet.
        tables: The names of the variables that are tables.
        columns: Where it is about to be saved, these and their slots, by the names that
            `named` gives.
    """

    generation: str
    step: int
    variables: Body
    slots: Slots
    initializer: str
    rule: str
    max_staleness: int | None
    max_grad_norm: float | None
    sessions: Mapping[str, Session]
    counters: Counters
    log_from: int = 0
    staleness_policy: str = "drop"
    server: str = ""
    tables: tuple[str, ...] = ()
    columns: Mapping[str, InPieces] = field(default_factory=dict)


def named(variables: Arrays, slots: Arrays) -> Arrays:
    """Return all arrays by names that tell them apart; those of slots begin so."""
    return {**{f"{VARIABLES}{n}": a for n, a in variables.items()}, **slots}
