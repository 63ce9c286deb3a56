"""What the store asks of whoever makes a model last."""

from collections.abc import Sequence
from typing import Protocol

from psserver.changes import Change
from psserver.checkpoint import Checkpoint
from pswire.status import Durability


class Keeper(Protocol):
    """Keeps a model where it outlasts the server."""

    @property
    def keeps_changes(self) -> bool:
        """Whether every change is to be kept before anybody sees it."""

    def begin(self, first: Checkpoint) -> None:
        """Keep variables that nobody has seen yet.

        Raises:
            OSError: They cannot be kept, and so must not be seen.
        """

    def keep(self, changes: Sequence[Change]) -> None:
        """Keep changes; called by one thread at a time, in the order of the steps.

        Raises:
            OSError: None of them is kept.
        """

    def taking(self, is_taking: bool) -> None:
        """Hear whether pushes are taken; must neither take long nor call back."""

    def stepped(self, step: int) -> None:
        """Hear of a step that is seen from now on; must not take long."""

    def status(self) -> Durability:
        """Return what is kept."""


class KeepNothing:
    """Lets a model end with its server."""

    keeps_changes = False

    def begin(self, first: Checkpoint) -> None:
        pass

    def keep(self, changes: Sequence[Change]) -> None:
        pass

    def taking(self, is_taking: bool) -> None:
        pass

    def stepped(self, step: int) -> None:
        pass

    def status(self) -> Durability:
        return Durability()
