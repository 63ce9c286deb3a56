"""The log read again: all that came after a step, in order, without a gap."""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from psserver.changes import Applied, Change
from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError
from psserver.durability.frame import Record
from psserver.durability.reader import NotWholeError, Reader
from psserver.durability.records import Start, decode
from psserver.durability.repair import cut_off
from psserver.durability.segments import Segment, needed, segments
from pswire.errors import ParameterServerError
from pswire.layout import Layout


def read(
    disk: Disk,
    folder: Path,
    *,
    generation: str,
    after: int,
    number: int,
    trainable: Layout,
) -> Iterator[Change]:
    """Yield what came after a checkpoint, and who joined then or shortly before.

    Once this has ended, all that it has yielded is on the disk, and the log may go on.
    The torn end of the last segment, which nobody was told of, is set aside.

    Args:
        disk: Has the folder.
        folder: Of the log.
        generation: The history that it must be of.
        after: The checkpoint's step, in steps.
        number: The first segment that may have who joined since.
        trainable: The layout of a push that names none.

    Raises:
        DataDirectoryError: Something is missing, damaged, or of another history.
        OSError: Something cannot be read, or the torn end cannot be set aside.
    """
    found = segments(disk, folder)
    chosen = needed(found, after, number)
    if not chosen:
        raise DataDirectoryError(
            f"{folder}: expected the steps from {after + 1} on, got "
            + (f"those from {found[0].step + 1} on" if found else "no segment")
        )
    step = chosen[0].step
    for segment in chosen:
        if segment.step != step:
            raise DataDirectoryError(
                f"{segment.path}: expected the steps from {step + 1} on, got those "
                f"from {segment.step + 1} on"
            )
        said = _read(
            disk, segment, generation, trainable, is_last=segment is chosen[-1]
        )
        for change in said:
            is_applied = isinstance(change, Applied)
            step += is_applied
            is_new = step > after if is_applied else segment.number >= number
            if is_new and step >= after:
                yield change


def is_empty(disk: Disk, folder: Path) -> bool:
    """Say whether a log has nothing but the beginnings of segments."""
    return all(
        _is_beginning(Reader(disk, segment.path)) for segment in segments(disk, folder)
    )


def remove_beginnings(disk: Disk, folder: Path) -> None:
    """Remove the segments that have nothing, but for the newest.

    Raises:
        OSError: They cannot be read, or not be removed, which does no harm.
    """
    for segment in segments(disk, folder)[:-1]:
        if _is_beginning(Reader(disk, segment.path)):
            disk.remove(segment.path)


def _is_beginning(reader: Reader) -> bool:
    try:
        return not any(record.offset for record in reader.records())
    except NotWholeError:
        # A server was killed while it began, if nothing else was ever there.
        return not reader.end and not reader.was_synced()


def _read(
    disk: Disk, segment: Segment, generation: str, trainable: Layout, *, is_last: bool
) -> Iterator[Change]:
    reader = Reader(disk, segment.path)
    try:
        yield from _changes(reader, segment, generation, trainable)
    except NotWholeError as error:
        if not is_last or reader.was_synced():
            raise DataDirectoryError(
                f"{segment.path} at byte {reader.end}: expected a whole record, which "
                f"was there once, got {error}"
            ) from None
        cut_off(disk, segment.path, reader.end, str(error))
    if is_last:
        # The one who wrote this may have died before it was synced, or of that.
        disk.sync(segment.path, reader.synced)


def _changes(
    reader: Reader, segment: Segment, generation: str, trainable: Layout
) -> Iterator[Change]:
    step = segment.step
    for record in reader.records():
        where = f"{segment.path} at byte {record.offset}"
        said = _decode(record, trainable, where)
        if record.frame.place.offset != record.offset:
            raise DataDirectoryError(
                f"{where}: expected a record of that place, got the one of byte "
                f"{record.frame.place.offset}"
            )
        step += isinstance(said, Applied)
        if record.frame.step != step:
            raise DataDirectoryError(
                f"{where}: expected step {step}, got step {record.frame.step}"
            )
        if isinstance(said, Start) == bool(record.offset):
            raise DataDirectoryError(
                f"{where}: expected a START at byte 0 and nowhere else, got "
                f"{type(said).__name__.upper()}"
            )
        if not isinstance(said, Start):
            yield said
        elif said.generation != generation:
            raise DataDirectoryError(
                f"{where}: expected generation {generation}, got {said.generation}"
            )


def _decode(record: Record, trainable: Layout, where: str) -> Start | Change:
    try:
        return decode(record, trainable)
    except (ParameterServerError, DecodeError, ValueError) as error:
        raise DataDirectoryError(f"{where}: {error}") from error
