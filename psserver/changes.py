"""What changes a model that somebody keeps a log of."""

from dataclasses import dataclass

from pswire.body import Body
from pswire.values import PushHeader


@dataclass(frozen=True, slots=True)
class Joined:
    """A session that took a worker's name.

    Attributes:
        worker: The name.
        session: The session.
        rejoin: Whether it had joined before, and was forgotten.
    """

    worker: str
    session: str
    rejoin: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """A push that made a step.

    Attributes:
        step: The step after it, in steps.
        header: Of the push.
        body: Its gradients as they travelled, or were compensated: in the layout that
            the header's encoding makes of theirs.
        factor: What its update was multiplied by.
        dropped_variables: How many more it brought, and was applied without.
        others: The headers of the pushes that made the step with it, as they came: the
            body is the mean of all of them.
    """

    step: int
    header: PushHeader
    body: Body
    factor: float = 1.0
    dropped_variables: int = 0
    others: tuple[PushHeader, ...] = ()


Change = Joined | Applied
