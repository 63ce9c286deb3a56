"""What a data directory must bring back when the next server starts."""

from psserver.checkpoint import Checkpoint
from simulation.model import Model
from simulation.server import Server, Settings


class Promise:
    """What holds whatever becomes of a server; of joinings, `Members` knows it.

    Attributes:
        step: What must not be lost, in steps; -1: there need not be anything.
        good: The steps of good checkpoints, newest first.
        may_damage: Whether the newest checkpoint may be damaged: there is another one.
        has_log: Whether all that came after a checkpoint is in the log.
        is_whole: Whether all is there, as the last server has stopped with grace.
        is_sealed: Whether none has tried to start since, so that this is known.
    """

    def __init__(self) -> None:
        self.step = -1
        self.good: list[int] = []
        self.may_damage = self.has_log = False
        self.is_whole = self.is_sealed = False
        self._is_same = False  # The history must go on as it is.
        self._begun: list[str] = []  # The histories that starts may have begun.
        self._foreign = 0  # How many of these are of a history that has no log.
        self._is_logged = False  # The last server with a model kept a log.
        self._mode = ""  # Of the last server that has started.

    def damage(self, model: Model) -> None:
        """Note that the newest checkpoint cannot be read any more."""
        if not self._is_logged:
            self.step, self._is_same = self.good[1], False
            self.is_whole = False
        # What is in the log is what was acknowledged.
        model.members.promised = dict(model.members.told) if self._is_logged else {}
        self.may_damage = self.is_sealed = False

    def forget_ending(self) -> None:
        """Note that nobody knows any more how the last server has ended."""
        self._is_same &= self._is_logged
        self.is_sealed = False

    def attempt(self, settings: Settings, generation: str) -> None:
        """Note that a server starts, which may end before it has."""
        self._had_same = self._is_same
        self._begun.append(generation)
        self._is_same &= settings.mode == "log"
        self.has_log &= settings.mode == "log"
        self.may_damage = self.is_sealed = False

    def require(self, kept: Checkpoint | None, model: Model, mode: str) -> None:
        """Check what a server has started with.

        Args:
            kept: What it has.
            model: What the one before had.
            mode: Its durability.
        """
        before, self._mode = self._mode, mode
        if kept is None:
            assert self.step == -1, "all is lost"
            return
        least = self.step
        if kept.generation == model.generation:
            least = max(least, model.shown)
            if before == "checkpoint":
                model.members.keep(model.members.joinings())
        else:
            assert not self._had_same, "another generation"
            assert kept.generation in self._begun
        assert kept.step >= least, f"expected step {least} or more, got {kept.step}"
        if self.is_whole:
            assert kept.step == least, f"expected step {least}, got {kept.step}"
        self._foreign = int(kept.generation != model.generation)
        self._begun = []

    def keep(self, mode: str, step: int) -> None:
        """Note what a server has, now that it has something."""
        self.has_log = self._is_logged = self._is_same = mode == "log"
        self.step, self.is_whole = step, False

    def show(self, step: int) -> None:
        """Note what is seen of a server that has a log, or is in a checkpoint."""
        self.step = max(self.step, step)

    def stop(self, step: int) -> None:
        """Note that a server has ended as it should."""
        self.step = step
        self._is_same = self.is_whole = self.is_sealed = True

    def end(self, server: Server) -> None:
        """Note that a server has ended."""
        if server.archive:
            good = server.archive.checkpoints.good
            self.good = good[: len(good) - self._foreign]
            self.may_damage = len(self.good) > 1
