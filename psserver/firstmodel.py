"""The setting of the first variables: all of them, once, by one of who offer some."""

import logging
import threading
from collections.abc import Callable

from psserver import gradients as checks
from psserver.commits import Commits
from psserver.core import Core
from psserver.keeper import Keeper
from psserver.limitnews import tell_idle
from psserver.lineage import Lineage
from psserver.model import Model
from psserver.rules import State
from pswire.body import Arrays, Body
from pswire.errors import (
    InvalidRequestError,
    ServerUnavailableError,
    TooLargeError,
    VariableMismatchError,
)
from pswire.layout import Layout

Receive = Callable[[Layout], Arrays]
"""Reads a body of the layout; called only when the body is wanted."""

_log = logging.getLogger("psserver")


class FirstModel:
    """Sets a store's variables, unless somebody has."""

    def __init__(
        self,
        core: Core,
        commits: Commits,
        lock: threading.Lock,
        lineage: Lineage,
        keeper: Keeper,
        max_nbytes: int,
    ) -> None:
        """Share a store's parts.

        Args:
            core: Gets the variables.
            commits: Lets who joins meanwhile wait.
            lock: Guards both.
            lineage: Makes a model of variables.
            keeper: Makes it last.
            max_nbytes: The most that the variables may take, in bytes.
        """
        self._core = core
        self._commits = commits
        self._lock = lock
        self._lineage = lineage
        self._keeper = keeper
        self._max_nbytes = max_nbytes
        # Held while the rule is compiled, which takes seconds; never taken while
        # `_lock` is held.
        self._setting = threading.Lock()

    def offer(self, session: str, layout: Layout, receive: Receive) -> bool:
        """Set the variables if nobody has; see `Store.initialize`."""
        if self._core.model is None:
            self._require_fit(layout)
            variables = Body.gather(layout, receive(layout))
            checks.require_no_nan(variables)
            with self._lock:
                self._commits.require_room()
            with self._setting:
                if self._core.model is None:
                    self._set(session, variables)
        return self._core.require_model().initializer == session

    def _require_fit(self, layout: Layout) -> None:
        if not layout.trainable.nbytes:
            raise VariableMismatchError(
                "variables: expected at least one of a floating-point type, got none"
            )
        if layout.nbytes > self._max_nbytes:
            raise TooLargeError(
                f"variables: expected at most {self._max_nbytes} bytes, "
                f"which is this machine's memory, got {layout.nbytes}"
            )

    def _set(self, session: str, variables: Body) -> None:
        with self._commits.alone():
            try:
                model, state = self._keep(session, variables)
            except Exception:
                with self._lock:
                    self._core.give_up()
                raise
            with self._lock:
                self._core.start(model, state)
        known = self._core.sessions.find(session)  # It may be forgotten by now.
        _log.info(
            "initialized: %d variables, %d bytes",
            *(len(variables), variables.layout.nbytes),
            extra={
                "event": "initialized",
                "worker": known.worker if known else None,
                "session": session,
                "variables": len(variables),
                "nbytes": variables.layout.nbytes,
            },
        )
        tell_idle(self._core.terms.policy, variables.layout)

    def _keep(self, session: str, variables: Body) -> tuple[Model, State]:
        model, state, first = self._lineage.first(variables, session)
        try:
            self._keeper.begin(first)
        except OSError as error:
            raise ServerUnavailableError(str(error)) from error
        except ValueError as error:
            raise InvalidRequestError(f"rule: {error}") from error
        return model, state
