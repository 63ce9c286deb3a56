"""What must be true of a server, worked out apart from it."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from psserver.checkpoint import Checkpoint
from psserver.policies.terms import Terms
from pswire import errors
from pswire.body import Arrays
from pswire.values import Reason, Verdict
from simulation.members import Members, Refusal
from simulation.requests import NAMES, Join, Push, variables
from simulation.rule import MOMENTUM


class Model:
    """One history: variables by step, the pushes that made the steps, the sessions.

    Attributes:
        terms: By what pushes are judged.
        pushes: What made each step.
        shown: The step that pulls see.
        has_room: Whether the disk takes pushes.
        initializer: Who has brought the variables; None: there are none.
        candidates: Who has tried to.
        members: Who is known.
    """

    def __init__(self, generation: str, terms: Terms, width: int) -> None:
        self.generation, self.terms, self.shown = generation, terms, 0
        self.pushes: list[tuple[str, int]] = []
        self.members = Members()
        self.initializer: str | None = None
        self.candidates: set[str] = set()
        self.has_room = True
        self._width = width

    @property
    def step(self) -> int:
        """The newest step, which pushes are judged by."""
        return len(self.pushes)

    def initialize(self, session: str) -> None:
        """Have the variables of somebody who has tried to bring them."""
        assert session in self.candidates
        first = variables(self._width, session)
        self._states = [(first["A"], first["C"], np.zeros(1, np.float32))]
        self.initializer = session

    def join(self, join: Join, now: float, busy: Collection[str]) -> Refusal | None:
        """Enter a session, or say why not; see `Members.join`."""
        return self.members.join(join, self.step, now, busy, has_room=self.has_room)

    def push(self, push: Push, recent: Sequence[int]) -> Verdict | Refusal:
        """Apply or drop the push of a session that is listened to, or refuse it.

        Args:
            push: The push.
            recent: The staleness of the last judged ones, in steps.
        """
        header, row = push.header, self.members.rows[push.header.session]
        is_kept = self.step == self.shown
        if not self.initializer:
            return errors.NotInitializedError
        if row.last_verdict and row.last_seq == header.seq:
            repeated = row.last_verdict.repeated()
            return repeated if is_kept or self.has_room else _NO_ROOM
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
        factor = self.terms.factor(staleness, recent)
        left_out = self.terms.policy.left_out(staleness, NAMES)
        applied = factor is not None and len(left_out) < len(NAMES)
        if not self.has_room and (applied or not is_kept):
            return _NO_ROOM
        if applied and push.flaw:
            return push.flaw
        if factor is None or not applied:
            verdict = Verdict(False, staleness, self.step, Reason.STALE)
        else:
            self._apply(push, np.float32(factor), left_out)
            left = len(left_out)
            verdict = Verdict(
                *(True, staleness, self.step), factor=factor, dropped_variables=left
            )
        told = replace(row, last_seq=header.seq, last_verdict=verdict)
        self.members.change(header.session, told)
        return verdict

    def require_state(self, params: Arrays, step: int) -> None:
        """Check that variables are, bit for bit, those of a step."""
        for name, wanted in zip(NAMES, self._states[step], strict=False):
            assert params[name].tobytes() == wanted.tobytes(), f"{name} at step {step}"

    def roll_back(self, kept: Checkpoint) -> None:
        """Be at the step that is shown again: what waited has not happened."""
        assert kept.step == self.shown
        self._cut(kept)
        self.members.put_back(kept.sessions, kept.step)

    def restart(self, kept: Checkpoint, terms: Terms, now: float) -> None:
        """Go on as another server, which may have lost what was not promised."""
        if self.initializer is None:
            self.initialize(kept.initializer)
        assert kept.initializer == self.initializer
        self._cut(kept)
        self.members.restart(kept.sessions, now)
        self.generation, self.shown, self.terms = kept.generation, kept.step, terms

    def _cut(self, kept: Checkpoint) -> None:
        """Be at a step again, of which a server knows just the right pushes."""
        self.require_state(kept.variables, kept.step)
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

    def _apply(self, push: Push, factor: np.float32, left_out: Collection[str]) -> None:
        marks, sums, momentum = self._states[-1]
        if "A" not in left_out:
            marks = marks.copy()
            marks[push.number % len(marks)] += factor
        if "C" not in left_out:
            momentum = MOMENTUM * momentum + np.float32(push.weight())
            sums = sums - factor * momentum
        self._states.append((marks, sums, momentum))
        self.pushes.append(push.name)


_NO_ROOM = errors.ServerUnavailableError
