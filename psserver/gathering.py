"""Pushes that wait for one another, until there are enough to make a step."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from psserver.core import Core, Pending
from psserver.model import Push
from psserver.timing import Timing
from pswire.errors import (
    CallCancelledError,
    ServerUnavailableError,
    TooFewPushesError,
)
from pswire.values import Verdict

PATIENCE_S = 20.0
"""How long a push waits; less than a client's deadline, which is 30 s by itself."""
_LOOK_S = 0.25  # How often it is looked whether that is any use still.


@dataclass(slots=True, eq=False)
class _Waiting:
    """A push, whether its caller is still there, and what has become of it, if it has.

    Attributes:
        pending: Its verdict, once the step is made.
        failure: Why it is none of the step's.
    """

    push: Push
    is_wanted: Callable[[], bool]
    pending: Pending | None = None
    failure: Exception | None = None


class Gathering:
    """The newest step's pushes that wait; all but `close` needs the core's lock."""

    def __init__(self, core: Core, lock: threading.Lock) -> None:
        """Begin without any.

        Args:
            core: Makes steps of them.
            lock: Guards it, and this.
        """
        self._core = core
        self._settled = threading.Condition(lock)
        self._waiting: dict[str, _Waiting] = {}  # By session, as they have come.
        self._closed = ""

    def wait(
        self,
        push: Push,
        verdict: Verdict,
        timing: Timing,
        is_wanted: Callable[[], bool],
    ) -> Pending:
        """Return once the step is made that a push is one of, with the lock again.

        Nothing of the push is kept or told before that.

        Args:
            push: Of a session that is none of the step's yet; or again the same, which
                takes the place of its first attempt.
            verdict: What each of them gets.
            timing: Of the push.
            is_wanted: Whether the caller still waits.

        Raises:
            TooFewPushesError: Too few have come.
            CallCancelledError: The caller went away.
            ServerUnavailableError: They do not wait any more.
            ParameterServerError: No step can be made of them; nothing has changed.
        """
        self._require_open()
        session = push.header.session
        mine = _Waiting(push, is_wanted)
        if before := self._waiting.get(session):
            before.failure = ServerUnavailableError("push: another attempt has come")
        self._waiting[session] = mine
        if self._missing <= 0:
            self._sift()
        if self._missing <= 0:
            self._make_step(verdict, timing)
        self._settled.notify_all()
        self._wait(session, mine)
        if mine.failure:
            raise mine.failure
        assert mine.pending
        return mine.pending

    def refuse(self, why: str) -> None:
        """Let nobody wait any more who does."""
        if not self._waiting:
            return
        for waiting in self._waiting.values():
            waiting.failure = ServerUnavailableError(why)
        self._waiting.clear()
        self._settled.notify_all()

    def close(self, why: str) -> None:
        """Let nobody wait from now on; who does is told soon."""
        self._closed = why

    @property
    def _missing(self) -> int:
        return self._core.terms.policy.pushes_a_step - len(self._waiting)

    def _require_open(self) -> None:
        if self._closed:
            raise ServerUnavailableError(self._closed)

    def _wait(self, session: str, mine: _Waiting) -> None:
        for _ in range(round(PATIENCE_S / _LOOK_S)):
            if self._settled.wait_for(lambda: mine.pending or mine.failure, _LOOK_S):
                return
            self._look(mine)
            if mine.failure:
                del self._waiting[session]
                return
        mine.failure = TooFewPushesError(
            f"push: expected {self._core.terms.policy.pushes_a_step} for step "
            f"{mine.push.header.step_read + 1}, got {len(self._waiting)} in "
            f"{PATIENCE_S:g} s: {self._missing} are missing"
        )
        del self._waiting[session]

    def _sift(self) -> None:
        """Refuse whoever cannot be one of the step's any more."""
        for session, waiting in list(self._waiting.items()):
            self._look(waiting)
            if waiting.failure:
                del self._waiting[session]

    def _look(self, waiting: _Waiting) -> None:
        try:
            self._require_open()
            self._core.decide(waiting.push.header)
            if not waiting.is_wanted():
                raise CallCancelledError("push: the caller went away")
        except Exception as error:
            waiting.failure = error

    def _make_step(self, verdict: Verdict, timing: Timing) -> None:
        gathered, self._waiting = list(self._waiting.values()), {}
        pushes = [waiting.push for waiting in gathered]
        try:
            timing.apply(lambda: self._core.apply_mean(pushes, verdict))
        except Exception as error:
            for waiting in gathered:
                waiting.failure = error
            return
        for waiting in gathered:
            header = waiting.push.header
            waiting.pending = self._core.settle(header, verdict, timing.judged_at)
