"""The keeper of a running server's model: saves it in time, and at the end."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from psserver.decision import Session
from psserver.durability.archive import Archive, Recovering
from psserver.durability.errors import DiskFullError, is_final
from psserver.durability.every import Every
from pswire.errors import NotInitializedError
from pswire.status import Durability

_POLL_S = 1.0  # How late a checkpoint may be by the clock, and an answer of the disk.
_PATIENCE_S = 10.0  # After a checkpoint that failed.
_STALL_S = 5.0
_LONG_LOG = 4  # Times a checkpoint.
_LONG_LOG_NBYTES = 2**28
_LONG_LOG_STEPS = 50_000  # They are replayed within a worker's patience.

_log = logging.getLogger("psserver")


class Saved(Recovering, Protocol):
    """Whose model is kept: a store's `Lineage`."""

    @property
    def step(self) -> int: ...
    @property
    def refuses_pushes(self) -> bool: ...
    def refuse(self, why: str) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class Saver:
    """Keeps a store's model in an `Archive`: a `Keeper`.

    Its thread saves checkpoints when they are due, and looks whether a disk that was
    full has room again.
    """

    def __init__(
        self,
        archive: Archive,
        every: Every,
        *,
        on_room: Callable[[bool], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Prepare to keep.

        Args:
            archive: Where.
            every: How often to save a checkpoint.
            on_room: Is told False when the disk cannot take a push any more, and True
                when it can again.
            on_failure: Is told why nothing can be kept any more.
        """
        self.keeps_changes = archive.keeps_changes
        self._archive = archive
        self._every = every
        self._on_room = on_room
        self._on_failure = on_failure
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._keeping_since: float | None = None
        self._is_stalled = False
        self._newest: Kept | None = None
        self._failures = 0
        self._failed_at: float | None = None  # Unless one has been saved since.
        self._saving = threading.Lock()  # Held while a checkpoint is written.
        # A daemon: a program that never stops its server can still end.
        self._thread = threading.Thread(
            target=self._run, name="psserver saver", daemon=True
        )

    def begin(self, first: Checkpoint) -> None:
        try:
            self._archive.begin(first)
        except OSError as error:
            self._count_failure()
            if self.keeps_changes:
                if is_final(error):
                    self._fail(error)
                raise
            _tell_failure(error)
        else:
            self._note(Kept.of(first, time.monotonic()))

    def keep(self, changes: Sequence[Change]) -> None:
        self._keeping_since = time.monotonic()
        try:
            self._archive.keep(changes)
        except DiskFullError as error:
            self._on_room(False)
            _log.error(
                "pushes are refused: %s",
                error,
                extra={"event": "disk_full", "error": str(error)},
            )
            raise
        except Exception as error:  # Of the last record there may be a part.
            self._fail(error)
            raise
        finally:
            self._keeping_since = None

    def stepped(self, step: int) -> None:
        if self._every.steps and self._steps_since(step) >= self._every.steps:
            self._woken.set()

    def status(self) -> Durability:
        newest = self._newest
        return Durability(
            mode=self._archive.mode,
            saved_step=newest.step if newest else None,
            saved_s=time.monotonic() - newest.at if newest else None,
            saves=self._archive.saves,
            failures=self._failures,
            corrupt=self._archive.checkpoints.set_aside,
            log_nbytes=self._archive.log_nbytes,
            log_syncs=self._archive.log_syncs,
        )

    def recover(self, store: Saved, rule: str) -> None:
        """Let a store go on from what is kept, and keep it from now on.

        Args:
            store: Without variables yet.
            rule: What `status` calls its rule.

        Raises:
            OSError: What is there cannot be used.
        """
        self._store = store
        self._archive.recover(store, rule, time.monotonic())
        kept = store.checkpoint()
        if kept:
            age_s = self._archive.checkpoints.newest_age_s()
            self._note(Kept.of(kept, time.monotonic() - age_s))

    def start(self) -> None:
        """Begin to save; from now on there may be calls.

        Raises:
            OSError: The data directory cannot be written.
        """
        self._archive.open()
        self._thread.start()

    def save(self) -> tuple[Path, int]:
        """Save a checkpoint now, and return where and of which step.

        Of many that ask while one is being saved, the next one does for all.

        Raises:
            NotInitializedError: There are no variables yet.
            OSError: It cannot be kept; the ones before still are.
        """
        asked_at = time.monotonic()
        with self._saving:
            newest = self._newest
            if newest and newest.path and newest.cut_at >= asked_at:
                return newest.path, newest.step
            return self._save()

    def halt(self) -> None:
        """End the thread; what it has begun is done first."""
        self._stopped.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def stop(self) -> None:
        """Save the last checkpoint, with all that was acknowledged.

        Raises:
            OSError: It cannot be kept.
        """
        self.halt()
        self._store.close()
        last = self._store.checkpoint()
        if self._failure or last is None:
            return
        if self._newest is None or not self._newest.is_like(last):
            self.save()
        self._archive.seal(last.generation, last.step)

    def _save(self) -> tuple[Path, int]:
        cut_at = time.monotonic()
        self._archive.turn()
        checkpoint = self._store.checkpoint()
        if checkpoint is None:
            raise NotInitializedError(
                "variables: expected to be initialized, got none to save"
            )
        try:
            path = self._archive.save(checkpoint)
        except Exception:
            self._count_failure()
            raise
        self._note(Kept.of(checkpoint, time.monotonic(), cut_at, path))
        _log.info(
            "saved step %d: %s",
            *(checkpoint.step, path),
            extra={
                "event": "checkpoint_saved",
                "step": checkpoint.step,
                "path": str(path),
                "seconds": round(time.monotonic() - cut_at, 3),
            },
        )
        return path, checkpoint.step

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.wait(_POLL_S)
            self._woken.clear()
            self._look_for_stall()
            # Not before the store knows that there is none: else it learns too late.
            may_try = not (self._failure or self._is_stalled)
            if self._store.refuses_pushes and may_try:
                self._look_for_room()
            if self._is_due() and not self._stopped.is_set():
                self._try_save()

    def _is_due(self) -> bool:
        now, newest = time.monotonic(), self._newest
        since = self._steps_since(self._store.step)
        if self._failure or not since:
            return False
        if self._failed_at is not None:
            return now - self._failed_at >= _PATIENCE_S
        return newest is not None and (
            since >= (self._every.steps or math.inf)
            or now - newest.at >= (self._every.seconds or math.inf)
            or self._archive.log_nbytes >= newest.long_log_nbytes
            or (self.keeps_changes and since >= _LONG_LOG_STEPS)
        )

    def _steps_since(self, step: int) -> int:
        newest = self._newest
        return step - newest.step if newest else step

    def _try_save(self) -> None:
        try:
            self.save()
        except Exception as error:  # The next one may do.
            _tell_failure(error)

    def _look_for_stall(self) -> None:
        """Refuse pushes while the disk does not answer: each would hold a thread."""
        since = self._keeping_since
        stalled = since is not None and time.monotonic() - since > _STALL_S
        if stalled == self._is_stalled:
            return
        self._is_stalled = stalled
        if stalled:
            why = f"log: expected the disk to answer, got nothing for {_STALL_S:g} s"
            self._store.refuse(why)
            self._on_room(False)
            _log.warning("pushes are refused: %s", why, extra={"event": "disk_stalled"})
        else:
            _log.info("the disk answers again", extra={"event": "disk_answers"})

    def _look_for_room(self) -> None:
        try:
            self._archive.probe()
        except OSError:
            return
        self._on_room(True)  # First: from the next push on it may be False again.
        self._store.resume()
        _log.info("pushes are taken again", extra={"event": "disk_has_room"})

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._on_failure(error)

    def _note(self, newest: "Kept") -> None:
        self._newest, self._failed_at = newest, None

    def _count_failure(self) -> None:
        self._failures += 1
        self._failed_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a checkpoint once it is kept, without its arrays.

    Attributes:
        generation: Its history.
        step: Its step.
        sessions: What it remembers of sessions.
        received: How many pushes had been received.
        nbytes: Of its arrays, in bytes.
        at: When it was saved, in seconds.
        cut_at: When it was taken, if it was by this server, in seconds.
        path: Where it is, likewise.
    """

    generation: str
    step: int
    sessions: Mapping[str, Session]
    received: int
    nbytes: int
    at: float
    cut_at: float = -math.inf
    path: Path | None = None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        at: float,
        cut_at: float = -math.inf,
        path: Path | None = None,
    ) -> Self:
        nbytes = checkpoint.variables.layout.nbytes
        nbytes += sum(array.nbytes for array in checkpoint.slots.arrays.values())
        return cls(
            generation=checkpoint.generation,
            step=checkpoint.step,
            sessions=checkpoint.sessions,
            received=checkpoint.counters.total.freeze().received,
            nbytes=nbytes,
            at=at,
            cut_at=cut_at,
            path=path,
        )

    @property
    def long_log_nbytes(self) -> int:
        """How long a log may get before a newer checkpoint is wanted, in bytes."""
        return max(_LONG_LOG * self.nbytes, _LONG_LOG_NBYTES)

    def is_like(self, checkpoint: Checkpoint) -> bool:
        """Say whether nothing has happened since."""
        return self == Kept.of(checkpoint, self.at, self.cut_at, self.path)


def _tell_failure(error: Exception) -> None:
    _log.error(
        "no checkpoint: %s",
        error,
        extra={"event": "checkpoint_failed", "error": str(error)},
    )
