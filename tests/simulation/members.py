"""Who should be known to a server, worked out apart from it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from psserver.decision import Session
from pswire import errors
from simulation.requests import Join

Refusal = type[errors.ParameterServerError]

_HOUR_S = 3600.0
_OLD = 8  # Sessions of one worker that are over, and still known.


class Members:
    """The sessions that have joined.

    Attributes:
        rows: What is known of each.
    """

    def __init__(self, rows: Mapping[str, Session], now: float) -> None:
        self.rows = dict(rows)
        self._here: set[str] = set()
        self._seen = {row.worker: now for row in rows.values()}

    def join(
        self, join: Join, step: int, now: float, busy: Collection[str]
    ) -> Refusal | None:
        """Enter a session, or say why not; then forget who was silent for an hour.

        But for the busy ones, whose pushes wait.
        """
        of = {s: row for s, row in self.rows.items() if row.worker == join.worker}
        newest = next((s for s, row in of.items() if not row.superseded), None)
        if join.session in of:
            if of[join.session].superseded:
                return errors.SessionSupersededError
        else:
            if join.rejoin and newest in self._here:
                return errors.SessionSupersededError
            if newest:
                self.rows[newest] = replace(of[newest], superseded=True)
            since = step if join.rejoin else 0
            self.rows[join.session] = Session(join.worker, since=since)
            for old in {*[*of][:-_OLD]} - {*busy}:
                del self.rows[old]
        self._here.add(join.session)
        self._seen[join.worker] = now
        self._forget(now, {self.rows[session].worker for session in busy})
        return None

    def see(self, session: str, now: float) -> Refusal | None:
        """Listen to a session, or say why not."""
        row = self.rows.get(session)
        if row is None:
            return errors.SessionUnknownError
        if row.superseded:
            return errors.SessionSupersededError
        self._seen[row.worker] = now
        return None

    def _forget(self, now: float, but: Collection[str]) -> None:
        silent = {w for w, at in self._seen.items() if now - at > _HOUR_S} - {*but}
        self.rows = {s: r for s, r in self.rows.items() if r.worker not in silent}
        self._seen = {w: at for w, at in self._seen.items() if w not in silent}
