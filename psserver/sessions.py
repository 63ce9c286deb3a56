"""Which sessions have joined, and what the server remembers of each."""

import enum
from collections.abc import Mapping
from dataclasses import replace

from psserver.decision import Session, superseded
from pswire.errors import InvalidRequestError, SessionUnknownError
from pswire.values import Verdict

_MAX_WORKER_NBYTES = 256
_MAX_SESSION_NBYTES = 64


class Entry(enum.Enum):
    """What a session's joining is."""

    FIRST = enum.auto()
    """That of a worker that nobody has known."""
    TAKEOVER = enum.auto()
    """Of a worker's name, from the session before."""
    AGAIN = enum.auto()
    """No news: it had joined."""


class Sessions:
    """One row a session; whoever owns it guards it, but for `find` and `get`."""

    def __init__(self) -> None:
        self._rows: dict[str, Session] = {}
        self._newest: dict[str, str] = {}  # Worker -> its newest session.

    def find(self, session: str) -> Session | None:
        """Return a session's row; None: it has not joined."""
        return self._rows.get(session)

    def get(self, session: str) -> Session:
        """Return a session's row.

        Raises:
            SessionUnknownError: It has not joined.
        """
        row = self.find(session)
        if row is None:
            raise SessionUnknownError(
                f"session: expected one that has joined, got {session[:64]!r}"
            )
        return row

    def join(self, worker: str, session: str) -> Entry:
        """Enter a session, which takes its worker's name over from any other.

        Raises:
            InvalidRequestError: A name is empty or too long, or the session belongs
                to another worker.
            SessionSupersededError: A newer session has taken the name over.
        """
        _require_name("worker", worker, _MAX_WORKER_NBYTES)
        _require_name("session", session, _MAX_SESSION_NBYTES)
        known = self.find(session)
        if known is None:
            return self._enter(worker, session)
        if known.worker != worker:
            raise InvalidRequestError(
                f"worker: expected {known.worker}, whose session {session} is, "
                f"got {worker}"
            )
        if known.superseded:
            raise superseded(worker, session)
        return Entry.AGAIN

    def settle(self, session: str, seq: int, verdict: Verdict) -> None:
        """Remember the verdict on a session's newest push."""
        row = self._rows[session]
        self._rows[session] = Session(row.worker, seq, verdict, row.superseded)

    def put_back(self, session: str, row: Session) -> None:
        """Remember of a session what was remembered before its newest push."""
        now = self._rows[session]
        self._rows[session] = replace(row, superseded=now.superseded)

    def rows(self) -> dict[str, Session]:
        """Return a copy of what is remembered, by session."""
        return dict(self._rows)

    def restore(self, rows: Mapping[str, Session]) -> None:
        """Remember what `rows` had returned, in place of anything else."""
        self._rows = dict(rows)
        newest = (item for item in rows.items() if not item[1].superseded)
        self._newest = {row.worker: session for session, row in newest}

    def _enter(self, worker: str, session: str) -> Entry:
        previous = self._newest.get(worker)
        if previous is not None:
            self._rows[previous] = replace(self._rows[previous], superseded=True)
        self._rows[session] = Session(worker)
        self._newest[worker] = session
        return Entry.FIRST if previous is None else Entry.TAKEOVER


def _require_name(what: str, name: str, max_nbytes: int) -> None:
    nbytes = len(name.encode())
    if not 0 < nbytes <= max_nbytes:
        raise InvalidRequestError(
            f"{what}: expected a name of 1 to {max_nbytes} bytes, got {nbytes}"
        )
    if not name.isprintable():
        raise InvalidRequestError(f"{what}: expected printable letters, got {name!r}")
