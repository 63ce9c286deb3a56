"""The files of the log, which are called after their order and their first step.

`00000003-step-120.log` is the third, and has what came after step 120. Several files
may begin at one step: when a server starts again before the next push, say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psserver.durability.disk import Disk
from psserver.durability.room import PROBE

LOG_FOLDER = "log"
"""Where in a data directory they are."""

_NAME = re.compile(r"(\d{8,})-step-(\d+)\.log")


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the log.

    Attributes:
        path: Of the file.
        number: One more than that of the file before it.
        step: The step before its first record, in steps.
    """

    path: Path
    number: int
    step: int

    @classmethod
    def named(cls, folder: Path, number: int, step: int) -> "Segment":
        """Name a file."""
        return cls(folder / f"{number:08}-step-{step}.log", number, step)


def segments(disk: Disk, folder: Path) -> list[Segment]:
    """Return what there is, in order; other files are none of the log's."""
    found = [match for name in disk.names(folder) if (match := _NAME.fullmatch(name))]
    numbered = [
        Segment(folder / match[0], *map(int, match.groups())) for match in found
    ]
    return sorted(numbered, key=lambda segment: segment.number)


def is_own(name: str) -> bool:
    """Say whether a file of this name, in the log's folder, is one of the log's."""
    segment, torn, _ = name.partition(".log.broken")
    return bool(_NAME.fullmatch(f"{segment}.log" if torn else name)) or name == PROBE


def needed(segments: Sequence[Segment], step: int, number: int) -> list[Segment]:
    """Return the segments that have what came after a checkpoint; none: they lack it.

    Args:
        segments: All that there are, in order.
        step: The checkpoint's, in steps.
        number: Of the first that may have who joined since: several may end and begin
            at one step, so that tells nothing.
    """
    begin = max((s.step for s in segments if s.step <= step), default=None)
    if begin is None:
        return []
    return [s for s in segments if s.step >= begin or s.number >= number]
