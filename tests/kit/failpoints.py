"""Named points at which a server's process is to fail, and what is to happen there."""

import errno
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

POINTS = {
    "push.recv": "a push has come",
    "push.after_dedup": "a push is about to be applied",
    "apply.done": "a push has been applied, and nobody has been told",
    "ack.before_send": "a push has its verdict, which is about to be sent",
    "log.before_write": "changes are about to be written to the log",
    "log.torn_write": "the first bytes of them have been, as in log.torn_write(100)",
    "log.after_write": "all of them have been",
    "log.before_sync": "the log is about to be synced",
    "log.after_sync": "it has been",
    "ckpt.tmp_written": "a file of a checkpoint has been written: there are two",
    "ckpt.synced": "both are synced, with their names",
    "ckpt.renamed": "the checkpoint has got its name",
    "ckpt.dir_synced": "what the folder of checkpoints has is synced",
    "ckpt.old_deleted": "a checkpoint that is not wanted any more has been removed",
    "recover.mid": "a checkpoint has been taken up, or a change after it",
    "shutdown.mid": "all calls have ended, and the last checkpoint is not saved yet",
}
"""What is so when each is reached.

There is no point between one variable and the next: a rule's update is one compiled
function, which makes new arrays of all of them.
"""

ACTIONS = ("kill", "error", "eio", "enospc", "hold", "tell")
_NOTATION = re.compile(
    r"(?P<name>[\w.]+)(\((?P<nbytes>\d+)\))?=(?P<action>\w+)(@(?P<at>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Failpoint:
    """What is to happen, once.

    Attributes:
        name: Where: one of `POINTS`.
        action: What: `kill` the process, raise an `error`, or one of the disk's, or
            `hold` the thread; the process says so in a line of stdout, and reads one
            of stdin before it goes on. `tell` is to hold without waiting.
        at: When: the how manieth time that the point is reached.
        nbytes: How much a torn write writes first, in bytes.
    """

    name: str
    action: str
    at: int = 1
    nbytes: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME=ACTION`, `NAME=ACTION@AT` or `NAME(NBYTES)=ACTION@AT`.

        Raises:
            ValueError: It is none of these, or there is no such name or action.
        """
        found = _NOTATION.fullmatch(text)
        if not found:
            raise ValueError(f"failpoint: expected NAME=ACTION[@AT], got {text!r}")
        for what, known in (("name", tuple(POINTS)), ("action", ACTIONS)):
            if found[what] not in known:
                raise ValueError(
                    f"failpoint: expected one of {', '.join(known)}, got {found[what]}"
                )
        numbers = int(found["at"] or 1), int(found["nbytes"] or 0)
        return cls(found["name"], found["action"], *numbers)

    def act(self) -> None:
        """Do it."""
        match self.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "error":
                raise RuntimeError(f"failpoint {self.name}")
            case "eio":
                raise OSError(errno.EIO, f"failpoint {self.name}")
            case "enospc":
                raise OSError(errno.ENOSPC, f"failpoint {self.name}")
            case "tell":
                print(f"reached {self.name}", flush=True)
            case "hold":
                print(f"reached {self.name}", flush=True)
                sys.stdin.readline()


class Failpoints:
    """Those of a process."""

    def __init__(self, armed: Iterable[Failpoint]) -> None:
        self._armed = {(each.name, each.at): each for each in armed}
        self._lock = threading.Lock()
        self._reached: Counter[str] = Counter()

    def due(self, name: str) -> Failpoint | None:
        """Count that a point is reached; return what is to happen there, if at all."""
        with self._lock:
            self._reached[name] += 1
            return self._armed.get((name, self._reached[name]))

    def reach(self, name: str) -> None:
        """Count that a point is reached, and do what is to happen there."""
        if due := self.due(name):
            due.act()
