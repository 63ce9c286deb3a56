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
        told: How many joinings of each worker are acknowledged.
        promised: How many of them must not be lost.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Session] = {}
        self.told: dict[str, int] = {}
        self.promised: dict[str, int] = {}
        self._joined: dict[str, list[str]] = {}  # By worker, in their order.
        self._forgotten: dict[str, int] = {}  # How many of them.
        self._before: dict[str, list[Session]] = {}  # What may have to come back.
        self._here: set[str] = set()
        self._seen: dict[str, float] = {}

    def join(
        self,
        join: Join,
        step: int,
        now: float,
        busy: Collection[str],
        *,
        has_room: bool,
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
            if not has_room:
                return errors.ServerUnavailableError
            if join.rejoin and newest in self._here:
                return errors.SessionSupersededError
            if newest:
                self.rows[newest] = replace(of[newest], superseded=True)
            since = step if join.rejoin else 0
            self.rows[join.session] = Session(join.worker, since=since)
            self._joined.setdefault(join.worker, []).append(join.session)
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

    def change(self, session: str, row: Session) -> None:
        """Know something else of a session, unless it is taken back."""
        self._before.setdefault(session, []).append(self.rows[session])
        self.rows[session] = row

    def tell(self, session: str, seq: int) -> None:
        """Note that a verdict is told: what was before will not come back."""
        before = self._before.get(session, [])
        self._before[session] = [row for row in before if row.last_seq >= seq]

    def put_back(self, rows: Mapping[str, Session], step: int) -> None:
        """Know no verdict that was taken back; who has joined stays.

        Args:
            rows: What a server knows.
            step: The step that it is at again.
        """
        assert rows.keys() == self.rows.keys(), "somebody is lost, or comes back"
        for session, row in rows.items():
            now = self.rows[session]
            known = [
                replace(old, superseded=now.superseded, since=min(old.since, step))
                for old in (now, *self._before.get(session, ()))
            ]
            assert row in known, f"{session}: expected one of {known}, got {row}"
        self.rows = dict(rows)

    # Who must still be known

    def joinings(self) -> dict[str, int]:
        """Return how many there were of each worker that is not forgotten."""
        workers = {row.worker for row in self.rows.values()}
        return {w: len(names) for w, names in self._joined.items() if w in workers}

    def place(self, session: str) -> int:
        """Return the number of a session's last joining among its worker's."""
        names = self._joined[self.rows[session].worker]
        return len(names) - names[::-1].index(session)

    def acknowledge(self, worker: str, place: int) -> None:
        """Note that a session knows of its joining, which has this number."""
        if place > self._forgotten.get(worker, 0):
            self.told[worker] = max(place, self.told.get(worker, 0))

    def keep(self, joinings: Mapping[str, int]) -> None:
        """Let joinings never be lost, unless the worker was forgotten since."""
        for worker, count in joinings.items():
            if count > self._forgotten.get(worker, 0):
                self.promised[worker] = max(count, self.promised.get(worker, 0))

    def restart(self, rows: Mapping[str, Session], now: float) -> None:
        """Know what a server knows, which has to be what was known at some time."""
        workers = {*self._joined, *(row.worker for row in rows.values())}
        for worker in sorted(workers):
            theirs = {s: row for s, row in rows.items() if row.worker == worker}
            self._restart_worker(worker, theirs)
        self.rows, self._before, self._here = dict(rows), {}, set()
        self._forgotten = {}
        self._seen = {row.worker: now for row in rows.values()}
        self.told, self.promised = self.joinings(), self.joinings()

    def _restart_worker(self, worker: str, rows: Mapping[str, Session]) -> None:
        names, least = self._joined.get(worker, []), self.promised.get(worker, 0)
        current = [session for session, row in rows.items() if not row.superseded]
        assert len(current) == bool(rows), f"{worker}: {current} go on"
        counts = [
            count
            for count in range(least, len(names) + 1)
            if names[count - 1 : count] == current and {*rows} <= {*names[:count]}
        ]
        assert counts, f"{worker}: expected {names} from {least} on, got {rows}"
        lost = ({*names[:least]} & {*self.rows}) - {*names[least:], *rows}
        assert not lost, f"{worker}: {lost} are forgotten"
        self._joined[worker] = names[: counts[-1]]

    def _forget(self, now: float, but: Collection[str]) -> None:
        silent = {w for w, at in self._seen.items() if now - at > _HOUR_S} - {*but}
        self.rows = {s: r for s, r in self.rows.items() if r.worker not in silent}
        self._seen = {w: at for w, at in self._seen.items() if w not in silent}
        for worker in silent:
            self._forgotten[worker] = len(self._joined.get(worker, ()))
            self.told.pop(worker, None)
            self.promised.pop(worker, None)
