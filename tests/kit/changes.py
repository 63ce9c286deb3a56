"""Changes to keep in a log, and the log itself."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from kit.virtualdisk import VirtualDisk
from psserver.changes import Applied, Change, Joined
from psserver.durability.disk import Disk
from psserver.durability.log import Log
from psserver.durability.replay import read
from pswire.body import Body
from pswire.encoding import PLAIN, Encoding
from pswire.layout import Layout
from pswire.values import PushHeader

FOLDER = Path("/data/log")
GENERATION = "g"
TRAINABLE = Layout.of({"w": np.zeros(3, np.float32)})


def data_disk(seed: int = 0) -> VirtualDisk:
    """Make a disk with the data directory, which lasts."""
    disk = VirtualDisk(Random(seed))
    disk.make_folder(FOLDER.parent)
    disk.sync_folder(FOLDER.parent.parent)
    return disk


def applied(
    step: int,
    body: Body | None = None,
    *,
    session: str = "s",
    layout: Layout | None = None,
    value: float | None = None,
    encoding: Encoding = PLAIN,
    factor: float = 1.0,
    dropped_variables: int = 0,
) -> Applied:
    """Make a push that was applied.

    Args:
        step: The step after it, in steps.
        body: What has travelled; None: numbers that tell the step.
        session: As in a header, like all else.
        layout: See above.
        value: See above.
        encoding: See above.
        factor: What its update was multiplied by.
        dropped_variables: How many more it brought.
    """
    if body is None:
        body = Body.unwritten(TRAINABLE)
        body["w"][:] = (step, step / 7, -step)
    header = PushHeader(
        session=session,
        seq=step,
        generation=GENERATION,
        step_read=step - 1,
        nbytes=body.layout.nbytes,
        layout=layout,
        value=value,
        encoding=encoding,
    )
    return Applied(step, header, body.freeze(), factor, dropped_variables)


def batches(sizes: Iterable[int], step: int = 0) -> list[Sequence[Change]]:
    """Make batches of changes: a session joins, then pushes some more.

    Args:
        sizes: Of the batches, in changes.
        step: The step before the first one, in steps.
    """
    made: list[Sequence[Change]] = []
    for size in sizes:
        steps = range(step + 1, step + size)
        joined = Joined(f"worker {step}", f"session {step}", rejoin=step > 0)
        made.append(
            [joined, *(applied(each, session=joined.session) for each in steps)]
        )
        step += size - 1
    return made


def write_log(
    disk: Disk,
    written: Iterable[Sequence[Change]],
    *,
    step: int = 0,
    folder: Path = FOLDER,
    generation: str = GENERATION,
) -> Path:
    """Write a segment, each batch at once.

    Args:
        disk: Where to.
        written: The batches.
        step: The step before them, in steps.
        folder: See above.
        generation: See above.

    Returns:
        The path of the segment.
    """
    log = Log(disk, folder, generation)
    log.begin(step)
    for batch in written:
        log.write(batch)
    log.close()
    newest = max(name for name in disk.names(folder) if name.endswith(".log"))
    return folder / newest


def replayed(
    disk: Disk,
    after: int = 0,
    *,
    folder: Path = FOLDER,
    generation: str = GENERATION,
    number: int = 1,
    trainable: Layout = TRAINABLE,
) -> list[Change]:
    """Read all that a log has after a step, or who joined from a segment on."""
    return [
        *read(
            *(disk, folder),
            generation=generation,
            after=after,
            number=number,
            trainable=trainable,
        )
    ]


def facts(changes: Iterable[Change]) -> list[Any]:
    """Return what two logs are compared by: arrays have no simple equality."""
    return [
        (
            *(change.step, change.header, change.factor, change.dropped_variables),
            *(change.others, change.body.layout, bytes(_data(change.body))),
        )
        if isinstance(change, Applied)
        else change
        for change in changes
    ]


def _data(body: Body) -> bytes:
    return b"".join(bytes(memory) for _, memory in body.runs)
