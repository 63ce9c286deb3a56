"""The log on the disk: what it has taken is there, what it has refused never was."""

import errno
import resource
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import ml_dtypes
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
from kit.virtualdisk import Crashed, Operation, VirtualDisk, failing
from psserver.changes import Applied, Change
from psserver.durability.disk import RealDisk
from psserver.durability.errors import DiskFailedError, DiskFullError
from psserver.durability.frame import Place
from psserver.durability.log import Log
from psserver.durability.records import encode
from pswire.body import Body
from pswire.encoding import BFLOAT16, Encoding
from pswire.layout import Layout

Size = Callable[[int, int], int]

FIRST, FAILED, LATER = batches([4, 5, 3])
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
NO_DESCRIPTOR = [errno.EMFILE, errno.ENFILE]
ANY = [*FULL, *NO_DESCRIPTOR, errno.ENOMEM, errno.EACCES, errno.EIO]
REFUSALS = {
    "make_folder": ANY,
    "names": ANY,
    "create": ANY,
    "sync_folder": NO_DESCRIPTOR,
    "write": [*FULL, errno.ENOMEM],
}
"""What does no harm: nothing is written yet, or it can be taken back."""


@pytest.fixture
def disk() -> VirtualDisk:
    """Make a disk with a data directory."""
    return data_disk()


def begun(disk: VirtualDisk, step: int = 0) -> Log:
    """Make a log that has begun."""
    log = Log(disk, FOLDER, GENERATION)
    log.begin(step)
    return log


def calm(operation: Operation) -> None:
    """Let everything succeed."""


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Let this process have no more of something."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def failing_next(disk: VirtualDisk, kind: str, number: int) -> Iterator[None]:
    """Let the next operation of a kind fail."""

    def plan(operation: Operation) -> None:
        if operation.kind == kind:
            disk.on_operation = calm
            raise OSError(number, "by plan")

    disk.on_operation = plan
    yield
    disk.on_operation = calm


# What is taken


LAYOUT = Layout.of(
    {
        "w": np.zeros((3, 2), np.float32),
        "half": np.zeros(3, np.float16),
        "brain": np.zeros(5, ml_dtypes.bfloat16),
        "none": np.zeros((0, 2), np.float32),
        "scalar": np.zeros((), np.float64),
    }
)
OTHER = Layout(LAYOUT.arrays[::-1])
EMPTY = Layout.of({"none": np.zeros((2, 0), np.float32)})


@pytest.mark.parametrize(
    ("layout", "encoding"),
    [
        (None, Encoding()),
        (None, Encoding(BFLOAT16)),
        (None, Encoding(None, (2, 0, 5, 0, 1))),
        (OTHER, Encoding(BFLOAT16, (0, 0, 1, 3, 6))),
        (EMPTY, Encoding()),
    ],
    ids=["plain", "bf16", "top-k", "own layout", "empty"],
)
@pytest.mark.parametrize("value", [None, 0.5, float("inf")])
def test_a_push_is_read_as_it_travelled(
    layout: Layout | None, encoding: Encoding, value: float | None, disk: VirtualDisk
) -> None:
    """Bit for bit, in memory that JAX can use."""
    travelled = encoding.layout(layout or LAYOUT)
    data = np.frombuffer(Random(7).randbytes(travelled.nbytes), np.uint8).copy()
    data[travelled.gaps] = 0
    body = Body(travelled, [(0, data)])
    push = applied(
        1, body, session="ünï", layout=layout, value=value, encoding=encoding
    )
    write_log(disk, [[push]])

    got = replayed(disk, trainable=LAYOUT)

    assert facts(got) == facts([push])
    assert isinstance(got[0], Applied)
    for _, memory in got[0].body.runs:
        assert memory.ctypes.data % 64 == 0
        assert not memory.flags.writeable


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 5e-324, 0.0, 1.0])
def test_a_push_s_factor_is_kept_to_the_last_bit(
    factor: float, disk: VirtualDisk
) -> None:
    """Beside pushes that counted in full, whose records are as they ever were."""
    pushes = [applied(1), applied(2, factor=factor, value=0.5), applied(3)]

    write_log(disk, [pushes])

    assert facts(replayed(disk)) == facts(pushes)


def test_how_much_a_push_was_applied_without_is_kept(disk: VirtualDisk) -> None:
    """Beside what it was applied with, in its own layout."""
    push = applied(1, layout=TRAINABLE, dropped_variables=2**32 - 1)

    write_log(disk, [[push, applied(2)]])

    assert facts(replayed(disk)) == facts([push, applied(2)])


def test_all_pushes_that_made_a_step_together_are_kept(disk: VirtualDisk) -> None:
    """In their order, each with its session, its number and its loss."""
    alone = applied(1, session="a", value=0.5)
    others = [
        replace(alone.header, session="ü", seq=2**64 - 1, value=None),
        replace(alone.header, session="c", encoding=Encoding(BFLOAT16, (1, 0))),
    ]
    together = replace(alone, others=tuple(others))

    write_log(disk, [[together, applied(2)]])

    assert facts(replayed(disk)) == facts([together, applied(2)])


def test_what_only_the_caller_needs_is_left_out(disk: VirtualDisk) -> None:
    """Times, and what the answer was to travel as."""
    push = applied(1)
    timed = Applied(
        1,
        replace(
            push.header, served_at=1.0, held_s=2.0, snapshot_encoding=Encoding(BFLOAT16)
        ),
        push.body,
    )

    write_log(disk, [[timed]])

    assert facts(replayed(disk)) == facts([push])


@pytest.mark.parametrize("runs", [1, 3])
def test_a_large_body_is_not_copied(runs: int) -> None:
    """100 MB, in one run or in several."""
    layout = Layout.of(
        {name: np.zeros(25_000_000 // runs, np.float32) for name in "abc"[:runs]}
    )
    memory = np.zeros(layout.nbytes, np.uint8)
    edges = [*layout.offsets, layout.nbytes]
    body = Body(layout, [(start, memory[start:end]) for start, end in pairwise(edges)])

    frame, *pieces = encode(applied(1, body), step=1, place=Place())

    assert len(frame) < 1000
    assert sum(map(len, pieces)) == layout.nbytes
    copied = sum(
        len(piece)
        for piece in pieces
        if not np.shares_memory(np.frombuffer(piece, np.uint8), memory)
    )
    assert copied <= 2**20 * (runs - 1)


def test_a_batch_is_written_at_once_and_synced_once(disk: VirtualDisk) -> None:
    """However many changes it has; nothing to write takes no sync."""
    log = begun(disk)
    syncs = log.syncs
    kinds: list[str] = []
    disk.on_operation = lambda operation: kinds.append(operation.kind)

    log.write([applied(step) for step in range(1, 20)])
    log.write([])

    assert kinds == ["write", "sync"]
    assert log.syncs == syncs + 1


def test_it_tells_how_much_there_is_since_it_began(disk: VirtualDisk) -> None:
    """In bytes, of whatever was written."""
    log = begun(disk)
    log.write(FIRST)
    first = log.nbytes
    log.write(FIRST)

    assert log.nbytes == 2 * first > 0
    log.begin(3)
    assert log.nbytes == 0


def test_a_segment_that_was_asked_for_begins_with_the_next_batch(
    disk: VirtualDisk,
) -> None:
    """Once, and not before there is something to write."""
    log = begun(disk)
    log.write(FIRST)
    log.turn()
    log.write([])
    assert disk.names(FOLDER) == ["00000001-step-0.log"]

    log.write(FAILED)
    nbytes = log.nbytes
    log.write(LATER)

    assert disk.names(FOLDER) == ["00000001-step-0.log", "00000002-step-3.log"]
    assert 0 < nbytes < log.nbytes < 2 * nbytes
    assert facts(replayed(disk, 3)) == facts([*FAILED, *LATER])


def test_a_segment_may_be_asked_for_while_a_batch_is_written(
    disk: VirtualDisk,
) -> None:
    """That one goes where it was to go, and nobody waits."""
    log = begun(disk)

    def turn(operation: Operation) -> None:
        log.turn()

    disk.on_operation = turn
    log.write(FIRST)
    disk.on_operation = calm

    log.write(INSTEAD)

    assert disk.names(FOLDER) == ["00000001-step-0.log", "00000002-step-3.log"]
    assert facts(replayed(disk, 3)) == facts(INSTEAD)


def test_on_a_real_disk_it_does_the_same(tmp_path: Path) -> None:
    """A torn end, and a file that may grow no more, which is true of the next too."""
    disk, folder = RealDisk(), tmp_path / "log"
    path = write_log(disk, [FIRST], folder=folder)
    with path.open("ab") as file:
        file.write(b"torn")
    assert facts(replayed(disk, folder=folder)) == facts(FIRST)

    with closing(Log(disk, folder, GENERATION)) as log:
        log.begin(3)
        log.write(FAILED)
        written = (folder / "00000002-step-3.log").stat().st_size
        with limited(resource.RLIMIT_FSIZE, written + 50):
            with pytest.raises(DiskFullError, match="File too large"):
                log.write([applied(8), applied(9)])
            with pytest.raises(DiskFullError, match="1048576 bytes"):
                log.probe()
        log.probe()
        with limited(resource.RLIMIT_NOFILE, 0):
            with pytest.raises(DiskFullError, match="Too many open files"):
                log.write([applied(8)])
            with pytest.raises(DiskFullError, match="Too many open files"):
                log.probe()
        log.probe()
        log.write(LATER)

    assert facts(replayed(disk, folder=folder)) == facts([*FIRST, *FAILED, *LATER])
    assert sorted(each.name for each in folder.iterdir()) == [
        "00000001-step-0.log",
        "00000001-step-0.log.broken",
        "00000002-step-3.log",
        "00000003-step-7.log",
    ]
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


# A full disk


INSTEAD = batches([3], step=3)[0]
"""What comes after the first batch when the one that failed did not."""


def filled(room: int) -> tuple[VirtualDisk, Log]:
    """Make a log of one batch, and a disk that has room for so many bytes more."""
    disk = data_disk(room)
    log = begun(disk)
    log.write(FIRST)
    sizes = [disk.nbytes(FOLDER / name) for name in disk.names(FOLDER)]
    disk.capacity = sum(sizes) + room
    return disk, log


def test_a_full_disk_takes_a_batch_wholly_or_not_at_all() -> None:
    """With room for any number of its bytes; nothing of it comes back after a crash."""
    nbytes = sum(len(b) for c in FAILED for b in encode(c, step=0, place=Place()))

    for room in range(nbytes):
        print("room", room)
        disk, log = filled(room)
        with pytest.raises(DiskFullError, match=rf"to write {nbytes} bytes, got .*28"):
            log.write(FAILED)
        assert facts(replayed(disk.crash())) == facts(FIRST)

        disk, log = filled(room)
        with pytest.raises(DiskFullError, match=f"^{FOLDER}"):
            log.write(FAILED)
        with pytest.raises(DiskFullError, match="to write 1048576 bytes"):
            log.probe()
        disk.capacity = None
        log.probe()
        log.write(INSTEAD)
        assert facts(replayed(disk.crash())) == facts([*FIRST, *INSTEAD])

    disk, log = filled(nbytes)
    log.write(FAILED)
    assert facts(replayed(disk)) == facts([*FIRST, *FAILED])


@pytest.mark.parametrize("number", FULL)
def test_the_log_goes_on_in_a_new_segment(number: int, disk: VirtualDisk) -> None:
    """As the old one may be as large as a file can be."""
    log = begun(disk)
    log.write(FIRST)
    with failing_next(disk, "write", number), pytest.raises(DiskFullError):
        log.write(FAILED)

    log.write(INSTEAD)

    assert disk.names(FOLDER) == ["00000001-step-0.log", "00000002-step-3.log"]
    assert facts(replayed(disk)) == facts([*FIRST, *INSTEAD])


def test_a_batch_that_never_fits_leaves_no_files_behind(disk: VirtualDisk) -> None:
    """A segment that holds nothing yet is as good as a new one."""
    log = begun(disk)
    log.write(FIRST)
    kinds = [""]

    def plan(operation: Operation) -> None:
        kinds.append(operation.kind)
        if kinds[-2:] != ["create", "write"] and operation.kind == "write":
            raise OSError(errno.EFBIG, "by plan")

    disk.on_operation = plan
    for _ in range(5):
        with pytest.raises(DiskFullError):
            log.write(FAILED)

    disk.on_operation = calm
    log.write(INSTEAD)
    assert disk.names(FOLDER) == ["00000001-step-0.log", "00000002-step-3.log"]
    assert facts(replayed(disk)) == facts([*FIRST, *INSTEAD])


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind, each in REFUSALS.items() for n in each]
)
def test_a_segment_that_cannot_begin_is_begun_by_a_later_write(
    kind: str, number: int
) -> None:
    """Neither is the old one written to, which may be removed by now."""
    for seed in range(5):
        disk = data_disk(seed)
        log = begun(disk)
        log.write(FIRST)
        log.turn()

        with failing_next(disk, kind, number), pytest.raises(DiskFullError):
            log.write(FAILED)
        log.write(INSTEAD)

        disk = disk.crash()
        assert disk.names(FOLDER) == ["00000001-step-0.log", "00000002-step-3.log"]
        assert facts(replayed(disk, 3)) == facts(INSTEAD)
        assert facts(replayed(disk)) == facts([*FIRST, *INSTEAD])


def test_a_probe_needs_the_room_that_there_was_none_for(disk: VirtualDisk) -> None:
    """Else pushes that are too large would be taken, and refused, again and again."""
    large = Layout.of({"w": np.zeros(3 * 2**20, np.uint8)})
    batch = [applied(1, Body.zeros(large))]
    log = begun(disk)
    [name] = disk.names(FOLDER)
    begin = disk.nbytes(FOLDER / name)

    for room in (2**20, 3 * 2**20):
        disk.capacity = begin + room
        with pytest.raises(DiskFullError, match="to write 3145"):
            log.write(batch)
        with pytest.raises(DiskFullError, match="to write 4194304 bytes"):
            log.probe()
    disk.capacity = begin + 4 * 2**20
    log.probe()
    log.write(batch)

    assert facts(replayed(disk, trainable=large)) == facts(batch)


def test_a_probe_takes_little_memory(tmp_path: Path) -> None:
    """However large it is."""
    large = Layout.of({"w": np.zeros(2**25, np.uint8)})
    batch = [applied(1, Body.zeros(large))]
    with closing(Log(RealDisk(), tmp_path / "log", GENERATION)) as log:
        log.begin(0)
        with limited(resource.RLIMIT_FSIZE, 2**20), pytest.raises(DiskFullError):
            log.write(batch)
        with limited(resource.RLIMIT_FSIZE, 2**25), pytest.raises(DiskFullError):
            log.probe()

        tracemalloc.start()
        log.probe()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 2**20


def test_a_probe_is_gone_with_its_server(disk: VirtualDisk) -> None:
    """Wherever that is killed; an older one's, of which there is a name, goes too."""
    log = begun(disk)
    first = disk.operations
    log.probe()
    count = disk.operations - first
    places = set()

    for number in range(1, count + 1):
        disk = data_disk()
        log = begun(disk)
        disk.on_operation = failing(disk.operations + number, Crashed())
        with pytest.raises(Crashed):
            log.probe()
        disk = disk.kill()
        places.add("probe" in disk.names(FOLDER))
        begun(disk).probe()
        assert "probe" not in disk.names(FOLDER)
        if number == count:
            assert places == {False, True}


@pytest.mark.parametrize("kind", ["names", "create", "remove", "write", "sync"])
def test_a_probe_that_fails_for_whatever_reason_may_be_tried_again(
    kind: str, disk: VirtualDisk
) -> None:
    """It has nothing that anybody was told of."""
    log = begun(disk)
    failing = failing_next(disk, kind, errno.EIO)
    with failing, pytest.raises(DiskFullError, match="by plan"):
        log.probe()

    log.probe()
    log.write(FIRST)

    assert disk.names(FOLDER) == ["00000001-step-0.log"]


# A disk that fails


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("sync", errno.EIO),
        ("sync", errno.ENOSPC),
        ("sync_folder", errno.EIO),
        ("sync_folder", errno.ENOSPC),
        ("write", errno.EIO),
    ],
)
def test_a_failure_is_final(kind: str, number: int, disk: VirtualDisk) -> None:
    """Whatever is tried afterwards is refused without a look at the disk."""
    log = begun(disk)
    log.write(FIRST)
    text = "expected a disk that keeps all, got"
    with failing_next(disk, kind, number), pytest.raises(DiskFailedError, match=text):
        log.begin(3)
    operations = disk.operations

    calls: list[Callable[[], None]] = [
        *(lambda: log.write(INSTEAD), lambda: log.begin(3), log.probe)
    ]
    for again in calls:
        with pytest.raises(DiskFailedError, match="by plan"):
            again()

    assert disk.operations == operations


@pytest.mark.parametrize("kind", ["truncate", "sync"])
def test_a_batch_that_cannot_be_taken_back_is_a_failure(
    kind: str, disk: VirtualDisk
) -> None:
    """Its bytes might come back."""
    log = begun(disk)
    log.write(FIRST)

    def plan(operation: Operation) -> None:
        if operation.kind in ("write", kind):
            raise OSError(errno.ENOSPC, "by plan")

    disk.on_operation = plan

    with pytest.raises(DiskFailedError, match="by plan"):
        log.write(FAILED)


# The end


def test_a_log_that_is_closed_takes_nothing_any_more(disk: VirtualDisk) -> None:
    """Nor does it touch the disk."""
    log = begun(disk)
    log.write(FIRST)
    log.close()
    operations = disk.operations

    calls: list[Callable[[], None]] = [
        *(lambda: log.write(INSTEAD), lambda: log.begin(3), log.probe)
    ]
    for call in calls:
        log.turn()
        with pytest.raises(DiskFailedError, match=f"^{FOLDER}: the log is closed$"):
            call()
    log.close()

    assert disk.operations == operations


def test_a_failure_is_still_told_of_once_the_log_is_closed(disk: VirtualDisk) -> None:
    """It says more."""
    log = begun(disk)
    with failing_next(disk, "sync", errno.EIO), pytest.raises(DiskFailedError):
        log.write(FIRST)
    log.close()

    with pytest.raises(DiskFailedError, match="by plan"):
        log.write(FIRST)


def test_the_end_waits_for_a_batch_that_is_written(disk: VirtualDisk) -> None:
    """Its file is not closed below it."""
    log = begun(disk)
    closing = threading.Thread(target=log.close)

    def close(operation: Operation) -> None:
        disk.on_operation = calm
        closing.start()
        closing.join(0.2)  # It should not end: the batch has not.

    disk.on_operation = close
    log.write(FIRST)
    closing.join()

    assert facts(replayed(disk)) == facts(FIRST)


# Segments that are no longer needed


@pytest.mark.parametrize(
    ("step", "number", "left"),
    [
        (-1, 5, [0, 3, 3, 5]),
        (0, 5, [0, 3, 3, 5]),
        (2, 5, [0, 3, 3, 5]),
        (3, 5, [3, 3, 5]),
        (4, 5, [3, 3, 5]),
        (5, 5, [5]),
        (9, 5, [5]),
        (5, 3, [3, 5]),
        (5, 1, [0, 3, 3, 5]),
    ],
)
def test_what_a_checkpoint_covers_is_removed(
    step: int, number: int, left: list[int], disk: VirtualDisk
) -> None:
    """Where those are who joined since, it knows by a segment's number."""
    log = begun(disk)
    log.write(FIRST)
    log.begin(3)
    log.begin(3)
    log.write(INSTEAD)
    log.begin(5)
    whole = [facts(replayed(disk, after, number=number)) for after in range(6)]

    log.remove_covered(step, number)

    names = [f"{4 - n:08}" for n in range(len(left))][::-1]
    assert disk.names(FOLDER) == [
        f"{number}-step-{start}.log" for number, start in zip(names, left, strict=True)
    ]
    for after in range(max(0, step), 6):
        assert facts(replayed(disk, after, number=number)) == whole[after]


# Lives and deaths


class Lives:
    """Servers, one after another, that write a log on a disk that fails at random.

    Attributes:
        kept: What somebody was told of.
        unsure: What a server was about to tell of when it died.
    """

    def __init__(self, seed: int) -> None:
        self.kept: list[Change] = []
        self.unsure: Sequence[Change] = ()
        self._random = Random(seed)
        self._disk = data_disk(seed)
        write_log(self._disk, [])

    def live(self) -> None:
        """Live through one server's life."""
        self._disk.on_operation = self._fail if self._random.random() < 0.9 else calm
        with suppress(Crashed, OSError):
            self._serve()
        end = self._random.choice((VirtualDisk.kill, VirtualDisk.crash))
        self._disk = end(self._disk)

    def end(self) -> None:
        """Read the log a last time."""
        self._check(replayed(self._disk))

    def _check(self, got: Sequence[Change]) -> None:
        """All that was told of is there, and of the rest no more than its beginning."""
        more = len(got) - len(self.kept)
        assert 0 <= more <= len(self.unsure)
        self.kept += self.unsure[:more]
        assert facts(got) == facts(self.kept)
        self.unsure = ()

    def _serve(self) -> None:
        self._check(replayed(self._disk))
        log = Log(self._disk, FOLDER, GENERATION)
        log.begin(self._step)
        for _ in range(6):
            with suppress(DiskFullError):
                if self._random.random() < 0.2:
                    log.begin(self._step)
                self._write(log)

    def _write(self, log: Log) -> None:
        [batch] = batches([self._random.randrange(1, 5)], self._step)
        self.unsure = batch
        try:
            log.write(batch)
        except DiskFullError:
            self.unsure = ()
            raise
        self.kept += batch
        self.unsure = ()

    @property
    def _step(self) -> int:
        return sum(isinstance(change, Applied) for change in self.kept)

    def _fail(self, operation: Operation) -> None:
        if self._random.random() < 0.03:
            numbers = [errno.EIO, *REFUSALS.get(operation.kind, ())]
            failures = [OSError(n, "by plan") for n in numbers]
            raise self._random.choice([Crashed(), *failures])


@pytest.mark.soak
def test_nothing_that_was_told_of_is_lost_and_nothing_refused_comes_back(
    size: Size,
) -> None:
    """Each seed: ten servers, killed or without power, on a disk full at times."""
    written = 0

    for seed in range(size(150, 10_000)):
        print("seed", seed)
        lives = Lives(seed)
        for _ in range(10):
            lives.live()
        lives.end()
        written += len(lives.kept)

    assert written > 20 * size(150, 10_000)
