"""What a data directory holds of a model, and how a server goes on from there."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from psserver.durability import replay
from psserver.durability.checkpoints import FOLDER, Checkpoints
from psserver.durability.disk import Disk
from psserver.durability.ending import NAME as ENDING
from psserver.durability.ending import Ending
from psserver.durability.errors import DataDirectoryError
from psserver.durability.log import Log

_log = logging.getLogger("psserver")


class Recovering(Protocol):
    """What goes on from what was kept: a store's `Lineage` that nobody calls yet."""

    @property
    def generation(self) -> str: ...
    def recover(
        self, kept: Checkpoint, changes: Iterable[Change], now: float
    ) -> None: ...
    def begin_history(self, generation: str) -> None: ...
    def checkpoint(self) -> Checkpoint | None: ...


class Archive:
    """Checkpoints and, in mode `log`, a log of what came after them.

    Knows no thread: `keep` and all the rest may be called at once, but neither by two.
    """

    def __init__(self, disk: Disk, folder: Path, *, mode: str, keep: int) -> None:
        """Look at nothing yet; `recover` is the first call.

        Args:
            disk: Where the data directory is.
            folder: The data directory.
            mode: `checkpoint` or `log`.
            keep: How many checkpoints stay.
        """
        self.mode = mode
        self.keeps_changes = mode == "log"
        self.checkpoints = Checkpoints(disk, folder / FOLDER)
        self._disk = disk
        self._folder = folder
        self._log_folder = folder / "log"
        self._keep = keep
        self._log: Log | None = None
        self.saves = 0
        """Checkpoints saved so far."""

    def recover(self, store: Recovering, rule: str, now: float) -> None:
        """Let a store go on where the last server ended, if there was one.

        Where history may have been cut the store's own generation begins another one.

        Args:
            store: Without variables yet.
            rule: What `status` calls its rule.
            now: Seconds.

        Raises:
            DataDirectoryError: What is there is damaged, or of another rule.
            OSError: It cannot be read, or not be written.
        """
        ending = Ending.read(self._disk, self._folder)
        # The last server may have died before all names were on the disk.
        self._disk.sync_folder(self._folder)
        kept = self.checkpoints.load_newest(now)
        if kept is None:
            self._require_no_changes()
            self._remove_log()  # Of a server that never got its first checkpoint.
        else:
            _require_rule(kept, rule)
            self._go_on(store, kept, ending, now)
        Ending(self.mode).write(self._disk, self._folder)
        if not self.keeps_changes:
            self._remove_log()

    def begin(self, first: Checkpoint) -> None:
        """Keep the first variables.

        Raises:
            OSError: They cannot be kept.
        """
        if self.keeps_changes:
            # In this order: a log without a checkpoint, if it is empty, is no damage.
            self._remove_log()
            self._begin_log(first)
        self.save(first)

    def keep(self, changes: Sequence[Change]) -> None:
        """Write changes to the log; see `Log.write`."""
        assert self._log is not None
        self._log.write(changes)

    def probe(self) -> None:
        """Check that the disk has room for changes again; see `Log.probe`."""
        assert self._log is not None
        self._log.probe()

    @property
    def log_nbytes(self) -> int:
        """What the log has got since the last `turn`, in bytes."""
        return self._log.nbytes if self._log else 0

    @property
    def log_syncs(self) -> int:
        """How often the log has waited for the disk."""
        return self._log.syncs if self._log else 0

    def turn(self) -> None:
        """Let the log's next changes be apart from those that a checkpoint covers."""
        if self._log:
            self._log.turn()

    def save(self, checkpoint: Checkpoint) -> Path:
        """Keep a checkpoint, and no longer what it makes superfluous.

        Raises:
            OSError: It cannot be kept; all that was kept before still is.
        """
        path = self.checkpoints.save(checkpoint)
        self.saves += 1
        self.checkpoints.prune(self._keep)
        good = self.checkpoints.good
        if self._log and len(good) > 1:
            self._log.remove_covered(good[1])  # Should the newest one be damaged.
        return path

    def seal(self, generation: str, step: int) -> None:
        """Write down that all there is, up to a step, is in a checkpoint."""
        Ending(self.mode, generation, step).write(self._disk, self._folder)

    def close(self) -> None:
        """Let go of the log."""
        if self._log:
            self._log.close()

    def _go_on(
        self, store: Recovering, kept: Checkpoint, ending: Ending | None, now: float
    ) -> None:
        fresh = store.generation
        # What another mode has left of a log is in the checkpoint.
        is_logged = ending.mode == "log" if ending else self._has_log()
        changes = self._changes(kept) if is_logged else ()
        try:
            store.recover(kept, changes, now)
        except ValueError as error:
            raise DataDirectoryError(
                f"rule: expected the one that {self._folder} is of; {error}"
            ) from error
        at = store.checkpoint()
        assert at is not None
        is_whole = is_logged or (
            ending is not None
            and (ending.generation, ending.step) == (at.generation, at.step)
        )
        if not is_whole:
            store.begin_history(fresh)
            at = replace(at, generation=fresh)
        if at.step > kept.step or (self.keeps_changes and not is_whole):
            self.save(at)
        if self.keeps_changes:
            if not is_logged:
                self._remove_log()  # Of a server that could not start.
            self._begin_log(at)
        _log.info(
            "going on from step %d of %s",
            *(at.step, self._folder),
            extra={
                "event": "recovered",
                "step": at.step,
                "checkpoint_step": kept.step,
                "generation": at.generation,
                "same_generation": is_whole,
            },
        )

    def _changes(self, kept: Checkpoint) -> Iterable[Change]:
        if not self._has_log():
            raise DataDirectoryError(
                f"{self._log_folder}: expected what came after step {kept.step}, got "
                "no log; to go on without it, move "
                f"{self._folder / ENDING} away too"
            )
        return replay.read(
            self._disk,
            self._log_folder,
            generation=kept.generation,
            after=kept.step,
            trainable=kept.variables.layout.trainable,
        )

    def _require_no_changes(self) -> None:
        if not replay.is_empty(self._disk, self._log_folder):
            raise DataDirectoryError(
                f"{self.checkpoints.folder}: expected the checkpoint that "
                f"{self._log_folder} goes on from, got none"
            )

    def _has_log(self) -> bool:
        return any(n.endswith(".log") for n in self._disk.names(self._log_folder))

    def _begin_log(self, at: Checkpoint) -> None:
        self._log = Log(self._disk, self._log_folder, at.generation)
        self._log.begin(at.step)

    def _remove_log(self) -> None:
        if self._log_folder.name in self._disk.names(self._folder):
            self._disk.remove(self._log_folder)
            self._disk.sync_folder(self._folder)


def _require_rule(kept: Checkpoint, rule: str) -> None:
    if kept.rule != rule:
        raise DataDirectoryError(
            f"rule: expected {kept.rule}, which the variables were trained with, "
            f"got {rule}"
        )
