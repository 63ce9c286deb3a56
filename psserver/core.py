"""What the server knows, and how a push changes it: no lock, no clock, no file."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from psserver.changes import Applied, Change, Joined
from psserver.checkpoint import Checkpoint
from psserver.counters import Counters
from psserver.decision import Present, Session, decide
from psserver.model import Model, Push
from psserver.policies.terms import Terms
from psserver.rules import State
from psserver.sessions import Entry, Sessions
from pswire.body import Body
from pswire.errors import NotInitializedError
from pswire.layout import Layout
from pswire.values import PushHeader, Snapshot, Verdict


class Cut(NamedTuple):
    """A step: what pulls see of it, and all that the next one is made from."""

    snapshot: Snapshot[Body]
    state: State


@dataclass(frozen=True, slots=True)
class Judged:
    """A push with its verdict.

    Attributes:
        session: Who pushed.
        before: What was remembered of the session.
        verdict: What is to be told.
        value: The loss that the push told.
        at: When it was judged, in seconds.
    """

    session: str
    before: Session
    verdict: Verdict
    value: float | None
    at: float


@dataclass(slots=True)
class Pending:
    """What nobody may be told before all that it follows from is kept.

    Attributes:
        judged: The push that it is about; None: it is about a joining.
        is_settled: Whether it can be told, or else has been taken back.
        taken_back: Why; empty: it has not been.
    """

    judged: Judged | None = None
    is_settled: bool = False
    taken_back: str = ""


class Core:
    """One model and its workers; whoever owns it guards it, but for `published`.

    A push is applied to the newest step at once. What pulls see follows later: `take`
    hands out the changes since the last time, for somebody to keep, and then either
    `publish` shows them, or `roll_back` undoes them and all that came after.
    """

    def __init__(self, terms: Terms, generation: str, *, keeps_changes: bool) -> None:
        """Begin without variables.

        Args:
            terms: By what pushes are judged.
            generation: The history that steps count in.
            keeps_changes: Whether `take` has any changes to hand out.
        """
        self.model: Model | None = None
        self.sessions = Sessions()
        self.counters = Counters()
        self.terms = terms
        self._keeps_changes = keeps_changes
        self._changes: list[Change] = []
        nothing = Snapshot(Body(Layout(()), ()), 0, generation)
        # Read without a lock, so replaced as a whole.
        self.published = self._taken = self._newest = Cut(nothing, State((), None))
        self._is_keeping = False  # Changes that were taken.
        self._is_starting = False
        self._being_kept: list[Pending] = []
        self._waiting: list[Pending] = []

    @property
    def generation(self) -> str:
        """The history that steps count in."""
        return self.published.snapshot.generation

    def rename(self, generation: str) -> None:
        """Begin another history at the step that it is."""
        snapshot, state = self.published
        renamed = Snapshot(snapshot.params, snapshot.step, generation)
        self.published = self._taken = self._newest = Cut(renamed, state)

    def join(
        self, worker: str, session: str, now: float, *, rejoin: bool = False
    ) -> tuple[Entry, Pending]:
        """Enter a session; see `Sessions.join`."""
        rejoin_at = self._newest.snapshot.step if rejoin else None
        busy = {push.session for push in self._pushes()}
        entry = self.sessions.join(worker, session, rejoin_at, busy=busy)
        self.counters.join(worker, now)
        # Without variables there is nothing to keep it beside.
        if entry is not Entry.AGAIN and (self.model or self._is_starting):
            self._note(Joined(worker, session, rejoin))
        pending = Pending()
        if self._changes or self._is_keeping:
            self._waiting.append(pending)
        else:
            pending.is_settled = True
        return entry, pending

    def forget_silent(self, now: float) -> Sequence[str]:
        """Forget the workers that have not called for an hour; return their names."""
        busy = {push.before.worker for push in self._pushes()}
        silent = self.counters.forget_silent(now, but=busy)
        for worker in silent:
            self.sessions.forget(worker)
        return silent

    def prepare(self) -> tuple[Mapping[str, Session], Counters]:
        """Return what to keep beside the first variables; see `memory`.

        Who joins from now on has to be kept too, once there are variables.
        """
        self._is_starting = True
        return self.memory()

    def give_up(self) -> None:
        """Have no variables: they could not be kept."""
        self._is_starting, self._changes = False, []
        for pending in self._waiting:
            pending.is_settled = True
        self._waiting = []

    def expects(self, session: str, now: float) -> bool:
        """Say whether a session is its worker's newest, and not silent."""
        known = self.sessions.find(session)
        if known is None or known.superseded:
            return False
        return not self.counters.is_silent(known.worker, now)

    def start(self, model: Model, state: State, step: int = 0) -> None:
        """Have variables from now on."""
        self._is_starting = False
        snapshot = Snapshot(model.body(state), step, self.generation)
        self.published = self._taken = self._newest = Cut(snapshot, state)
        self.model = model

    def require_model(self) -> Model:
        """Return what there is once there are variables.

        Raises:
            NotInitializedError: There are none.
        """
        if self.model is None:
            raise NotInitializedError(
                "variables: expected to be initialized, got a call before that"
            )
        return self.model

    def decide(self, header: PushHeader) -> Verdict:
        """Return the verdict that a push gets now; see `decision.decide`."""
        newest = self._newest.snapshot
        trainable = self.require_model().layout.trainable
        session = self.sessions.get(header.session)
        present = Present(
            newest.generation,
            newest.step,
            trainable,
            recent=self.counters.recent_staleness,
            drops=self.counters.rows[session.worker].consecutive_drops,
        )
        return decide(header, session, present, self.terms)

    def left_out(self, header: PushHeader, verdict: Verdict) -> Set[str]:
        """Return the names of the variables that a push is to be applied without.

        Args:
            header: Of the push.
            verdict: From `decide`, just now.
        """
        if not verdict.dropped_variables:
            return frozenset()
        brought = header.brought(self.require_model().layout.trainable)
        return self.terms.policy.left_out(verdict.staleness, brought)

    def apply(self, push: Push, verdict: Verdict) -> None:
        """Make the next step, wholly or not at all.

        Args:
            push: What is to be applied.
            verdict: From `decide`, just now.

        Raises:
            ParameterServerError: The rule cannot; nothing has changed.
        """
        model, header, before = self.require_model(), push.header, self._newest.state
        value, factor = header.value, verdict.factor
        state = model.rule.apply(
            *(before, push.gradients, value, factor), model.present(header)
        )
        patch = model.tables.patch(
            *(verdict.step, before.slots, push.rows), model.rule.scalars(value, factor)
        )
        snapshot = Snapshot(model.body(state), verdict.step, self.generation)
        # Nothing below can fail, so these change together or not at all.
        self._newest = Cut(snapshot, state)
        model.tables.add(patch)
        left = verdict.dropped_variables
        self._note(Applied(verdict.step, header, push.received, verdict.factor, left))
        model.rule.let_go()

    def settle(self, header: PushHeader, verdict: Verdict, now: float) -> Pending:
        """Remember a verdict; it is told once all that it follows from is kept."""
        before = self.sessions.get(header.session)
        if not verdict.duplicate:
            self.sessions.settle(header.session, header.seq, verdict)
        pending = Pending(Judged(header.session, before, verdict, header.value, now))
        if not self._keeps_changes:
            self._taken = self._newest
            self._show()
        if self.is_kept:
            self._tell(pending)
        else:
            self._waiting.append(pending)
        return pending

    @property
    def is_kept(self) -> bool:
        """Whether no verdict waits for anything."""
        return self._newest is self.published

    def take(self) -> Sequence[Change]:
        """Hand out the changes since the last time, in their order."""
        changes, self._changes = self._changes, []
        self._being_kept, self._waiting = self._waiting, []
        self._taken = self._newest
        self._is_keeping = bool(changes)
        return changes

    def publish(self) -> None:
        """Show what was taken: it is kept."""
        self._show()
        self._is_keeping = False
        told, self._being_kept = self._being_kept, []
        if self.is_kept:  # What was judged meanwhile has nothing left to wait for.
            waiting, self._waiting = self._waiting, []
            for pending in waiting:
                is_free = pending.judged or not self._changes
                (told if is_free else self._waiting).append(pending)
        for pending in told:
            self._tell(pending)

    def roll_back(self, taken: Sequence[Change], why: str) -> None:
        """Undo what was taken, which could not be kept, and all that came after.

        Args:
            taken: The changes. Who has joined stays, and is handed out again.
            why: What the pushers are told.
        """
        self._put_back(self.sessions)
        for pending in (*self._being_kept, *self._waiting):
            pending.taken_back, pending.is_settled = why, True
        self._changes = [
            change
            for change in (*taken, *self._changes)
            if isinstance(change, Joined) and self.sessions.find(change.session)
        ]
        self._being_kept, self._waiting, self._is_keeping = [], [], False
        self._taken = self._newest = self.published
        if self.model:
            self.model.tables.roll_back()

    def memory(self) -> tuple[Mapping[str, Session], Counters]:
        """Return what is remembered of sessions and pushes at the published step."""
        sessions = Sessions(self.sessions.rows())
        self._put_back(sessions)
        return sessions.rows(), self.counters.copy()

    def recover(self, kept: Checkpoint, model: Model, state: State) -> None:
        """Go on where another server had been; before anything else happens.

        Args:
            kept: What it had been.
            model: Made of that.
            state: Likewise.
        """
        self.sessions = Sessions(kept.sessions)
        self.counters = kept.counters
        self.rename(kept.generation)
        self.start(model, state, kept.step)

    def replay(self, change: Change, now: float) -> None:
        """Do again what another server had done.

        Args:
            change: The next one.
            now: Seconds.
        """
        if isinstance(change, Joined):
            rejoin_at = self._newest.snapshot.step if change.rejoin else None
            self.sessions.replay(change.worker, change.session, rejoin_at)
            self.counters.join(change.worker, now)
        else:
            push = self.require_model().push(change.header, change.body)
            verdict = Verdict(
                *(True, change.step - 1 - change.header.step_read, change.step),
                factor=change.factor,
                dropped_variables=change.dropped_variables,
            )
            self.apply(push, verdict)
            self.settle(change.header, verdict, now)
        self.take()
        self.publish()

    def _show(self) -> None:
        self.published = self._taken
        if self.model:
            self.model.tables.publish(self.published.snapshot.step)

    def _tell(self, pending: Pending) -> None:
        push = pending.judged
        if push:
            worker = push.before.worker
            self.counters.judge(worker, push.verdict, push.value, push.at)
        pending.is_settled = True

    def _pushes(self) -> list[Judged]:
        """Return those that nobody has been told of, in their order."""
        waiting = (*self._being_kept, *self._waiting)
        return [pending.judged for pending in waiting if pending.judged]

    def _put_back(self, sessions: Sessions) -> None:
        """Make sessions what they were at the step that pulls see."""
        for push in reversed(self._pushes()):
            sessions.put_back(push.session, push.before)
        sessions.begin_at(self.published.snapshot.step)

    def _note(self, change: Change) -> None:
        if self._keeps_changes:
            self._changes.append(change)
