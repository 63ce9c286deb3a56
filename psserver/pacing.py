"""What is remembered of sessions so that a policy can tell whose turn to pull it is."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from psserver.policies.pull import Pull
from psserver.policies.terms import Terms

_SHARE = 8  # Of what a wait has taken, one part more is waited before asking again.
_LEAST_S, _MOST_S = 0.001, 1.0
_LATE_S = 1.0  # Who has waited, and asks no more, is not waited for any longer.


@dataclass(frozen=True, slots=True)
class Turn:
    """The answer to a pull.

    Attributes:
        is_paced: Whether others may have to wait for who has pulled.
        wait_s: When to ask again, in seconds; 0: it is granted.
        waits_for: Whom it waits for; empty: nobody.
        waited_s: How long it has waited since it asked last, in seconds.
    """

    is_paced: bool = False
    wait_s: float = 0.0
    waits_for: str = ""
    waited_s: float = 0.0


@dataclass(slots=True)
class _Waiting:
    """A pull that was not granted.

    Attributes:
        place: Its place in the queue: lower is sooner.
        asked_at: When it was asked for last, in seconds.
        asks_by: When it will have been asked for again, in seconds.
    """

    place: int
    asked_at: float
    asks_by: float

    def lasted(self, now: float) -> float:
        """Return how long it has lasted since it was asked for, in seconds."""
        # A call may have overtaken another since its time was taken.
        return max(0.0, min(now, self.asks_by) - self.asked_at)


@dataclass(slots=True)
class _Member:
    """A session.

    Attributes:
        clock: Its judged pushes, and the clock that it began at.
        since: When it has pulled, or had a push judged, in seconds.
        step_read: The step of its pull in flight; None: there is none.
        waiting: For its turn; None: it does not.
    """

    clock: int
    since: float
    step_read: int | None = None
    waiting: _Waiting | None = None


class Pacing:
    """The sessions that have pulled; whoever owns this guards it.

    It ends with the server, and with the policy: of what was pulled before, nothing is
    known.
    """

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._places = itertools.count()

    def ask(
        self,
        session: str,
        step: int,
        terms: Terms,
        now: float,
        is_here: Callable[[str], bool],
    ) -> Turn:
        """Grant a session's pull, or have it wait.

        Who is new, or was gone, begins at the clock of the slowest one. Who asks will
        not push any more what it pulled before, or else that is not looked at.

        Args:
            session: Who pulls.
            step: What it would read, in steps.
            terms: What says whom it waits for.
            now: Seconds.
            is_here: Whether a session is live.
        """
        others = {s: m for s, m in self._members.items() if s != session and is_here(s)}
        least = min((member.clock for member in others.values()), default=0)
        mine = self._members.get(session) or _Member(least, now)
        self._members = {**others, session: mine}
        waiting, mine.step_read, mine.since = mine.waiting, None, now
        waited_s = waiting.lasted(now) if waiting else 0.0
        blocker = terms.policy.waits_for(
            Pull(
                session,
                step,
                terms.limit,
                clocks={name: member.clock for name, member in self._members.items()},
                in_flight={
                    name: member.step_read
                    for name, member in others.items()
                    if member.step_read is not None
                },
                ahead=self.waiting(now, waiting.place if waiting else math.inf),
            )
        )
        if blocker is None:
            mine.step_read, mine.waiting = step, None
            return Turn(is_paced=True, waited_s=waited_s)
        # In proportion to what it has taken already, so that both a long and a short
        # wait end soon after. The rate of steps would not do: waiting lowers it.
        wait_s = (now - others[blocker].since) / _SHARE
        wait_s = min(max(wait_s, _LEAST_S), _MOST_S)
        place = waiting.place if waiting else next(self._places)
        mine.waiting = _Waiting(place, now, now + wait_s + _LATE_S)
        return Turn(True, wait_s, blocker, waited_s)

    def judged(self, session: str, now: float) -> None:
        """Note that a push of a session was judged."""
        member = self._members.get(session)
        if member:  # Else it has not pulled yet, as far as we know.
            member.clock += 1
            member.step_read, member.since = None, now

    def leave(self, session: str) -> None:
        """Forget a session that will push nothing more."""
        self._members.pop(session, None)

    def waiting(self, now: float, before: float = math.inf) -> list[str]:
        """Return the sessions that wait and will ask again, the first of them first.

        Args:
            now: Seconds.
            before: A place in the queue: only those before it.
        """
        places = {
            member.waiting.place: session
            for session, member in self._members.items()
            if member.waiting and now <= member.waiting.asks_by
        }
        return [places[place] for place in sorted(places) if place < before]
