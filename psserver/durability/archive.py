"""What a data directory holds of a model, and how a server goes on from there."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from psserver.durability.kept import Kept
from psserver.durability.log import Log
from psserver.durability.segments import LOG_FOLDER, is_own, segments
from pswire.errors import ParameterServerError
from pswire.layout import Layout

_log = logging.getLogger("psserver")


class Recovering(Protocol):
    """What goes on from what was kept: a store's `Lineage` that nobody calls yet."""

    @property
    def generation(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def layout(self) -> Layout: ...
    def restore(self, kept: Checkpoint) -> None: ...
    def replay(self, changes: Iterable[Change], now: float) -> None: ...
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
        self._log_folder = folder / LOG_FOLDER
        self._keep = keep
        self._log: Log | None = None
        self._begins_at = 0  # The log, in steps.
        self._log_from = 0  # Who joins from now on is in no segment before.
        self._has_model = False
        self.saves = 0
        """Checkpoints saved so far."""

    def recover(self, store: Recovering, rule: str, now: float) -> Checkpoint | None:
        """Let a store go on where the last server ended, if there was one.

        Where history may have been cut the store's own generation begins another one.

        Args:
            store: Without variables yet.
            rule: What `status` calls its rule.
            now: Seconds.

        Returns:
            The newest checkpoint on the disk; None: there is none yet.

        Raises:
            DataDirectoryError: What is there is damaged, or of another rule.
            OSError: It cannot be read, or not be written.
        """
        ending = Ending.read(self._disk, self._folder)
        fresh = store.generation
        kept = self._restore(store, rule, now)
        if kept is None:
            self._require_nothing(ending)
            self._remove_log()  # Of a server that never got its first checkpoint.
            _tell_fresh(self._folder)
            return None
        self._has_model = True
        is_whole = self._replay(store, ending, now)
        if not is_whole:
            store.begin_history(fresh)
        if found := segments(self._disk, self._log_folder):
            self._log_from = found[-1].number + 1
        at = store.checkpoint()
        assert at is not None
        _tell_recovered(self._folder, at, kept.step, is_whole=is_whole)
        # Who has joined since may be in the log alone, which another mode removes.
        has_changed = not Kept.of(kept).is_like(replace(at, generation=kept.generation))
        # Of one that is missing nobody could say later whether it had more.
        has_changed |= self.checkpoints.lacks_newest
        if has_changed or (self.keeps_changes and not is_whole):
            self.save(at)
            kept = at
        if self.keeps_changes:
            self._prepare_log(at)
        return kept

    def open(self) -> None:
        """Write down that a server runs; from now on there may be something to lose.

        Raises:
            OSError: It cannot be written, or no checkpoint could be.
        """
        self.checkpoints.require_room()
        if self._log:
            # Before it is said that there is one.
            self._log.begin(self._begins_at)
            with suppress(OSError):  # They do no harm.
                replay.remove_beginnings(self._disk, self._log_folder)
        Ending(self.mode, self._has_model).write(self._disk, self._folder)
        if not self.keeps_changes:
            self._remove_log()  # What it had is in the checkpoint.

    def begin(self, first: Checkpoint) -> None:
        """Keep the first variables.

        Raises:
            OSError: They cannot be kept.
        """
        self.checkpoints.prune(0)  # What was refused before, though it was written.
        if self.keeps_changes:
            # In this order: a log without a checkpoint, if it is empty, is no damage.
            self._remove_log()
            self._prepare_log(first).begin(first.step)
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
        """What the log has got since its newest segment was begun, in bytes."""
        return self._log.nbytes if self._log else 0

    @property
    def log_syncs(self) -> int:
        """How often the log has waited for the disk."""
        return self._log.syncs if self._log else 0

    def turn(self) -> None:
        """Let the log's next changes be apart from those that a checkpoint covers."""
        if self._log:
            self._log_from = self._log.turn()

    def save(self, checkpoint: Checkpoint) -> Path:
        """Keep a checkpoint, and no longer what it makes superfluous.

        Raises:
            OSError: It cannot be kept; all that was kept before still is.
        """
        path = self.checkpoints.save(replace(checkpoint, log_from=self._log_from))
        self.saves += 1
        if not self._has_model:
            Ending(self.mode, has_model=True).write(self._disk, self._folder)
            self._has_model = True
        self._tidy()
        return path

    def seal(self, generation: str, step: int) -> None:
        """Write down that all there is, up to a step, is in a checkpoint."""
        ending = Ending(self.mode, self._has_model, generation, step)
        ending.write(self._disk, self._folder)

    def close(self) -> None:
        """Let go of the log."""
        if self._log:
            self._log.close()

    def _restore(self, store: Recovering, rule: str, now: float) -> Checkpoint | None:
        """Give a store the newest checkpoint, and return it; None: there is none."""
        kept = self.checkpoints.load_newest(now)
        if kept is None:
            return None
        if kept.rule != rule:
            raise DataDirectoryError(
                f"rule: expected {kept.rule}, which the variables were trained with, "
                f"got {rule}"
            )
        with self._of_this_rule():
            store.restore(kept)
        self._log_from = kept.log_from
        return kept

    def _replay(self, store: Recovering, ending: Ending | None, now: float) -> bool:
        """Do what came after the checkpoint; say whether that is all there was."""
        was = (ending.generation, ending.step) if ending else None
        is_sealed = was == (store.generation, store.step)
        # Of the same step there may have been another one, with more sessions.
        is_sealed &= not self.checkpoints.lacks_newest
        is_logged = ending.mode == "log" if ending else self._has_log()
        if is_logged and not self._has_log():
            if not is_sealed and ending and ending.has_model:
                raise DataDirectoryError(
                    f"{self._log_folder}: expected what came after step {store.step}, "
                    f"got no log; to go on without it, move {self._folder / ENDING} "
                    "away too"
                )
            is_logged = False
        if not is_logged:
            # What another mode has left is in the checkpoint, and what a server that
            # died while it began would be in the way.
            self._remove_log()
            return is_sealed
        if not is_sealed:
            _tell_replay(self._log_folder, store.step)
        changes = replay.read(
            self._disk,
            self._log_folder,
            generation=store.generation,
            after=store.step,
            number=self._log_from,
            trainable=store.layout.trainable,
        )
        with self._of_this_rule():
            store.replay(changes, now)
        if (
            ending
            and ending.generation == store.generation
            and store.step < ending.step
        ):
            raise DataDirectoryError(
                f"{self._log_folder}: expected the steps up to {ending.step}, at which "
                f"the last server has stopped, got those up to {store.step}"
            )
        return True

    @contextmanager
    def _of_this_rule(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, ParameterServerError) as error:
            raise DataDirectoryError(
                f"rule: expected the one that {self._folder} is of, got another one; "
                f"{error}"
            ) from error

    def _require_nothing(self, ending: Ending | None) -> None:
        if ending and ending.has_model:
            raise DataDirectoryError(
                f"{self.checkpoints.folder}: expected the checkpoints that "
                f"{self._folder / ENDING} tells of, got none"
            )
        if not replay.is_empty(self._disk, self._log_folder):
            raise DataDirectoryError(
                f"{self.checkpoints.folder}: expected the checkpoint that "
                f"{self._log_folder} goes on from, got none"
            )

    def _tidy(self) -> None:
        """Remove what nobody needs; what cannot be removed does no harm."""
        try:
            self.checkpoints.prune(self._keep)
            fallback = self.checkpoints.before_newest
            if self._log and fallback:
                self._log.remove_covered(*fallback)
        except OSError as error:
            _log.warning(
                "something that is not needed any more stays: %s",
                error,
                extra={"event": "not_removed", "error": str(error)},
            )

    def _has_log(self) -> bool:
        return bool(segments(self._disk, self._log_folder))

    def _prepare_log(self, at: Checkpoint) -> Log:
        self.close()
        self._log = Log(
            self._disk, self._log_folder, at.generation, number=self._log_from
        )
        self._begins_at = at.step
        return self._log

    def _remove_log(self) -> None:
        """Remove the log's own files: what else is there is somebody's."""
        own = [n for n in self._disk.names(self._log_folder) if is_own(n)]
        for name in own:
            self._disk.remove(self._log_folder / name)
        if own:
            self._disk.sync_folder(self._log_folder)


def _tell_fresh(folder: Path) -> None:
    _log.info(
        "%s: nothing there yet, so a new model begins",
        folder,
        extra={"event": "fresh", "path": str(folder)},
    )


def _tell_replay(folder: Path, step: int) -> None:
    _log.info(
        "doing again what %s has after step %d",
        *(folder, step),
        extra={"event": "replaying", "path": str(folder), "step": step},
    )


def _tell_recovered(
    folder: Path, at: Checkpoint, kept_step: int, *, is_whole: bool
) -> None:
    news = "nothing is lost" if is_whole else "later steps are lost if there were any"
    _log.log(
        logging.INFO if is_whole else logging.WARNING,
        "going on from step %d of %s, with a checkpoint of step %d: %s",
        *(at.step, folder, kept_step, news),
        extra={
            "event": "recovered",
            "step": at.step,
            "checkpoint_step": kept_step,
            "generation": at.generation,
            "same_generation": is_whole,
        },
    )
