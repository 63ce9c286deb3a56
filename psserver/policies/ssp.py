"""The policy by which no worker gets far ahead of the slowest one."""

from dataclasses import dataclass
from typing import ClassVar

from psserver.policies.policy import Policy
from psserver.policies.pull import Pull


@dataclass(frozen=True, slots=True)
class Ssp(Policy):
    """Let a pull wait while its worker is over s pushes ahead of the slowest live one.

    Attributes:
        s: That bound, in judged pushes, 0 or more.

    Raises:
        ValueError: `s` is something else.

    References:
        Q. Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel
        Parameter Server", NIPS 2013.
    """

    name: ClassVar[str] = "ssp"
    paces: ClassVar[bool] = True

    s: int

    def __post_init__(self) -> None:
        if self.s < 0:
            raise ValueError(f"s: expected 0 or more pushes, got {self.s}")

    def waits_for(self, pull: Pull) -> str | None:
        clocks = pull.clocks
        slowest = min(clocks, key=clocks.__getitem__)
        is_ahead = clocks[pull.session] - clocks[slowest] > self.s
        return slowest if is_ahead else None
