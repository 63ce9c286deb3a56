"""One start of a server: a real store, and all that keeps it, but for its threads."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import optax

from psserver import core
from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from psserver.durability.archive import Archive
from psserver.durability.disk import Disk
from psserver.durability.every import Every
from psserver.durability.logwatch import LogWatch
from psserver.durability.place import require_own
from psserver.durability.saver import Saver
from psserver.policies.terms import Terms, read_terms
from psserver.store import Store
from pswire.status import Limits
from simulation.clock import CLOCK
from simulation.requests import Initialize, Join, Pull, Push, Request, layout, variables
from simulation.rule import NumpyRule
from simulation.tasks import Task, Tasks, wait_until
from simulation.threads import THREADING

FOLDER = Path("/data")


class _Core(core.Core):
    """Counts how often it takes something back."""

    times_back = 0

    def roll_back(self, taken: Sequence[Change], why: str) -> None:
        super().roll_back(taken, why)
        self.times_back += 1


@contextmanager
def simulated() -> Iterator[None]:
    """Take threads, time and JAX out of servers: nothing is left to chance."""
    with ExitStack() as stack:
        for name in (
            "store",
            "firstmodel",
            "commits",
            *_keeping("saver", "logwatch", "log"),
        ):
            stack.enter_context(patch(f"psserver.{name}.threading", THREADING))
        for name in _keeping("saver", "logwatch"):
            stack.enter_context(patch(f"psserver.{name}.time", CLOCK))
        stack.enter_context(
            patch.multiple("psserver.store", Core=_Core, CompiledRule=NumpyRule)
        )
        logger = logging.getLogger("psserver")
        stack.enter_context(patch.object(logger, "disabled", True))
        yield


def _keeping(*names: str) -> list[str]:
    return [f"durability.{name}" for name in names]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is started.

    Attributes:
        mode: Its durability.
        limit: The largest staleness applied, in steps; None: any.
        keep: How many checkpoints stay.
        policy: What becomes of the pushes that the limit admits.
    """

    mode: str
    limit: int | None
    keep: int
    policy: str = "drop"

    @property
    def terms(self) -> Terms:
        """By what it judges pushes."""
        return read_terms(self.policy, self.limit)


class Server:
    """Does what it is asked, one thing after another, or a bit of each in turn.

    Attributes:
        tasks: What it does.
        archive: What keeps its model; None: nothing does.
        failure: Why it has to end; None: it has not.
    """

    def __init__(
        self,
        disk: Disk,
        settings: Settings,
        *,
        generation: str,
        width: int,
        random: Random,
    ) -> None:
        """Start, from what is in the data directory if the mode has one.

        Raises:
            OSError: See `Saver.recover` and `Saver.start`.
        """
        self.settings = settings
        self.tasks = Tasks(random)
        self.archive: Archive | None = None
        self.failure: Exception | None = None
        self._width = width
        self._saver = self._keep_in(disk) if settings.mode != "none" else None
        self._store = Store(
            optax.identity(),
            rule_name="simulated",
            limits=Limits(settings.limit, None, 2**20, 2**20, settings.policy),
            generation=generation,
            incarnation=generation,
            now=CLOCK.now,
            keeper=self._saver,
        )
        if self._saver:
            self._saver.recover(self._store.lineage, "simulated")
            self._saver.start()

    @property
    def generation(self) -> str:
        return self._store.generation

    @property
    def step(self) -> int:
        """The step that is seen."""
        return self._store.lineage.step

    @property
    def initializer(self) -> str | None:
        """Who has brought the variables; None: there are none."""
        model = self._store._core.model
        return model.initializer if model else None

    @property
    def refuses(self) -> bool:
        """Whether no push is applied."""
        return self._store.lineage.refuses_pushes

    @property
    def times_back(self) -> int:
        """How often pushes that waited were taken back."""
        assert isinstance(self._store._core, _Core)
        return self._store._core.times_back

    @property
    def busy(self) -> Collection[str]:
        """The sessions whose pushes wait."""
        return {push.session for push in self._store._core._pushes()}

    @property
    def recent(self) -> Sequence[int]:
        """The staleness of the last judged pushes, in steps."""
        return tuple(self._store._core.counters.recent_staleness)

    def set(self, settings: Mapping[str, str]) -> Terms:
        """Change by what it judges pushes, and return what it says that it is."""
        limits = self._store.set(settings)
        return read_terms(limits.staleness_policy, limits.max_staleness)

    def checkpoint(self) -> Checkpoint | None:
        return self._store.lineage.checkpoint()

    def ask(self, request: Request) -> Task:
        """Begin to answer a request."""
        keeps = self.settings.mode == "log" and isinstance(request, Join | Push)
        may_wait = keeps or isinstance(request, Initialize)
        begin = self.tasks.start if may_wait else self.tasks.do
        return begin(partial(self._answer, request))

    def save(self) -> Task:
        """Begin to save a checkpoint."""
        assert self._saver
        return self.tasks.start(self._saver.save, at_locks=True)

    def look(self) -> Task:
        """Begin to look after the log's disk."""
        return self.tasks.start(self._watch.look, at_locks=True)

    def stop(self, after: Collection[Task]) -> Task:
        """Begin to stop.

        Args:
            after: What its own threads do still; they end first.
        """

        def stop() -> None:
            wait_until(lambda: all(task.is_over for task in after))
            if self._saver:
                self._saver.stop()

        return self.tasks.start(stop, at_locks=True)

    def _keep_in(self, disk: Disk) -> Saver:
        settings = self.settings
        self.archive = Archive(disk, FOLDER, mode=settings.mode, keep=settings.keep)
        require_own(disk, FOLDER)
        self._watch = LogWatch(self.archive, self._fail)
        return Saver(self.archive, Every(), self._watch, lambda is_taking: None)

    def _fail(self, error: Exception) -> None:
        self.failure = error

    def _answer(self, request: Request) -> Any:
        store, now = self._store, CLOCK.now
        match request:
            case Join(worker, session, rejoin):
                return store.join(worker, session, now, rejoin)
            case Initialize(session):
                first = variables(self._width, session)
                wanted = layout(self._width)
                return store.initialize(session, wanted, lambda _: first, now)
            case Pull(session):
                return store.pull(session, now)[1]
            case Push(header):
                gradients = request.gradients(self._width)
                return store.push(header, lambda _: gradients, now)
