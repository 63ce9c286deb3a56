"""When a running server's model is saved: when it is due, asked for, and at its end."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from psserver.durability.archive import Archive, Recovering
from psserver.durability.every import Every
from psserver.durability.kept import Kept
from psserver.durability.logwatch import LogWatch, Refusing
from pswire.errors import NotInitializedError, ServerUnavailableError
from pswire.status import Durability

_POLL_S = 1.0  # How late a checkpoint may be by the clock.
_PATIENCE_S = 10.0  # After a checkpoint that failed.
_MAX_ASKING = 8  # For a checkpoint, at once: each holds a thread.
_LONG_LOG = 4  # Times a checkpoint.
_LONG_LOG_NBYTES = 2**28
_LONG_LOG_STEPS = 50_000  # They are replayed within a worker's patience.

_log = logging.getLogger("psserver")


class Saved(Recovering, Refusing, Protocol):
    """Whose model is kept: a store's `Lineage`."""

    @property
    def step(self) -> int: ...
    def close(self) -> None: ...


class Saver:
    """Keeps a store's model in an `Archive`: a `Keeper`.

    Its thread saves checkpoints when they are due.
    """

    def __init__(
        self,
        archive: Archive,
        every: Every,
        watch: LogWatch,
        on_taking: Callable[[bool], None],
    ) -> None:
        """Prepare to keep.

        Args:
            archive: Where.
            every: How often to save a checkpoint.
            watch: Keeps the changes in between, in the same archive, if any are kept.
            on_taking: Is told whether pushes are taken; see `Keeper.taking`.
        """
        self.taking = on_taking
        self.keeps_changes = archive.keeps_changes
        self._archive = archive
        self._every = every
        self._watch = watch
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._newest: Kept | None = None
        self._failures = 0
        self._failed_at: float | None = None  # Unless one has been saved since.
        self._saving = threading.Lock()  # Held while a checkpoint is written.
        self._asking = threading.BoundedSemaphore(_MAX_ASKING)
        # A daemon: a program that never stops its server can still end.
        self._thread = threading.Thread(
            target=self._run, name="psserver saver", daemon=True
        )

    def begin(self, first: Checkpoint) -> None:
        begin = self._watch.begin if self.keeps_changes else self._archive.begin
        try:
            begin(first)
        except OSError as error:
            self._count_failure()
            if self.keeps_changes:
                raise
            _tell_failure(error)
        else:
            self._note(Kept.of(first, time.monotonic()))

    def keep(self, changes: Sequence[Change]) -> None:
        self._watch.keep(changes)

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
        kept = self._archive.recover(store, rule, time.monotonic())
        if kept:
            age_s = self._archive.checkpoints.newest_age_s()
            self._note(Kept.of(kept, time.monotonic() - age_s))

    def start(self) -> None:
        """Begin to save; from now on there may be calls.

        Raises:
            OSError: The data directory cannot be written.
        """
        self._archive.open()
        if self.keeps_changes:
            self._watch.start(self._store)
        self._thread.start()

    def save(self) -> tuple[Path, int]:
        """Save a checkpoint now, and return where and of which step.

        Of many that ask while one is being saved, the next one does for all.

        Raises:
            NotInitializedError: There are no variables yet.
            ServerUnavailableError: Too many ask.
            OSError: It cannot be kept; the ones before still are.
        """
        if not self._asking.acquire(blocking=False):
            raise ServerUnavailableError(
                f"checkpoint: expected at most {_MAX_ASKING} to ask for one at once"
            )
        try:
            return self._save_after(time.monotonic())
        finally:
            self._asking.release()

    def halt(self) -> None:
        """End the threads; what they have begun is done first."""
        self._watch.halt()
        self._stopped.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def stop(self) -> None:
        """Save the last checkpoint, with all that was acknowledged.

        Raises:
            OSError: It cannot be kept, or the disk has failed before.
        """
        self.halt()
        self._store.close()
        if self._watch.failure:
            raise self._watch.failure
        last = self._store.checkpoint()
        if last is None:
            return
        if self._newest is None or not self._newest.is_like(last):
            self.save()
        self._archive.seal(last.generation, last.step)

    def _save_after(self, asked_at: float) -> tuple[Path, int]:
        with self._saving:
            newest = self._newest
            if newest and newest.path and newest.cut_at >= asked_at:
                return newest.path, newest.step
            return self._save()

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
            if self._is_due() and not self._stopped.is_set():
                self._try_save()

    def _is_due(self) -> bool:
        now, newest = time.monotonic(), self._newest
        since = self._steps_since(self._store.step)
        if self._watch.failure or not since:
            return False
        if self._failed_at is not None:
            return now - self._failed_at >= _PATIENCE_S
        if newest is None:
            return False
        long_log_nbytes = max(_LONG_LOG * newest.nbytes, _LONG_LOG_NBYTES)
        return (
            since >= (self._every.steps or math.inf)
            or now - newest.at >= (self._every.seconds or math.inf)
            or self._archive.log_nbytes >= long_log_nbytes
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

    def _note(self, newest: Kept) -> None:
        self._newest, self._failed_at = newest, None

    def _count_failure(self) -> None:
        self._failures += 1
        self._failed_at = time.monotonic()


def _tell_failure(error: Exception) -> None:
    _log.error(
        "no checkpoint: %s",
        error,
        extra={"event": "checkpoint_failed", "error": str(error)},
    )
