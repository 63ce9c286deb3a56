"""Group commit without threads: a push that has to wait says so."""

import threading
from collections.abc import Iterator, Sequence

from psserver.changes import Change
from psserver.commits import Keep
from psserver.core import Core, Judged, Pending
from pswire.errors import ServerUnavailableError


class WaitingError(BaseException):
    """A push waits until what it has changed is kept."""

    def __init__(self, pending: Pending, push: Judged) -> None:
        super().__init__()
        self.pending = pending
        self.push = push


class Turns:
    """Stands in for `Commits`: who has it says when a turn begins, and when it ends.

    Attributes:
        refusal: Why no push is applied; None: there is no trouble.
    """

    def __init__(self, core: Core, lock: threading.Lock, keep: Keep) -> None:
        self.refusal: OSError | None = None
        self._core = core
        self._keep = keep
        self._turn = self._steps()

    def require_room(self) -> None:
        if self.refusal:
            raise ServerUnavailableError(str(self.refusal))

    def resume(self) -> None:
        self.refusal = None

    def wait(self, pending: Pending) -> None:
        # A joining is answered at once: here it is as good as one whose answer waits,
        # but for a name that is taken over just when the server dies.
        if pending.judged and not pending.is_settled:
            raise WaitingError(pending, pending.judged)

    def advance(self) -> bool:
        """Take changes, or else keep them, or else end the turn; say if it ends."""
        return next(self._turn)

    def _steps(self) -> Iterator[bool]:
        while True:
            taken = self._core.take()
            yield False
            failure = self._failure(taken)
            yield False
            if failure:
                self.refusal = failure
                self._core.roll_back(taken, str(failure))
            else:
                self._core.publish()
            yield True

    def _failure(self, taken: Sequence[Change]) -> OSError | None:
        try:
            self._keep(taken)
        except OSError as error:
            return error
        return None
