"""What must be true of a server, worked out apart from it."""

from dataclasses import replace

import numpy as np

from psserver.checkpoint import Checkpoint
from pswire import errors
from pswire.body import Arrays
from pswire.values import Reason, Verdict
from simulation.members import Members, Refusal
from simulation.requests import Push, variables
from simulation.rule import MOMENTUM


class Model:
    """One history: variables by step, the pushes that made the steps, the sessions.

    Attributes:
        pushes: What made each step.
        shown: The step that pulls see.
        has_room: Whether the disk takes pushes.
        is_initialized: Whether there are variables.
        members: Who is known.
    """

    def __init__(self, generation: str, limit: int | None, width: int) -> None:
        self.generation, self.limit, self.shown = generation, limit, 0
        self.pushes: list[tuple[str, int]] = []
        self.members = Members({}, 0.0)
        first = variables(width)
        self._states = [(first["A"], first["C"], np.zeros(1, np.float32))]
        self.has_room, self.is_initialized = True, False

    @property
    def step(self) -> int:
        """The newest step, which pushes are judged by."""
        return len(self.pushes)

    def push(self, push: Push) -> Verdict | Refusal:
        """Apply or drop the push of a session that is listened to, or refuse it."""
        header, row = push.header, self.members.rows[push.header.session]
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
        self.members.rows[header.session] = told
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
            elif lost := self.members.rows.get(session):
                assert step <= lost.since, f"{session} is forgotten"
        self.members.rows = dict(kept.sessions)

    def restart(self, kept: Checkpoint, limit: int | None, now: float) -> None:
        """Go on as another server."""
        self.go_on(kept)
        self.limit, self.members = limit, Members(kept.sessions, now)
        self.has_room = self.is_initialized = True

    def _apply(self, push: Push) -> None:
        marks, sums, momentum = self._states[-1]
        marks = marks.copy()
        marks[push.number % len(marks)] += 1
        momentum = MOMENTUM * momentum + np.float32(push.weight())
        self._states.append((marks, sums - momentum, momentum))
        self.pushes.append(push.name)
