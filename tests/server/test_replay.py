"""The log read again: what a crash leaves is repaired, all else amiss is refused."""

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, chain
from random import Random
from typing import Any

import numpy as np
import pytest

from kit.changes import (
    FOLDER,
    GENERATION,
    TRAINABLE,
    applied,
    batches,
    data_disk,
    facts,
    replayed,
    write_log,
)
from kit.virtualdisk import Crashed, VirtualDisk, failing
from psserver.changes import Change, Joined
from psserver.durability.disk import Disk
from psserver.durability.errors import DataDirectoryError
from psserver.durability.frame import (
    FIRST_MARK,
    FRAME_NBYTES,
    MARK_NBYTES,
    Frame,
    Place,
    framed,
)
from psserver.durability.log import Log
from psserver.durability.records import Kind, Start, encode
from psserver.durability.replay import is_empty, read
from pswire.body import Body
from pswire.layout import Layout

SEED = 5

OLD = batches([12, 14])
NEW = batches([1, 9, 11, 3], step=24)
"""Two segments, of 52 records in all; the last batch has three."""

STEP, LAST = 24, 44
"""The step between the segments, and the last one."""

FIRST_NAME, LAST_NAME = "00000001-step-0.log", "00000002-step-24.log"
FIRST_PATH, LAST_PATH = FOLDER / FIRST_NAME, FOLDER / LAST_NAME

Files = Mapping[str, bytes]


def disk_of(files: Files) -> VirtualDisk:
    """Make a disk on which a log has these files, for good."""
    disk = data_disk()
    disk.make_folder(FOLDER)
    disk.sync_folder(FOLDER.parent)
    for name, data in files.items():
        writer = disk.create(FOLDER / name)
        writer.write([data])
        writer.sync()
    disk.sync_folder(FOLDER)
    return disk


def files_of(disk: Disk) -> Files:
    """Read all of a log's files."""
    names = disk.names(FOLDER)
    return {n: disk.read(FOLDER / n, 0, disk.nbytes(FOLDER / n)) for n in names}


@pytest.fixture(scope="session")
def files() -> Files:
    """Write both segments."""
    disk = data_disk()
    write_log(disk, OLD)
    write_log(disk, NEW, step=STEP)
    return files_of(disk)


def records(data: bytes) -> list[bytes]:
    """Part a segment."""
    found, mark = [], FIRST_MARK
    while data:
        frame = Frame.unpack(data[:FRAME_NBYTES], mark)
        assert frame
        found.append(data[: frame.nbytes])
        data = data[frame.nbytes :]
        mark = mark_of(found[0])
    return found


def mark_of(data: bytes) -> bytes:
    """Return the mark of a segment's frames, which its START has."""
    start = Frame.unpack(data[:FRAME_NBYTES], FIRST_MARK)
    assert start
    return data[start.nbytes - MARK_NBYTES : start.nbytes]


def end_of(data: bytes) -> Place:
    """Return where a segment's next record lies."""
    return Place(mark_of(data), len(data), len(data))


def starts(data: bytes) -> list[int]:
    """Return where a segment's records start, then where the last one ends."""
    return [0, *accumulate(map(len, records(data)))]


def told(*written: Iterable[Iterable[Change]]) -> list[Any]:
    """Return the facts of some batches."""
    return facts(chain(*chain(*written)))


def refusal(files: Files, after: int = 0, **settings: Any) -> str:
    """Return why a log is refused; nothing of it changes."""
    disk = disk_of(files)
    with pytest.raises(DataDirectoryError) as raised:
        replayed(disk, after, **settings)
    assert files_of(disk) == files
    return str(raised.value)


# What is whole


@pytest.mark.parametrize("after", [0, 11, 23, STEP, 30, LAST])
def test_what_came_after_a_step_is_read(after: int, files: Files) -> None:
    """Who joined at the step itself is told of too: it may be after a checkpoint."""
    wanted, step = [], 0
    for change in chain(*OLD, *NEW):
        step = step if isinstance(change, Joined) else change.step
        if step > after or (step == after and isinstance(change, Joined)):
            wanted.append(change)

    got = replayed(disk_of(files), after)

    assert facts(got) == facts(wanted)


def test_a_log_of_the_format_before_is_read(files: Files) -> None:
    """It has no kind of record that this one has not; a server goes on in another."""
    data = files[LAST_NAME]
    header = b"\1\0\0\0" + GENERATION.encode()
    start = b"".join(
        framed(Kind.START, header, [mark_of(data)], step=STEP, place=Place())
    )

    got = replayed(disk_of({**files, LAST_NAME: start + data[len(start) :]}), STEP)

    assert records(data)[0] != start
    assert facts(got) == told(NEW)


def test_what_a_checkpoint_covers_is_not_looked_at(files: Files) -> None:
    """Neither damage there, nor other files."""
    disk = disk_of({**files, FIRST_NAME: b"damaged", "probe": b"", "2.log": b""})

    assert facts(replayed(disk, STEP, number=2)) == told(NEW)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_who_joined_since_is_told_by_the_segment(number: int) -> None:
    """One may end at the checkpoint's step, though another begins there."""
    disk = data_disk()
    joined = [Joined("ann", name) for name in "abc"]
    write_log(disk, [[applied(8), joined[0]]], step=7)
    write_log(disk, [[joined[1]]], step=8)
    write_log(disk, [[joined[2], applied(9)]], step=8)

    got = replayed(disk, 8, number=number)

    assert facts(got) == facts([*joined[number - 1 :], applied(9)])


def test_all_segments_that_begin_at_a_step_are_read() -> None:
    """A server may start again, and again, before the next push."""
    disk = data_disk()
    joined = [Joined("ann", name) for name in "abc"]
    for each in joined:
        write_log(disk, [[each]], step=7)
    write_log(disk, [[applied(8)]], step=7)

    assert facts(replayed(disk, 7)) == facts([*joined, applied(8)])


def test_a_record_is_read_when_it_is_asked_for() -> None:
    """So there is never more than one of them in memory."""
    disk = data_disk()
    large = Layout.of({"w": np.zeros(2**20, np.float32)})
    write_log(disk, [[applied(step, Body.zeros(large)) for step in (1, 2, 3)]])
    reads = 0
    counts = []

    def count(operation: Any) -> None:
        nonlocal reads
        reads += operation.kind == "read"

    disk.on_operation = count
    places = {"after": 0, "number": 1}
    for _ in read(disk, FOLDER, generation=GENERATION, trainable=large, **places):
        counts.append(reads)

    assert 4 <= counts[0] <= 7
    assert 4 <= counts[1] - counts[0] <= 7
    assert 4 <= counts[2] - counts[1] <= 7


# What a crash leaves


def test_a_log_cut_anywhere_has_its_whole_records(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """At every byte of its last segment; what is cut off is kept, and told of."""
    data = files[LAST_NAME]
    edges, old, new = starts(data), told(OLD), told(NEW)

    for nbytes in range(len(data)):
        disk = disk_of({**files, LAST_NAME: data[:nbytes]})
        count = sum(start <= nbytes for start in edges) - 1
        start = edges[count]
        caplog.clear()

        got = facts(replayed(disk))

        assert got == old + new[: max(0, count - 1)], nbytes
        whole = {**files, LAST_NAME: data[:start]}
        if start < nbytes:
            whole[f"{LAST_NAME}.broken"] = data[start:nbytes]
            assert [vars(record)["event"] for record in caplog.records] == [
                "log_repaired"
            ]
            assert f"{LAST_PATH} at byte {start}: expected a whole" in caplog.text
            assert f"the {nbytes - start} bytes from there on" in caplog.text
        assert files_of(disk) == whole


def test_any_byte_that_is_changed_is_found(files: Files) -> None:
    """In the last batch it may have been a crash; anywhere else it is refused.

    What follows a damaged record in the last batch goes with it.
    """
    random = Random(SEED)
    data = files[LAST_NAME]
    edges, old, new = starts(data), told(OLD), told(NEW)
    last_batch = edges[-4]

    for place in range(len(data)):
        print("byte", place)
        damaged = bytearray(data)
        damaged[place] ^= random.randrange(1, 256)
        count = sum(start <= place for start in edges) - 1
        disk = disk_of({**files, LAST_NAME: bytes(damaged)})

        if place < last_batch:
            with pytest.raises(DataDirectoryError) as raised:
                replayed(disk, STEP)
            where = f"{LAST_PATH} at byte {edges[count]}: expected a whole record, "
            assert str(raised.value).startswith(where)
        else:
            assert facts(replayed(disk)) == old + new[: count - 1]
            aside = files_of(disk)[f"{LAST_NAME}.broken"]
            assert aside == damaged[edges[count] :]


def test_a_segment_that_is_not_the_last_has_no_torn_end(files: Files) -> None:
    """All of it was on the disk before the next one began."""
    data = files[FIRST_NAME]
    edges = starts(data)

    for nbytes in (edges[-1] - 1, edges[-2] + 1, edges[1] - 1, 1):
        start = max(start for start in edges if start <= nbytes)
        said = refusal({**files, FIRST_NAME: data[:nbytes]})
        assert said.startswith(f"{FIRST_PATH} at byte {start}: expected a whole record")
    for nbytes in (edges[-2], edges[1], 0):
        said = refusal({**files, FIRST_NAME: data[:nbytes]})
        assert f"{LAST_PATH}: expected the steps from " in said


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 4096])
def test_zeros_at_the_end_are_cut_off(nbytes: int, files: Files) -> None:
    """A file system may know a file's size before it has its bytes."""
    disk = disk_of({**files, LAST_NAME: files[LAST_NAME] + bytes(nbytes)})

    assert facts(replayed(disk)) == told(OLD, NEW)
    assert files_of(disk) == {**files, f"{LAST_NAME}.broken": bytes(nbytes)}


@pytest.mark.parametrize("left", [b"", b"\0", bytes(77), b"?" * 127])
def test_a_segment_without_room_for_a_record_never_began(
    left: bytes, files: Files
) -> None:
    """Nobody was told of anything in it, and the log goes on after it."""
    disk = disk_of({**files, LAST_NAME: left})

    assert facts(replayed(disk)) == told(OLD)
    write_log(disk, NEW, step=STEP)

    assert facts(replayed(disk)) == told(OLD, NEW)


@pytest.mark.parametrize("nbytes", [1, 64, 90])
def test_a_segment_whose_beginning_is_lost_is_refused(
    nbytes: int, files: Files
) -> None:
    """The mark of its frames is lost too: what follows may be records, or not."""
    data = bytes(nbytes) + files[LAST_NAME][nbytes:]
    for lost in (data, data[:128], bytes(len(data)), bytes(128)):
        said = refusal({**files, LAST_NAME: lost})

        where = f"{LAST_PATH} at byte 0: expected a whole record, which was there once"
        assert said.startswith(where)


def test_a_length_beyond_the_end_takes_no_memory(files: Files) -> None:
    """A frame is believed as far as the file goes."""
    data = files[LAST_NAME]
    frame = Frame(end_of(data), Kind.APPLIED, 0, 2**62, LAST + 1, 0)
    disk = disk_of({**files, LAST_NAME: data + frame.pack()})

    assert facts(replayed(disk)) == told(OLD, NEW)
    assert files_of(disk)[f"{LAST_NAME}.broken"] == frame.pack()


def forged(files: Files) -> bytes:
    """Return frames that a worker may send: with every mark but the segment's own."""
    marks = [FIRST_MARK, mark_of(files[FIRST_NAME]), Random(SEED).randbytes(16)]
    places = [
        Place(mark, offset, synced)
        for mark in marks
        for offset, synced in ((0, 0), (0, 2**40), (2**40, 2**40))
    ]
    frames = [
        Frame(place, kind, 0, nbytes, LAST + 1, 0)
        for place in places
        for kind in Kind
        for nbytes in (0, 2**40)
    ]
    return b"".join(frame.pack() for frame in frames)


def test_what_a_worker_has_sent_makes_no_torn_end_a_loss(files: Files) -> None:
    """Whichever part of a record that was never synced is missing."""
    data = files[LAST_NAME]
    pieces = framed(
        Kind.APPLIED, b"header", [forged(files)], step=LAST + 1, place=end_of(data)
    )
    whole = b"".join(pieces)
    headless = bytes(FRAME_NBYTES) + whole[FRAME_NBYTES:]

    for tail in (whole[:-1], whole[:-1] + b"?", headless, whole[1:]):
        disk = disk_of({**files, LAST_NAME: data + tail})
        assert facts(replayed(disk)) == told(OLD, NEW)
        assert files_of(disk)[f"{LAST_NAME}.broken"] == tail


def test_what_a_worker_has_sent_hides_no_record_after_it(files: Files) -> None:
    """Wherever its push is damaged, that it was on the disk once is known."""
    sent = forged(files)
    layout = Layout.of({"w": np.zeros(len(sent), np.uint8)})
    body = Body(layout, [(0, np.frombuffer(sent, np.uint8))])
    disk = data_disk()
    path = write_log(disk, [[applied(step, body)] for step in range(1, 5)])
    data = files_of(disk)[FIRST_NAME]
    edges = starts(data)

    for place in (*range(FRAME_NBYTES + 20), -1):
        damaged = bytearray(data)
        damaged[edges[2] + place if place >= 0 else edges[3] - 1] ^= 1
        said = refusal({FIRST_NAME: bytes(damaged)}, trainable=layout)

        assert said.startswith(f"{path} at byte {edges[2]}: expected a whole record")


def test_a_repair_can_be_cut_short_anywhere(files: Files) -> None:
    """By a kill or a loss of power; nothing is lost, and the next one repairs it."""
    torn = {**files, LAST_NAME: files[LAST_NAME] + b"torn"}
    survivors: list[Callable[[VirtualDisk], VirtualDisk]] = [
        VirtualDisk.kill,
        VirtualDisk.crash,
    ]
    disk = disk_of(torn)
    begun = disk.operations
    replayed(disk)
    count = disk.operations - begun

    for number in range(count):
        for end in survivors:
            disk = disk_of(torn)
            disk.on_operation = failing(begun + number + 1, Crashed())
            with pytest.raises(Crashed):
                replayed(disk)
            disk = end(disk)
            left = files_of(disk)
            kept = [data for name, data in left.items() if ".broken" in name]
            assert left[LAST_NAME] == torn[LAST_NAME] or b"torn" in kept

            assert facts(replayed(disk)) == told(OLD, NEW)
            assert files_of(disk)[LAST_NAME] == files[LAST_NAME]


@pytest.mark.parametrize("failure", [Crashed(), OSError(5, "by plan")])
def test_what_was_read_lasts_though_it_had_not_been_synced(
    failure: BaseException,
) -> None:
    """Of a server that died before its sync, or because that had failed."""
    made = batches([3, 3])
    for seed in range(50):
        disk = data_disk(seed)
        log = Log(disk, FOLDER, GENERATION)
        log.begin(0)
        log.write(made[0])
        disk.on_operation = failing(disk.operations + 2, failure)
        with pytest.raises(type(failure)):
            log.write(made[1])
        disk = disk.kill()

        got = facts(replayed(disk))

        assert got == told(made)
        assert facts(replayed(disk.crash())) == got


def test_a_log_is_empty_if_nothing_was_ever_written_but_its_beginning(
    files: Files,
) -> None:
    """Cut short or not; one whose beginning is damaged is not empty."""
    data = files[LAST_NAME]
    edges = starts(data)
    damaged = b"?" + data[1:]

    long = encode(Start("f" * 32, mark_of(data)), step=STEP, place=Place())

    beginnings = (b"", data[:1], data[: edges[1] - 1], data[: edges[1]], bytes(50))
    for beginning in (*beginnings, b"".join(long)[:-1]):
        assert is_empty(disk_of({LAST_NAME: beginning}), FOLDER)
    for more in (data, data[: edges[1] + 1], damaged):
        assert not is_empty(disk_of({LAST_NAME: more}), FOLDER)
        second = {FIRST_NAME: data[: edges[1]], LAST_NAME: more}
        assert not is_empty(disk_of(second), FOLDER)
    assert is_empty(data_disk(), FOLDER)


# What is refused


def test_a_record_that_comes_twice_is_refused(files: Files) -> None:
    """As nobody can tell which of the two was meant."""
    data = files[LAST_NAME]

    again = records(data)[-1]
    said = refusal({**files, LAST_NAME: data + again})

    assert said == (
        f"{LAST_PATH} at byte {len(data)}: expected a record of that place, got the "
        f"one of byte {len(data) - len(again)}"
    )


@pytest.mark.parametrize("number", [1, 5])
def test_a_record_that_is_missing_is_refused(number: int, files: Files) -> None:
    """A push, or who has joined: each record knows where it was."""
    parts = records(files[LAST_NAME])
    place, following = (sum(map(len, parts[:count])) for count in (number, number + 1))

    said = refusal({**files, LAST_NAME: b"".join(parts[:number] + parts[number + 1 :])})

    where = f"{LAST_PATH} at byte {place}: expected a record of that place"
    assert said == f"{where}, got the one of byte {following}"


def test_a_step_that_is_missing_is_refused(files: Files) -> None:
    """Though all that was written is there."""
    disk = disk_of(files)
    write_log(disk, [[applied(LAST + 2)]], step=LAST)

    with pytest.raises(DataDirectoryError, match=r"expected step 45, got step 46$"):
        replayed(disk)


@pytest.mark.parametrize(
    ("gone", "after", "text"),
    [
        ([FIRST_NAME], 0, f"{FOLDER}: expected the steps from 1 on, got those from 25"),
        ([FIRST_NAME, LAST_NAME], 3, f"{FOLDER}: expected the steps from 4 on, got no"),
    ],
)
def test_a_segment_that_is_missing_is_refused(
    gone: list[str], after: int, text: str, files: Files
) -> None:
    """An empty folder too: a log that lost all would be a silent loss."""
    rest = {name: data for name, data in files.items() if name not in gone}

    assert refusal(rest, after).startswith(text)


def test_a_gap_between_segments_is_refused(files: Files) -> None:
    """And so are segments that overlap."""
    third = "00000003-step-50.log"
    gap = {**files, third: files[LAST_NAME]}
    overlap = {**files, "00000003-step-30.log": files[LAST_NAME]}

    text = f"{FOLDER / third}: expected the steps from 45 on, got those from 51 on"
    assert refusal(gap) == text
    assert refusal(overlap).endswith("the steps from 45 on, got those from 31 on")


def test_another_history_is_refused(files: Files) -> None:
    """A step means nothing in another generation."""
    where = f"{FIRST_PATH} at byte 0"

    assert refusal(files, generation="h") == f"{where}: expected generation h, got g"


def test_a_segment_of_another_name_is_refused(files: Files) -> None:
    """Its step is in its first record."""
    said = refusal({"00000001-step-3.log": files[FIRST_NAME]}, 3)

    assert said.endswith("at byte 0: expected step 3, got step 0")


def test_a_segment_begins_with_a_start_and_has_no_other(files: Files) -> None:
    """Without one nobody knows whose it is."""
    data = files[LAST_NAME]
    joined = encode(Joined("ann", "s"), step=STEP, place=Place())
    started = encode(Start(GENERATION, mark_of(data)), step=LAST, place=end_of(data))

    headless = refusal({**files, LAST_NAME: b"".join(joined)})
    twice = refusal({**files, LAST_NAME: data + b"".join(started)})

    text = "expected a START at byte 0 and nowhere else, got"
    assert headless == f"{LAST_PATH} at byte 0: {text} JOINED"
    assert twice == f"{LAST_PATH} at byte {len(data)}: {text} START"


@pytest.mark.parametrize(
    ("kind", "header", "body", "text"),
    [
        (Kind.START, b"\3\0\0\0g", b"", "format: expected 1 or 2, got 3, of another"),
        (Kind.START, b"\1\0", b"", "format: expected a number, got none"),
        (Kind.START, b"\1\0\0\0g", b"123", "mark: expected 16 bytes, got 3"),
        (9, b"", b"", "kind: expected one of 1, 2, 3, 4, 5, got 9"),
        (Kind.JOINED, b"\xff", b"", "Error parsing message"),
        (Kind.APPLIED, b"", b"", "body: expected 12 bytes, got 0"),
        (Kind.APPLIED, b"", b"123", "body: expected 12 bytes, got 3"),
        (Kind.LESSENED, b"12345678901", b"", "factor: expected 12 bytes, got 11"),
        (Kind.LESSENED, b"123456789012\xff", b"", "Error parsing message"),
        (Kind.LESSENED, b"123456789012", b"123", "body: expected 12 bytes, got 3"),
        (Kind.MEAN, b"", b"", "headers: expected some, got none"),
        (Kind.MEAN, b"\0\0\0", b"", "size: expected 4 bytes, got 3"),
        (Kind.MEAN, b"\2\0\0\0\0", b"", "header: expected 6 bytes, got 5"),
        (Kind.MEAN, b"\0\0\0\0", b"123", "body: expected 12 bytes, got 3"),
    ],
)
def test_what_cannot_be_read_is_refused_though_its_checksums_are_right(
    kind: int, header: bytes, body: bytes, text: str, files: Files
) -> None:
    """It is of a later version, or of another model, or somebody made it up."""
    data = files[LAST_NAME]
    made = b"".join(framed(kind, header, [body], step=LAST, place=end_of(data)))

    said = refusal({**files, LAST_NAME: data + made})

    assert said.startswith(f"{LAST_PATH} at byte {len(data)}: {text}")


def test_a_log_of_another_model_is_refused(files: Files) -> None:
    """Its pushes do not fit."""
    other = Layout.of({"w": np.zeros(4, np.float32)})

    said = refusal(files, trainable=other)

    assert said.endswith("body: expected 16 bytes, got 12")
    assert TRAINABLE.nbytes == 12
