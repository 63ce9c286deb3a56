"""What is remembered of a checkpoint once it is kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from psserver.checkpoint import Checkpoint
from psserver.decision import Session


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint without its arrays.

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
        at: float = -math.inf,
        cut_at: float = -math.inf,
        path: Path | None = None,
    ) -> Self:
        nbytes = sum(spec.nbytes for spec in checkpoint.variables.layout)
        nbytes += sum(array.nbytes for array in checkpoint.slots.arrays.values())
        nbytes += sum(column.nbytes for column in checkpoint.columns.values())
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

    def is_like(self, checkpoint: Checkpoint) -> bool:
        """Say whether nothing has happened since."""
        return self == Kept.of(checkpoint, self.at, self.cut_at, self.path)
