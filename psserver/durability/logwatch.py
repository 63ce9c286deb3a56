"""What becomes of pushes when the log's disk is full, silent or broken."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from psserver.changes import Change
from psserver.durability.archive import Archive
from psserver.durability.errors import DiskFullError

_STALL_S = 5.0

_log = logging.getLogger("psserver")


class Refusing(Protocol):
    """Who takes pushes: a store's `Lineage`."""

    @property
    def refuses_pushes(self) -> bool: ...
    def refuse(self, why: str) -> None: ...
    def resume(self) -> None: ...


class LogWatch:
    """Keeps changes in an `Archive`, and tells when it cannot.

    Attributes:
        failure: Why nothing can be kept any more; None: it can.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        on_room: Callable[[bool], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Prepare to keep.

        Args:
            archive: Where.
            on_room: Is told False when the disk cannot take a push any more, and True
                when it can again.
            on_failure: Is told why nothing can be kept any more.
        """
        self.failure: Exception | None = None
        self._archive = archive
        self._on_room = on_room
        self._on_failure = on_failure
        self._keeping_since: float | None = None
        self._is_stalled = False

    def keep(self, changes: Sequence[Change]) -> None:
        """Keep changes; see `Keeper.keep`."""
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
            self.fail(error)
            raise
        finally:
            self._keeping_since = None

    def fail(self, error: Exception) -> None:
        """Give up: nobody knows what the disk still has."""
        self.failure = error
        self._on_failure(error)

    def look(self, store: Refusing) -> None:
        """Look whether the disk answers, and whether one that was full has room.

        Args:
            store: Is told when to refuse pushes, and when to take them again.
        """
        self._look_for_stall(store)
        # Not before the store knows that there is none: else it learns too late.
        may_try = not (self.failure or self._is_stalled)
        if store.refuses_pushes and may_try:
            self._look_for_room(store)

    def _look_for_stall(self, store: Refusing) -> None:
        """Refuse pushes while the disk does not answer: each would hold a thread."""
        since = self._keeping_since
        stalled = since is not None and time.monotonic() - since > _STALL_S
        if stalled == self._is_stalled:
            return
        self._is_stalled = stalled
        if stalled:
            why = f"log: expected the disk to answer, got nothing for {_STALL_S:g} s"
            store.refuse(why)
            self._on_room(False)
            _log.warning("pushes are refused: %s", why, extra={"event": "disk_stalled"})
        else:
            _log.info("the disk answers again", extra={"event": "disk_answers"})

    def _look_for_room(self, store: Refusing) -> None:
        try:
            self._archive.probe()
        except OSError:
            return
        self._on_room(True)  # First: from the next push on it may be False again.
        store.resume()
        _log.info("pushes are taken again", extra={"event": "disk_has_room"})
