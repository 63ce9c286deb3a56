"""`psserver` with points to fail at.

`python -m kit.serve --failpoint log.before_sync=kill@3 -- serve --rule ...`

The server's own code has no such points: this puts them round its disk and some of its
methods, in a process that a test has started for that.
"""

import argparse
from collections.abc import Callable
from typing import Any

from kit.failingdisk import FailingDisk
from kit.failpoints import Failpoint, Failpoints

Replace = Callable[[Any, str, Any], object]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="kit.serve")
    parser.add_argument("--failpoint", action="append", default=[])
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        armed = [Failpoint.parse(text) for text in arguments.failpoint]
    except ValueError as error:
        parser.error(str(error))
    install(Failpoints(armed))
    from psserver.cli import main as psserver

    psserver(arguments.command, prog_name="psserver")


def install(points: Failpoints, replace: Replace = setattr) -> None:
    """Put points into this process.

    Args:
        points: What is to happen where.
        replace: Sets an attribute: for good, or as long as a test lasts.
    """
    from psserver.calls import Calls
    from psserver.core import Core
    from psserver.durability import disk
    from psserver.grpcport import GrpcPort
    from psserver.timing import Timing

    real = disk.RealDisk
    replace(disk, "RealDisk", lambda: FailingDisk(real(), points))
    for owner, name, before, after in (
        (Calls, "push", "push.recv", "ack.before_send"),
        # What it times is the update by a push, with the lock held.
        (Timing, "apply", "push.after_dedup", "apply.done"),
        (Core, "recover", None, "recover.mid"),
        (Core, "replay", None, "recover.mid"),
        (GrpcPort, "join", None, "shutdown.mid"),
    ):
        replace(owner, name, _surrounded(getattr(owner, name), points, before, after))


def _surrounded(
    method: Callable[..., Any],
    points: Failpoints,
    before: str | None,
    after: str,
) -> Callable[..., Any]:
    def surrounded(*arguments: Any, **settings: Any) -> Any:
        if before:
            points.reach(before)
        answer = method(*arguments, **settings)
        points.reach(after)
        return answer

    return surrounded


if __name__ == "__main__":
    main()
