"""The policy by which nobody computes what would be dropped."""

from dataclasses import dataclass
from typing import ClassVar

from psserver.policies.policy import Policy
from psserver.policies.pull import Pull


@dataclass(frozen=True, slots=True)
class Admission(Policy):
    """Grant a pull only while all that is in flight will be within the limit.

    So no push is ever over it, as long as whoever pulls pushes that before it pulls
    again, and nothing else is pushed.
    """

    name: ClassVar[str] = "admission"
    paces: ClassVar[bool] = True

    def require_limit(self, limit: int | None) -> None:
        if limit is None or limit < 0:
            raise ValueError(
                "max_staleness: expected 0 or more steps beside admission, got "
                f"{'off' if limit is None else limit}"
            )

    def waits_for(self, pull: Pull) -> str | None:
        # With this one n + 1 are in flight, so each push sees at most the n others come
        # before it: no staleness exceeds step - oldest + n. A judged push takes one
        # from n and adds at most one to step, so the sum rises by a grant alone, and no
        # grant lifts it over the limit.
        #
        # Who has waited longer counts as if in flight: else whoever pulls right after
        # its push would always be first, and some would never get a turn.
        assert pull.limit is not None  # See `require_limit`.
        flights = pull.in_flight
        oldest = min(flights, key=flights.__getitem__, default=pull.session)
        age = pull.step - flights.get(oldest, pull.step)
        if age + len(flights) + len(pull.ahead) <= pull.limit:
            return None
        return oldest if flights else pull.ahead[0]
