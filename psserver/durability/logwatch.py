"""What becomes of pushes when the log's disk is full, silent or broken."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from psserver.durability.archive import Archive
from psserver.durability.errors import DiskFullError, is_final

_POLL_S = 1.0  # How late an answer of the disk may be noticed.
_STALL_S = 5.0

_log = logging.getLogger("psserver")


class Refusing(Protocol):
    """Who takes pushes: a store's `Lineage`."""

    @property
    def refuses_pushes(self) -> bool: ...
    def stall(self, why: str) -> None: ...
    def resume(self) -> None: ...


class LogWatch:
    """Keeps changes in an `Archive`, and has pushes refused while it cannot.

    A thread of its own looks after the disk: it must not wait for a disk that gives no
    answer, or for a checkpoint that takes long.

    Attributes:
        failure: Why nothing can be kept any more; None: it can.
    """

    def __init__(
        self, archive: Archive, on_failure: Callable[[Exception], None]
    ) -> None:
        """Prepare to keep.

        Args:
            archive: Where.
            on_failure: Is told why nothing can be kept any more.
        """
        self.failure: Exception | None = None
        self._archive = archive
        self._on_failure = on_failure
        self._asked_at: float | None = None  # The disk; None: it has answered.
        self._is_stalled = False
        self._stopped = threading.Event()
        # A daemon: a program that never stops its server can still end.
        self._thread = threading.Thread(
            target=self._run, name="psserver log watch", daemon=True
        )

    def begin(self, first: Checkpoint) -> None:
        """Keep the first variables; see `Keeper.begin`."""
        with self._asking():
            try:
                self._archive.begin(first)
            except OSError as error:
                if is_final(error):
                    self._fail(error)
                raise

    def keep(self, changes: Sequence[Change]) -> None:
        """Keep changes; see `Keeper.keep`."""
        with self._asking():
            try:
                self._archive.keep(changes)
            except DiskFullError as error:
                _log.error(
                    "pushes are refused: %s",
                    error,
                    extra={"event": "disk_full", "error": str(error)},
                )
                raise
            except Exception as error:  # Of the last record there may be a part.
                self._fail(error)
                raise

    def start(self, store: Refusing) -> None:
        """Begin to look after the disk.

        Args:
            store: Whose pushes are refused, and taken again.
        """
        self._store = store
        self._thread.start()

    def halt(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """Look whether the disk answers, and whether one that was full has room."""
        self._look_for_stall()
        if self._store.refuses_pushes and not (self.failure or self._is_stalled):
            self._look_for_room()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._asked_at = time.monotonic()
        try:
            yield
        finally:
            self._asked_at = None

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self._on_failure(error)

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            self.look()

    def _look_for_stall(self) -> None:
        """Refuse pushes while the disk does not answer: each would hold a thread."""
        since = self._asked_at
        is_stalled = since is not None and time.monotonic() - since > _STALL_S
        if is_stalled == self._is_stalled:
            return
        self._is_stalled = is_stalled
        if is_stalled:
            why = f"log: expected the disk to answer, got nothing for {_STALL_S:g} s"
            self._store.stall(why)
            _log.warning("pushes are refused: %s", why, extra={"event": "disk_stalled"})
        else:
            _log.info("the disk answers again", extra={"event": "disk_answers"})

    def _look_for_room(self) -> None:
        try:
            self._archive.probe()
        except OSError:
            return
        self._store.resume()
        _log.info("pushes are taken again", extra={"event": "disk_has_room"})
