"""Which sessions have joined, and what the server remembers of each."""

import enum
from collections.abc import Collection, Mapping
from dataclasses import replace

from psserver.decision import Session, superseded
from pswire.errors import InvalidRequestError, SessionUnknownError
from pswire.values import Verdict

_MAX_WORKER_NBYTES = 256
_MAX_SESSION_NBYTES = 64
_MAX_SUPERSEDED = 8  # A worker's: older ones have long been told, or are gone.


class Entry(enum.Enum):
    """What a session's joining is."""

    FIRST = enum.auto()
    """That of a worker that nobody knows."""
    TAKEOVER = enum.auto()
    """Of a worker's name, from the session before."""
    AGAIN = enum.auto()
    """No news: it had joined."""


class Sessions:
    """One row a session; whoever owns it guards it, but for `find` and `get`."""

    def __init__(self, rows: Mapping[str, Session] = {}) -> None:
        """Start.

        Args:
            rows: What an earlier start of the server knew, by session.
        """
        self._kept = rows
        self._rows = dict(rows)
        self._of: dict[str, list[str]] = {}  # Worker -> its sessions, the newest last.
        for session in sorted(rows, key=lambda each: not rows[each].superseded):
            self._of.setdefault(rows[session].worker, []).append(session)
        self._newest_kept = {worker: own[-1] for worker, own in self._of.items()}
        self._here: set[str] = set()  # Those that have joined this start.

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

    def join(
        self,
        worker: str,
        session: str,
        rejoin_at: int | None = None,
        busy: Collection[str] = (),
    ) -> Entry:
        """Enter a session, which takes its worker's name over from any other.

        One that has joined before, but is forgotten, takes it only from a session that
        has not joined this start of the server: any other is the newer one.

        Args:
            worker: The worker's name.
            session: Its process's.
            rejoin_at: The step, if the session has joined before; None: it has not.
            busy: The sessions that have to be remembered, however old they are.

        Raises:
            InvalidRequestError: A name is empty or too long, or the session belongs
                to another worker.
            SessionSupersededError: A newer session has taken the name over.
        """
        _require_name("worker", worker, _MAX_WORKER_NBYTES)
        _require_name("session", session, _MAX_SESSION_NBYTES)
        known = self.find(session)
        if known is None:
            newest = self._of.get(worker, [""])[-1]
            if rejoin_at is not None and newest in self._here:
                raise superseded(worker, session)
            self._here.add(session)
            entry = self.enter(worker, session, rejoin_at)
            self._trim(self._of[worker], busy)
            return entry
        if known.worker != worker:
            raise InvalidRequestError(
                f"worker: expected {known.worker}, whose session {session} is, "
                f"got {worker}"
            )
        if known.superseded:
            raise superseded(worker, session)
        self._here.add(session)
        return Entry.AGAIN

    def enter(self, worker: str, session: str, rejoin_at: int | None = None) -> Entry:
        """Make a session its worker's newest, as a server did that may have known less.

        It forgets nobody: of whoever seems old here, a newer joining may be next.

        Args:
            worker: See `join`.
            session: See there; what is known of it stays so.
            rejoin_at: See there.
        """
        row = self._rows.pop(session, Session(worker))
        sessions = self._of.setdefault(worker, [])
        if session in sessions:
            sessions.remove(session)
        entry = Entry.TAKEOVER if sessions else Entry.FIRST
        if sessions:
            previous = sessions[-1]
            self._rows[previous] = replace(self._rows[previous], superseded=True)
        self._rows[session] = replace(row, superseded=False, since=rejoin_at or 0)
        sessions.append(session)
        return entry

    def replay(self, worker: str, session: str, rejoin_at: int | None) -> None:
        """Do again what came after the rows were kept, or shortly before; see `enter`.

        If that joining is in the rows already, so are all before it, and perhaps some
        after it that come no more. So whoever had the name there has it again.

        Args:
            worker: See `enter`.
            session: See there.
            rejoin_at: See there.
        """
        kept = self._kept.get(session)
        if kept and kept.since == (rejoin_at or 0):
            session = self._newest_kept[worker]
            rejoin_at = self._kept[session].since
        self.enter(worker, session, rejoin_at)

    def settle(self, session: str, seq: int, verdict: Verdict) -> None:
        """Remember the verdict on a session's newest push."""
        row = self._rows[session]
        self._rows[session] = replace(row, last_seq=seq, last_verdict=verdict)

    def put_back(self, session: str, row: Session) -> None:
        """Remember of a session what was remembered before its newest push."""
        now = self._rows[session]
        self._rows[session] = replace(row, superseded=now.superseded)

    def begin_at(self, step: int) -> None:
        """Let no session have joined again at a step that is still to come."""
        for session, row in self._rows.items():
            if row.since > step:
                self._rows[session] = replace(row, since=step)

    def rows(self) -> dict[str, Session]:
        """Return what is remembered, by session, in the order of their joining."""
        return dict(self._rows)

    def forget(self, worker: str) -> None:
        """Forget a worker's sessions."""
        for session in self._of.pop(worker, ()):
            self._drop(session)

    def _trim(self, sessions: list[str], busy: Collection[str]) -> None:
        for old in [s for s in sessions[: -_MAX_SUPERSEDED - 1] if s not in busy]:
            sessions.remove(old)
            self._drop(old)

    def _drop(self, session: str) -> None:
        del self._rows[session]
        self._here.discard(session)


def _require_name(what: str, name: str, max_nbytes: int) -> None:
    nbytes = len(name.encode())
    if not 0 < nbytes <= max_nbytes:
        raise InvalidRequestError(
            f"{what}: expected a name of 1 to {max_nbytes} bytes, got {nbytes}"
        )
    if not name.isprintable():
        raise InvalidRequestError(f"{what}: expected printable letters, got {name!r}")
