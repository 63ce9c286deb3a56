"""The policy that says which staleness is too much."""

from dataclasses import dataclass

from pswire.values import Reason


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether to apply a push, and why not."""

    apply: bool
    reason: Reason | None = None


APPLY = Judgement(apply=True)


@dataclass(frozen=True, slots=True)
class DropStale:
    """Apply a push only if its gradients are at most `limit` steps old.

    Attributes:
        limit: The largest staleness applied, in steps, inclusive; 0 admits only
            gradients of the current step, a negative limit nothing, None everything.

    Raises:
        ValueError: The limit is no whole number of 64 bits.

    References:
        TensorFlow 1's `contrib.opt.DropStaleGradientOptimizer` counts staleness the
        same way and also admits the limit itself.
    """

    limit: int | None

    def __post_init__(self) -> None:
        if self.limit is None:
            return
        if type(self.limit) is not int or not -(2**63) <= self.limit < 2**63:
            raise ValueError(
                "max_staleness: expected None or a whole number of steps of 64 bits, "
                f"got {self.limit!r}"
            )

    def judge(self, staleness: int) -> Judgement:
        """Say what becomes of a push whose gradients are `staleness` steps old."""
        if self.limit is None or staleness <= self.limit:
            return APPLY
        return Judgement(apply=False, reason=Reason.STALE)
