"""One start of a server, without a thread: a real store, and a real archive."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optax

from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from psserver.durability.archive import Archive
from psserver.durability.disk import Disk
from psserver.durability.kept import Kept
from psserver.keeper import KeepNothing
from psserver.store import Store
from pswire.errors import ParameterServerError, ServerUnavailableError
from pswire.status import Limits
from pswire.values import Verdict
from simulation.requests import Initialize, Join, Pull, Push, Request, layout, variables
from simulation.rule import NumpyRule
from simulation.turns import Turns, WaitingError

FOLDER = Path("/data")


@contextmanager
def simulated() -> Iterator[None]:
    """Take threads and JAX out of stores: nothing of them is left to chance."""
    with (
        patch.multiple("psserver.store", Commits=Turns, CompiledRule=NumpyRule),
        patch.object(logging.getLogger("psserver"), "disabled", True),
    ):
        yield


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is started.

    Attributes:
        mode: Its durability.
        limit: The largest staleness applied, in steps; None: any.
        keep: How many checkpoints stay.
    """

    mode: str
    limit: int | None
    keep: int


class _Keeper(KeepNothing):
    """Keeps in an archive what a saver would keep there."""

    def __init__(self, archive: Archive) -> None:
        self.keeps_changes = archive.keeps_changes
        self._archive = archive

    def begin(self, first: Checkpoint) -> None:
        try:
            self._archive.begin(first)
        except OSError:
            if self.keeps_changes:
                raise

    def keep(self, changes: Sequence[Change]) -> None:
        self._archive.keep(changes)


class Server:
    """Answers requests; those that wait are answered when a turn ends.

    Attributes:
        waiting: The pushes that wait, each with what it was asked by.
    """

    def __init__(
        self, disk: Disk, settings: Settings, *, generation: str, width: int, now: float
    ) -> None:
        """Start, from what is in the data directory if the mode has one.

        Raises:
            OSError: See `Archive.recover`.
        """
        self.settings = settings
        self.waiting: list[tuple[Any, WaitingError]] = []
        self.archive: Archive | None = None
        if settings.mode != "none":
            self.archive = Archive(disk, FOLDER, mode=settings.mode, keep=settings.keep)
        self._width = width
        self._newest: Kept | None = None
        self._store = Store(
            optax.identity(),
            rule_name="simulated",
            limits=Limits(settings.limit, None, 2**20, 2**20),
            generation=generation,
            incarnation=generation,
            now=now,
            keeper=_Keeper(self.archive) if self.archive else None,
        )
        commits = self._store._commits
        assert isinstance(commits, Turns)
        self._turns = commits
        if self.archive:
            self.archive.recover(self._store.lineage, "simulated", now)
            self.archive.open()

    @property
    def generation(self) -> str:
        return self._store.generation

    @property
    def step(self) -> int:
        """The step that is seen."""
        return self._store.lineage.step

    @property
    def refusal(self) -> OSError | None:
        """Why no push is applied; None: there is no trouble."""
        return self._turns.refusal

    def answer(self, request: Request, sender: Any, now: float) -> Any:
        """Answer a request, or note who is to be answered later.

        Raises:
            ParameterServerError: It is refused.
            WaitingError: It is a push that waits.
        """
        match request:
            case Join(worker, session, rejoin):
                return self._store.join(worker, session, now, rejoin)
            case Initialize(session):
                first = variables(self._width)
                wanted = layout(self._width)
                return self._store.initialize(session, wanted, lambda _: first, now)
            case Pull(session):
                return self._store.pull(session, now)[1]
            case Push(header):
                gradients = request.gradients(self._width)
                try:
                    return self._store.push(header, lambda _: gradients, now)
                except WaitingError as waiting:
                    self.waiting.append((sender, waiting))
                    raise

    def advance(self) -> list[tuple[Any, Verdict | ParameterServerError]] | None:
        """Let the turn go on; if it ends, return whom it answers what."""
        if not self._turns.advance():
            return None
        settled = [each for each in self.waiting if each[1].pending.is_settled]
        self.waiting = [each for each in self.waiting if each not in settled]
        return [(sender, self._told(waiting)) for sender, waiting in settled]

    def checkpoint(self) -> Checkpoint | None:
        return self._store.lineage.checkpoint()

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint.

        Raises:
            OSError: It cannot be kept.
        """
        assert self.archive
        self.archive.save(checkpoint)
        self._newest = Kept.of(checkpoint, 0.0)

    def probe(self) -> None:
        """Apply pushes again if the disk has room.

        Raises:
            OSError: It has none.
        """
        assert self.archive
        self.archive.probe()
        self._store.lineage.resume()

    def finish(self) -> None:
        """Keep the last checkpoint; nothing may wait.

        Raises:
            OSError: It cannot be kept.
        """
        last = self.checkpoint()
        if self.archive and last:
            if self._newest is None or not self._newest.is_like(last):
                self.save(last)
            self.archive.seal(last.generation, last.step)

    def _told(self, waiting: WaitingError) -> Verdict | ParameterServerError:
        if not waiting.pending.taken_back:
            return waiting.push.verdict
        error = ServerUnavailableError(waiting.pending.taken_back)
        self._store.reject(waiting.push.session, error)
        return error
