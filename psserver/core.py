"""What the server knows, and how a push changes it: no lock, no clock, no file."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from psserver.changes import Applied, Change, Joined
from psserver.checkpoint import Checkpoint
from psserver.compensation import Compensation, Parts
from psserver.counters import Counters
from psserver.decision import Present, Session, decide
from psserver.gradients import require_finite
from psserver.model import Model, Push
from psserver.pacing import Pacing, Turn
from psserver.policies.compensation import DelayCompensation
from psserver.policies.mean import mean
from psserver.policies.terms import Terms
from psserver.rules import State
from psserver.sessions import Entry, Sessions
from pswire.body import Body
from pswire.encoding import PLAIN
from pswire.errors import NotInitializedError, VariableMismatchError
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
        self._pacing = Pacing()
        self.compensation: Compensation | None = None
        """None: by these terms no gradient is changed, or there are no variables."""
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

    def judge_by(self, terms: Terms) -> None:
        """Judge pushes by other terms from now on."""
        if not (terms.policy.paces and self.terms.policy.paces):
            self._pacing = Pacing()  # Nobody notes what is pulled meanwhile.
        self.terms = terms
        self._begin_compensation()

    def turn(self, session: str, now: float) -> Turn:
        """Grant a session's pull of the published step, or say which worker it awaits.

        What was applied but is not kept yet may be undone, and then is pushed again. So
        here it is neither a step nor judged, and its pull is in flight still.
        """
        is_here = partial(self.expects, now=now)
        step = self.published.snapshot.step
        turn = self._pacing.ask(session, step, self.terms, now, is_here)
        self.counters.waited(self.sessions.get(session).worker, turn.waited_s)
        if not turn.waits_for:
            return turn
        return replace(turn, waits_for=self.sessions.get(turn.waits_for).worker)

    def leave(self, session: str) -> None:
        """Have no pull wait for a session any more."""
        self._pacing.leave(session)

    def waiting(self, now: float) -> Set[str]:
        """Return the workers that wait for their turn to pull."""
        found = map(self.sessions.find, self._pacing.waiting(now))
        return {known.worker for known in found if known and not known.superseded}

    def start(self, model: Model, state: State, step: int = 0) -> None:
        """Have variables from now on."""
        self._is_starting = False
        snapshot = Snapshot(model.body(state), step, self.generation)
        self.published = self._taken = self._newest = Cut(snapshot, state)
        self.model = model
        self._begin_compensation()

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

    def decide(
        self, header: PushHeader, amiss: VariableMismatchError | None = None
    ) -> Verdict:
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
            oldest=self.compensation.oldest if self.compensation else 0,
        )
        return decide(header, session, present, self.terms, amiss)

    def apply(self, push: Push, verdict: Verdict) -> None:
        """Make the next step, wholly or not at all.

        Args:
            push: What is to be applied.
            verdict: From `decide`, just now.

        Raises:
            ParameterServerError: The rule cannot; nothing has changed.
        """
        squares = None
        if self.compensation:
            now = self._newest.state.variables
            push, squares = self.compensation.compensate(push, now)
        self._step(push, verdict, squares=squares)

    def apply_mean(self, pushes: Sequence[Push], verdict: Verdict) -> None:
        """Make the next step of the mean of pushes, wholly or not at all.

        Args:
            pushes: Of all variables, in the order in which they have come.
            verdict: What each of them gets.

        Raises:
            ParameterServerError: The rule cannot; nothing has changed.
        """
        model = self.require_model()
        parts = zip(*(model.rule.parts(push.gradients) for push in pushes), strict=True)
        gradients = model.rule.gradients(map(mean, parts))
        require_finite(gradients)
        header, *others = (push.header for push in pushes)
        nbytes = gradients.layout.nbytes
        header = replace(header, layout=None, encoding=PLAIN, nbytes=nbytes)
        self._step(Push(header, gradients, gradients, {}), verdict, others)

    def _step(
        self,
        push: Push,
        verdict: Verdict,
        others: Sequence[PushHeader] = (),
        squares: Parts | None = None,
    ) -> None:
        model, header, before = self.require_model(), push.header, self._newest.state
        value, factor = _value((header, *others)), verdict.factor
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
        self._note(
            Applied(
                *(verdict.step, header, push.received, verdict.factor),
                *(verdict.dropped_variables, tuple(others)),
            )
        )
        if self.compensation:
            self.compensation.stepped(verdict.step, state.variables, squares)
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
        if self.compensation:
            snapshot, state = self.published
            self.compensation.roll_back(snapshot.step, state.variables)
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
            self._step(push, verdict, change.others)
            for header in (change.header, *change.others):
                self.settle(header, verdict, now)
        self.take()
        self.publish()

    def _begin_compensation(self) -> None:
        policy, limit = self.terms.policy, self.terms.limit
        before, self.compensation = self.compensation, None
        if self.model and isinstance(policy, DelayCompensation) and limit is not None:
            snapshot, state = self._newest
            kept = before.kept if before else {snapshot.step: state.variables}
            self.compensation = Compensation(policy, limit, self.model, kept)

    def _show(self) -> None:
        self.published = self._taken
        if self.model:
            self.model.tables.publish(self.published.snapshot.step)

    def _tell(self, pending: Pending) -> None:
        push = pending.judged
        if push:
            worker = push.before.worker
            self.counters.judge(worker, push.verdict, push.value, push.at)
            if not push.verdict.duplicate:
                self._pacing.judged(push.session, push.at)
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


def _value(headers: Sequence[PushHeader]) -> float | None:
    """Return the mean loss of the pushes that make a step; None: one told none."""
    values = [header.value for header in headers if header.value is not None]
    if len(values) < len(headers):
        return None
    return values[0] if len(values) == 1 else sum(values) / len(values)
