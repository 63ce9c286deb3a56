"""What a data directory must bring back when the next server starts."""

from dataclasses import dataclass, field


@dataclass
class Promise:
    """What holds whatever becomes of a server.

    Attributes:
        step: What must not be lost, in steps; -1: there need not be anything.
        same_generation: Whether the history must go on as it is.
        is_logged: Whether the last server had a log.
        good: The steps of checkpoints that are good, newest first: while there are
            two, the newest may be damaged.
    """

    step: int = -1
    same_generation: bool = False
    is_logged: bool = False
    good: list[int] = field(default_factory=list)

    def damage(self) -> None:
        """Note that the newest checkpoint cannot be read any more."""
        if not self.is_logged:
            self.step, self.same_generation = self.good[1], False
        self.good = []

    def attempt(self, mode: str) -> None:
        """Note that a server starts: it may end before it has."""
        self.good = []
        if mode == "checkpoint":
            self.same_generation = False

    def start(self, mode: str, step: int) -> None:
        """Note that it has started, and at which step."""
        self.is_logged = self.same_generation = mode == "log"
        self.step = step
