"""What must be true of a server, worked out apart from it."""

from dataclasses import replace

import numpy as np

from psserver.checkpoint import Checkpoint
from psserver.decision import Session
from pswire import errors
from pswire.body import Arrays
from pswire.values import Reason, Verdict
from simulation.requests import Join, Push, variables
from simulation.rule import MOMENTUM

Refusal = type[errors.ParameterServerError]

_HOUR_S = 3600.0


class Model:
    """One history: variables by step, the pushes that made the steps, the sessions.

    Attributes:
        pushes: What made each step.
        shown: The step that pulls see.
        has_room: Whether the disk takes pushes.
        is_initialized: Whether there are variables.
        rows: What is known of each session.
    """

    def __init__(self, generation: str, limit: int | None, width: int) -> None:
        self.generation, self.limit, self.shown = generation, limit, 0
        self.pushes: list[tuple[str, int]] = []
        self.rows: dict[str, Session] = {}
        first = variables(width)
        self._states = [(first["A"], first["C"], np.zeros(1, np.float32))]
        self.has_room, self.is_initialized = True, False
        self._here: set[str] = set()
        self._seen: dict[str, float] = {}

    @property
    def step(self) -> int:
        """The newest step, which pushes are judged by."""
        return len(self.pushes)

    def join(self, join: Join, now: float) -> Refusal | None:
        """Enter a session, or say why not."""
        of = {s: row for s, row in self.rows.items() if row.worker == join.worker}
        newest = next((s for s, row in of.items() if not row.superseded), None)
        if join.session in self.rows:
            if self.rows[join.session].superseded:
                return errors.SessionSupersededError
        else:
            if join.rejoin and newest in self._here:
                return errors.SessionSupersededError
            if newest:
                self.rows[newest] = replace(self.rows[newest], superseded=True)
            since = self.step if join.rejoin else 0
            self.rows[join.session] = Session(join.worker, since=since)
            for old in [*of][:-8]:
                del self.rows[old]
        self._here.add(join.session)
        self._seen[join.worker] = now
        self._forget(now)
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

    def push(self, push: Push) -> Verdict | Refusal:
        """Apply or drop the push of a session that is listened to, or refuse it."""
        header, row = push.header, self.rows[push.header.session]
        if not self.is_initialized:
            return errors.NotInitializedError
        if row.last_verdict and row.last_seq == header.seq:
            return row.last_verdict.repeated()
        if header.seq <= row.last_seq:
            return errors.SequenceError
        if header.generation != self.generation:
            return errors.GenerationError
        staleness = self.step - header.step_read
        if not 0 <= staleness <= self.step:
            return errors.StepReadError
        if header.step_read < row.since:
            return errors.GenerationError
        if push.flaw is errors.VariableMismatchError:
            return push.flaw
        applied = self.limit is None or staleness <= self.limit
        if applied and not self.has_room:
            return errors.ServerUnavailableError
        if applied and push.flaw:
            return push.flaw
        if applied:
            self._apply(push)
        reason = None if applied else Reason.STALE
        verdict = Verdict(applied, staleness, self.step, reason)
        told = replace(row, last_seq=header.seq, last_verdict=verdict)
        self.rows[header.session] = told
        return verdict

    def require_state(self, params: Arrays, step: int) -> None:
        """Check that variables are, bit for bit, those of a step."""
        for name, wanted in zip("AC", self._states[step], strict=False):
            assert params[name].tobytes() == wanted.tobytes(), f"{name} at step {step}"

    def go_on(self, kept: Checkpoint) -> None:
        """Be at a step again, and know of sessions what a server has kept of them.

        It must know of all pushes that are applied, and of no others.
        """
        self.require_state(kept.variables, kept.step)
        self.generation, self.shown = kept.generation, kept.step
        del self.pushes[kept.step :], self._states[kept.step + 1 :]
        for name, row in kept.sessions.items():
            if row.last_verdict and row.last_verdict.applied:
                at = slice(row.last_verdict.step - 1, row.last_verdict.step)
                assert self.pushes[at] == [(name, row.last_seq)], f"{name}: {row}"
        for step, (session, seq) in enumerate(self.pushes, 1):
            if known := kept.sessions.get(session):
                assert seq <= known.last_seq or step <= known.since
            elif lost := self.rows.get(session):
                assert step <= lost.since, f"{session} is forgotten"
        self.rows = dict(kept.sessions)

    def restart(self, kept: Checkpoint, limit: int | None, now: float) -> None:
        """Go on as another server."""
        self.go_on(kept)
        self.limit, self._here = limit, set()
        self.has_room = self.is_initialized = True
        self._seen = {row.worker: now for row in self.rows.values()}

    def _apply(self, push: Push) -> None:
        marks, sums, momentum = self._states[-1]
        marks = marks.copy()
        marks[push.number % len(marks)] += 1
        momentum = MOMENTUM * momentum + np.float32(push.weight())
        self._states.append((marks, sums - momentum, momentum))
        self.pushes.append(push.name)

    def _forget(self, now: float) -> None:
        silent = {w for w, at in self._seen.items() if now - at > _HOUR_S}
        self.rows = {s: r for s, r in self.rows.items() if r.worker not in silent}
        self._seen = {w: at for w, at in self._seen.items() if w not in silent}
