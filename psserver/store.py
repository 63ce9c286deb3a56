"""The variables, their slots and the step, changed by one push at a time."""

import logging
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from psserver import gradients as checks
from psserver.budget import Budget
from psserver.checkpoint import named
from psserver.commits import Commits, StalledError
from psserver.core import Core, Pending
from psserver.decision import mismatch, superseded
from psserver.firstmodel import FirstModel, Receive
from psserver.gathering import Gathering
from psserver.keeper import Keeper, KeepNothing
from psserver.limitnews import tell_idle, tell_limits
from psserver.lineage import Lineage
from psserver.model import Push
from psserver.pacing import Turn
from psserver.policies.terms import Terms, read_terms
from psserver.rules import CompiledRule, require_rule
from psserver.sessions import Entry
from psserver.shards import Lease, Shards
from psserver.timing import Timing
from pswire.body import AnyArrays, Body
from pswire.errors import (
    CallCancelledError,
    InternalError,
    InvalidRequestError,
    ParameterServerError,
    ServerUnavailableError,
)
from pswire.layout import Layout
from pswire.rows import Ids
from pswire.status import Limits, Status
from pswire.values import PushHeader, Snapshot, Verdict

_log = logging.getLogger("psserver")


@dataclass(frozen=True, slots=True)
class Joined:
    """What a worker learns when it joins."""

    generation: str
    incarnation: str
    step: int
    layout: Layout | None
    limits: Limits


class Store:
    """Answers for one model, to many threads; knows no socket, no file and no clock.

    Every `now` is in seconds, of one clock that never goes back.
    """

    def __init__(
        self,
        rule: object,
        *,
        rule_name: str,
        limits: Limits,
        name: str = "asyncps",
        generation: str,
        incarnation: str,
        now: float,
        on_judged: Callable[[Timing], None] | None = None,
        keeper: Keeper | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Start without variables.

        Args:
            rule: An optax gradient transformation.
            rule_name: What `status` calls it.
            limits: What is accepted.
            name: The server's.
            generation: The history that begins.
            incarnation: This start of the server.
            now: Seconds.
            on_judged: Is told where the time of every push went that got a verdict of
                its own; None: nobody asks.
            keeper: Makes the model last; None: it ends with the server.
            budget: Has room for the bodies that are on their way; None: for any.

        Raises:
            ValueError: The rule is no optax gradient transformation, the limit no
                whole number, or the policy none.
        """
        self.limits = limits  # Replaced as a whole.
        self.incarnation = incarnation
        self._name = name
        self._rule_name = rule_name
        self._started = now
        self._on_judged = on_judged
        self._keeper = keeper or KeepNothing()
        self._budget = budget or Budget(2**63)

        # Guards the core. A pull takes no lock, unless it wants rows or a policy paces:
        # it finds its session, then notes when it was seen, reads `model`, which is set
        # once, then `published`, which is set before it and only ever replaced.
        self._lock = threading.Lock()
        # Held while the rule is compiled for the first push of a kind, which takes
        # seconds; never taken while `_lock` is held.
        self._compiling = threading.Lock()
        self._core = Core(
            read_terms(limits.staleness_policy, limits.max_staleness),
            generation,
            keeps_changes=self._keeper.keeps_changes,
        )
        self._commits = Commits(
            *(self._core, self._lock, self._keeper.keep, self._keeper.taking)
        )
        self._gathering = Gathering(self._core, self._lock)
        self._shards = Shards(first=zlib.crc32(incarnation.encode()))
        self.lineage = Lineage(
            *(self._core, self._commits, self._lock),
            partial(CompiledRule, require_rule(rule)),
            name=name,
            rule_name=rule_name,
            limits=lambda: self.limits,
            since=now,
        )
        """The side of it that outlasts the server."""
        self._first = FirstModel(
            *(self._core, self._commits, self._lock, self.lineage, self._keeper),
            max_nbytes=limits.max_model_nbytes,
        )

    @property
    def generation(self) -> str:
        """The history that steps count in."""
        return self._core.generation

    @property
    def pushes_wait(self) -> bool:
        """Whether an applied push waits until it is kept, or for others."""
        return self._keeper.keeps_changes or self._gathers

    @property
    def _gathers(self) -> bool:
        return self._core.terms.policy.pushes_a_step > 1

    def stop_waiting(self) -> None:
        """Let no push wait for others any more: the server stops."""
        # Without the lock, which a rule may hold for long.
        self._gathering.close("the server is stopping")

    def join(
        self, worker: str, session: str, now: float, rejoin: bool = False
    ) -> Joined:
        """Introduce a session, which takes its worker's name over from any other.

        Workers that have not called for an hour are forgotten.

        Args:
            worker: The worker's name.
            session: Its process's.
            now: Seconds.
            rejoin: Whether the session has joined before.

        Raises:
            InvalidRequestError: A name is empty or too long, or the session belongs
                to another worker.
            SessionSupersededError: A newer session has taken the name over.
            ServerUnavailableError: The joining cannot be kept.
        """
        with self._lock:
            if not self._core.sessions.find(session):
                self._commits.require_room()
            entry, pending = self._core.join(worker, session, now, rejoin=rejoin)
            forgotten = self._core.forget_silent(now)
            try:
                self._commits.wait(pending)
            except StalledError as error:
                raise ServerUnavailableError(str(error)) from error
            model = self._core.model
            joined = Joined(
                generation=self.generation,
                incarnation=self.incarnation,
                step=self.lineage.step,
                layout=model.layout if model else None,
                limits=self.limits,
            )
        _tell(entry, worker, session)
        for silent in forgotten:
            _log.info(
                "worker %s is forgotten: it has not called for an hour",
                silent,
                extra={"event": "forgotten", "worker": silent},
            )
        return joined

    def initialize(
        self,
        session: str,
        layout: Layout,
        receive: Receive,
        now: float,
        clock: Callable[[], float] | None = None,
    ) -> bool:
        """Set the variables if nobody has: all of them or, on any error, none.

        Args:
            session: Whose they are.
            layout: Theirs.
            receive: Reads them.
            now: Seconds, when the call came.
            clock: Tells the seconds from then on; None: it is `now` all the time.

        Returns:
            True: this session set them. False: another one had before.

        Raises:
            SessionUnknownError: The session has not joined.
            VariableMismatchError: The body is not the layout's, or nothing in it is
                trainable.
            NonFiniteError: It holds NaN.
            TooLargeError: The variables are larger than the server takes.
            InvalidRequestError: The rule cannot run on these variables.
            ServerUnavailableError: They cannot be kept.
            OverloadedError: There is no room for them yet.
        """
        self._see(session, now)
        if self._core.model is None:
            with self._budget.room(session, layout.nbytes, clock or (lambda: now)):
                return self._first.offer(session, layout, receive)
        return self._first.offer(session, layout, receive)

    def pull(
        self,
        session: str,
        now: float,
        rows: Mapping[str, Ids] = MappingProxyType({}),
    ) -> tuple[Layout, Snapshot[Body]]:
        """Return the newest snapshot; it never waits for a push, but to have rows.

        Args:
            session: Who pulls; empty: somebody who never joined.
            now: Seconds.
            rows: The ids of those that are wanted, by table.

        Raises:
            SessionUnknownError: The session has not joined.
            NotInitializedError: There are no variables yet.
            VariableMismatchError: There are no such rows, or too many are wanted.
        """
        if session:
            self._see(session, now)
        model = self._core.require_model()
        if not rows:
            return model.layout, self._core.published.snapshot
        model.tables.require(rows)
        with self._lock:
            return model.layout, self._cut(rows)

    def pull_in_turn(
        self,
        session: str,
        now: float,
        rows: Mapping[str, Ids] = MappingProxyType({}),
    ) -> tuple[Layout, Snapshot[Body], Turn]:
        """Return the newest snapshot, and whether it is a session's turn to have it.

        Args:
            session: See `pull`; whoever never joined does not wait.
            now: Seconds.
            rows: See `pull`; whoever has to wait gets none.

        Raises:
            ParameterServerError: As `pull` does.
        """
        if not (session and self._core.terms.policy.paces):
            return *self.pull(session, now, rows), Turn()
        self._see(session, now)
        model = self._core.require_model()
        model.tables.require(rows)
        with self._lock:
            turn = self._core.turn(session, now)
            snapshot = self._cut({} if turn.wait_s else rows)
        return model.layout, snapshot, turn

    def inspect(self) -> Snapshot[AnyArrays]:
        """Return all arrays of the newest step, named as in checkpoints.

        Those of tables can be read once, in pieces.

        Raises:
            NotInitializedError: There are no variables yet.
        """
        model = self._core.require_model()
        with self._lock:
            snapshot, state = self._core.published
            columns = model.tables.cut(self._lock)
        whole = named(snapshot.params, model.rule.slots(state).arrays)
        return Snapshot({**whole, **columns}, snapshot.step, snapshot.generation)

    def push(
        self,
        header: PushHeader,
        receive: Receive,
        now: float,
        is_wanted: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] | None = None,
    ) -> Verdict:
        """Decide a push and, if it is to be applied, apply it.

        The header is judged before the body is received, and again, with the body in
        hand, in the critical section that applies it: the step may have moved on.

        Args:
            header: All of the push but its gradients.
            receive: Reads the gradients.
            now: Seconds, when the call came.
            is_wanted: Whether the caller still waits; once it does not, nothing is
                applied.
            clock: Tells the seconds from then on; None: it is `now` all the time.

        Raises:
            ParameterServerError: The push is invalid, in one of the ways that
                `decide`, the checks of gradients and the rule name. Variables, slots
                and step keep every bit.
        """
        timing = Timing(header, clock or (lambda: now), self._started)
        try:
            self._see(header.session, now)
            verdict = self._judge(header, receive, timing, is_wanted)
        except StalledError as error:  # It is counted once it has an answer.
            raise ServerUnavailableError(str(error)) from error
        except ParameterServerError as error:
            self.reject(header.session, error)
            raise
        except Exception as error:
            self.reject(header.session, InternalError(str(error)))
            raise
        if self._on_judged and not verdict.duplicate:
            self._on_judged(timing)
        return verdict

    def reject(self, session: str, error: ParameterServerError) -> None:
        """Count a push that never got a verdict."""
        with self._lock:
            known = self._core.sessions.find(session)
            self._core.counters.reject(known.worker if known else None, error)

    def lease_shard(
        self,
        session: str,
        count: int,
        held: Lease | None,
        now: float,
        *,
        finished: bool = False,
    ) -> Lease:
        """Lease a part of the data; see `Shards.lease`.

        Raises:
            SessionUnknownError: The session has not joined.
            SessionSupersededError: A newer one has taken its worker's name over.
            InvalidRequestError: There cannot be so many parts, or not that one.
        """
        self._see(session, now)
        with self._lock:
            is_here = partial(self._core.expects, now=now)
            return self._shards.lease(session, count, held, is_here, finished=finished)

    def leave(self, session: str, now: float) -> None:
        """Have no pull wait for a session any more: it will push nothing.

        Raises:
            SessionUnknownError: It has not joined.
            SessionSupersededError: A newer one has taken its worker's name over.
        """
        self._see(session, now)
        with self._lock:
            self._core.leave(session)

    def set(self, settings: Mapping[str, str], peer: str | None = None) -> Limits:
        """Change some of `SETTINGS`: all that are named or, on any error, none.

        Args:
            settings: By their names, as text.
            peer: Who asks, for the log; None: nobody from outside.

        Returns:
            What is accepted from now on.

        Raises:
            InvalidRequestError: A setting is unknown, or not what it has to be.
        """
        with self._lock:
            before = self.limits
            try:
                terms = self._core.terms.changed(settings)
                model = self._core.model
                if model:
                    terms.require_tables([spec.name for spec in model.layout.tables])
            except ValueError as error:
                raise InvalidRequestError(str(error)) from error
            self._core.judge_by(terms)
            self._gathering.refuse("push: the limit or the policy has just changed")
            self.limits = now = replace(
                before,
                max_staleness=terms.limit,
                staleness_policy=terms.policy.spec,
            )
        tell_limits(now, before, peer)
        if self._core.model and "staleness_policy" in settings:
            tell_idle(terms.policy, self._core.model.layout)
        return now

    def status(self, now: float) -> Status:
        """Return all counters as of one moment."""
        with self._lock:  # No longer than a copy takes: pushes wait.
            counters = self._core.counters.copy()
            step, limits, terms = self.lineage.step, self.limits, self._core.terms
            waiting = self._core.waiting(now)
            parts = {
                known.worker: part
                for session, part in self._shards.held().items()
                if (known := self._core.sessions.find(session)) and not known.superseded
            }
        uptime_s = now - self._started
        recent = counters.recent.rates(now, uptime_s)
        return Status(
            generation=self.generation,
            incarnation=self.incarnation,
            step=step,
            limits=limits,
            rule=self._rule_name,
            initialized=self._core.model is not None,
            uptime_s=uptime_s,
            pushes_per_s=recent.pushes_per_s,
            counts=counters.total.freeze(),
            staleness=dict(sorted(counters.staleness.items())),
            workers=counters.workers(now, uptime_s, parts, waiting),
            unjoined=counters.unjoined.freeze(),
            steps_per_s=recent.steps_per_s,
            recent_drop_rate=recent.drop_rate,
            loss=recent.loss,
            staleness_sum=counters.staleness_sum,
            durability=self._keeper.status(),
            policy_limit=terms.policy.limit(counters.recent_staleness),
            withheld=counters.withheld,
            dropped_variables=counters.dropped_variables,
            waited_s=counters.waited_s,
            name=self._name,
        )

    def _cut(self, rows: Mapping[str, Ids]) -> Snapshot[Body]:
        snapshot = self._core.published.snapshot
        if not rows:
            return snapshot
        return replace(snapshot, rows=self._core.require_model().tables.read(rows))

    def _see(self, session: str, now: float) -> None:
        known = self._core.sessions.get(session)
        if known.superseded:
            raise superseded(known.worker, session)
        self._core.counters.see(known.worker, now)

    def _require_sound(self, push: Push) -> None:
        parts = self._core.require_model().brought(push)
        if not all(map(checks.is_finite, parts)):
            rows = {name: each.values for name, each in push.rows.items()}
            checks.require_finite({**push.gradients, **rows})
        if self.limits.max_grad_norm is not None:
            checks.require_norm(parts, self.limits.max_grad_norm)

    def _judge(
        self,
        header: PushHeader,
        receive: Receive,
        timing: Timing,
        is_wanted: Callable[[], bool],
    ) -> Verdict:
        core = self._core
        model = core.require_model()
        amiss = mismatch(header, model.layout.trainable)
        timing.ask()
        with self._lock:
            timing.enter()
            verdict = core.decide(header, amiss)
            is_told = verdict.duplicate or not verdict.applied
            if not (is_told and core.is_kept):
                self._commits.require_room()
            if is_told:
                return self._settle(header, verdict, timing)
            terms = core.terms
        nbytes, clock = header.nbytes, lambda: timing.judged_at
        with self._budget.room(header.session, nbytes, clock):
            return self._receive(header, receive, timing, is_wanted, terms)

    def _receive(
        self,
        header: PushHeader,
        receive: Receive,
        timing: Timing,
        is_wanted: Callable[[], bool],
        terms: Terms,
    ) -> Verdict:
        core = self._core
        model = core.require_model()
        layout = model.wire_layout(header)
        received = Body.gather(layout, receive(layout))
        push = model.push(header, received)
        self._require_sound(push)
        while True:
            timing.ask()
            with self._lock:
                timing.enter()
                verdict = core.decide(header)
                if verdict.duplicate or not verdict.applied:
                    return self._settle(header, verdict, timing)
                without = frozenset(verdict.left_out)
                weighed = verdict.factor != 1.0
                if push.without == without and self._is_prepared(push, weighed=weighed):
                    self._commits.require_room()
                    if not is_wanted():
                        raise CallCancelledError("push: the caller went away")
                    if self._gathers:
                        return self._gather(push, verdict, timing, is_wanted, terms)
                    timing.apply(partial(core.apply, push, verdict))
                    return self._settle(header, verdict, timing)
            # It takes long, so others go on meanwhile; then it may be judged otherwise.
            push = model.push(header, received, without)
            self._prepare(push, weighed=weighed)

    def _is_prepared(self, push: Push, *, weighed: bool) -> bool:
        model, compensation = self._core.require_model(), self._core.compensation
        return model.is_prepared(push, weighed=weighed) and (
            compensation is None
            or compensation.is_prepared(some=model.present(push.header) is not None)
        )

    def _prepare(self, push: Push, *, weighed: bool) -> None:
        core, model = self._core, self._core.require_model()
        with self._compiling:
            state, compensation = core.published.state, core.compensation
            model.prepare(state, push, weighed=weighed)
            if compensation:
                some = model.present(push.header) is not None
                compensation.prepare(state, some=some)

    def _gather(
        self,
        push: Push,
        verdict: Verdict,
        timing: Timing,
        is_wanted: Callable[[], bool],
        terms: Terms,
    ) -> Verdict:
        core = self._core
        # Else its body may not outlast a wait: see `FrameCalls`.
        if core.terms is not terms:
            raise ServerUnavailableError("push: the policy has just changed")
        # Without a loss that the rule needs, all others would fail with it.
        core.require_model().rule.loss(push.header.value)
        pending = self._gathering.wait(push, verdict, timing, is_wanted)
        return self._kept(pending, verdict)

    def _settle(self, header: PushHeader, verdict: Verdict, timing: Timing) -> Verdict:
        pending = self._core.settle(header, verdict, timing.judged_at)
        return self._kept(pending, verdict)

    def _kept(self, pending: Pending, verdict: Verdict) -> Verdict:
        self._commits.wait(pending)
        if verdict.applied and not verdict.duplicate:
            self._keeper.stepped(self.lineage.step)
        return verdict


def _tell(entry: Entry, worker: str, session: str) -> None:
    who = {"worker": worker, "session": session}
    if entry is Entry.FIRST:
        _log.info("worker %s has joined", worker, extra={"event": "joined", **who})
    elif entry is Entry.TAKEOVER:
        _log.info(
            "worker %s: session %s takes over",
            *(worker, session),
            extra={"event": "taken_over", **who},
        )
