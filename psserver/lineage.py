"""A model from one server to the next: what is kept of it, and how it goes on."""

import threading
from collections.abc import Callable, Iterable, Mapping

from psserver.changes import Change
from psserver.checkpoint import Checkpoint, Slots
from psserver.commits import Commits
from psserver.core import Core, Cut
from psserver.counters import Counters
from psserver.decision import Session
from psserver.limitnews import tell_idle, tell_limits
from psserver.model import Model, start
from psserver.rules import CompiledRule, State
from pswire.body import Body, InPieces
from pswire.errors import InvalidRequestError
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import Snapshot

Memory = tuple[Mapping[str, Session], Counters]
"""What is remembered of sessions and of pushes."""


class Lineage:
    """The side of a store that whoever keeps its model sees."""

    def __init__(
        self,
        core: Core,
        commits: Commits,
        lock: threading.Lock,
        compiled: Callable[[Layout], CompiledRule],
        *,
        name: str,
        rule_name: str,
        limits: Callable[[], Limits],
        since: float,
    ) -> None:
        """Share a store's parts.

        Args:
            core: Its model and workers.
            commits: Lets its pushes wait.
            lock: Guards both.
            compiled: Makes its rule for variables of a layout.
            name: The server's.
            rule_name: What `status` calls the rule.
            limits: Returns what it accepts now.
            since: When it started, in seconds.
        """
        self._core = core
        self._commits = commits
        self._lock = lock
        self._compiled = compiled
        self._name = name
        self._rule_name = rule_name
        self._limits = limits
        self._since = since

    @property
    def generation(self) -> str:
        """The history that steps count in."""
        return self._core.generation

    @property
    def step(self) -> int:
        """The newest step that anybody sees."""
        return self._core.published.snapshot.step

    @property
    def layout(self) -> Layout:
        """Of the variables.

        Raises:
            NotInitializedError: There are none.
        """
        return self._core.require_model().layout

    @property
    def refuses_pushes(self) -> bool:
        """Whether no push is applied, because one could not be kept."""
        return self._commits.refuses

    def stall(self, why: str) -> None:
        """Apply no push until `resume`, and let nobody wait for what is being kept."""
        self._commits.stall(why)

    def resume(self) -> None:
        """Apply pushes again."""
        self._commits.resume()

    def close(self) -> None:
        """Apply no push any more; what could not be kept has not happened."""
        self._commits.close("the server has stopped")

    def checkpoint(self) -> Checkpoint | None:
        """Return all that another server needs to go on; None: no variables yet."""
        with self._lock:
            model, cut = self._core.model, self._core.published
            memory, limits = self._core.memory(), self._limits()
            columns = model.tables.cut(self._lock) if model else {}
        if model is None:
            return None
        return self._checkpoint(model, cut, columns, memory, limits)

    def first(
        self, variables: Body, initializer: str
    ) -> tuple[Model, State, Checkpoint]:
        """Return a model that nobody has seen yet, and what to keep of it.

        Args:
            variables: All of them.
            initializer: The session that brought them.

        Raises:
            InvalidRequestError: The rule, or the policy, cannot be that of these
                variables.
        """
        try:
            model, state = self._start(variables, initializer)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error
        cut = Cut(Snapshot(model.body(state), 0, self.generation), state)
        with self._lock:
            memory, limits = self._core.prepare(), self._limits()
            columns = model.tables.cut(self._lock)
        return model, state, self._checkpoint(model, cut, columns, memory, limits)

    def restore(self, kept: Checkpoint) -> None:
        """Be what another server had been, but for its limits; nobody may call yet.

        Raises:
            ValueError: The rule is not the one that the slots are of, or the policy
                takes no tables.
        """
        started = self._start(kept.variables, kept.initializer, kept.slots)
        self._core.recover(kept, *started)
        self._core.counters.go_on(self._since)
        tell_limits(self._limits(), kept)
        tell_idle(self._core.terms.policy, kept.variables.layout)

    def replay(self, changes: Iterable[Change], now: float) -> None:
        """Do what another server had done after that; nobody may call yet.

        Raises:
            ParameterServerError: It cannot have been done by this rule.
        """
        for change in changes:
            self._core.replay(change, now)
        self._core.counters.go_on(self._since)

    def begin_history(self, generation: str) -> None:
        """Let nothing be applied that was computed before; nobody may call yet."""
        self._core.rename(generation)

    def _start(
        self, variables: Body, initializer: str, slots: Slots | None = None
    ) -> tuple[Model, State]:
        names = [spec.name for spec in variables.layout.tables]
        self._core.terms.require_tables(names)
        rule = self._compiled(variables.layout)
        return start(rule, variables, initializer, slots)

    def _checkpoint(
        self,
        model: Model,
        cut: Cut,
        columns: Mapping[str, InPieces],
        memory: Memory,
        limits: Limits,
    ) -> Checkpoint:
        sessions, counters = memory
        return Checkpoint(
            generation=cut.snapshot.generation,
            step=cut.snapshot.step,
            variables=cut.snapshot.params,
            slots=model.rule.slots(cut.state),
            initializer=model.initializer,
            rule=self._rule_name,
            max_staleness=limits.max_staleness,
            max_grad_norm=limits.max_grad_norm,
            sessions=sessions,
            counters=counters,
            staleness_policy=limits.staleness_policy,
            server=self._name,
            tables=tuple(spec.name for spec in model.layout.tables),
            columns=columns,
        )
