"""The virtual disk does what a real one does, and loses only what a real one may."""

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kit.virtualdisk import Crashed, VirtualDisk, failing
from psserver.durability.disk import Disk, RealDisk, Writer

SEEDS = range(300)
HOME = Path("/home")
OLD, NEW = b"o" * 1000, b"n" * 20_000


def write(disk: Disk, path: Path, data: bytes, *, sync: bool = False) -> None:
    """Make a file."""
    writer = disk.create(path)
    writer.write([data])
    if sync:
        writer.sync()
    writer.close()


def write_each(disk: Disk, names: str) -> None:
    """Make a file of no bytes for each letter: two operations each."""
    for name in names:
        write(disk, HOME / name, b"")


def tree(disk: Disk, folder: Path) -> dict[str, Any]:
    """Read all that is in a folder: bytes for a file, a dictionary for a folder."""
    found: dict[str, Any] = {}
    for name in disk.names(folder):
        path = folder / name
        try:
            found[name] = disk.read(path, 0, disk.nbytes(path))
        except IsADirectoryError:
            found[name] = tree(disk, path)
    return found


def left(
    make: Callable[[VirtualDisk], object], prepare: Callable[[Disk], object]
) -> list[dict[str, Any]]:
    """Lose power after something was done on top of what had been synced.

    Returns:
        What each seed leaves.
    """
    found = []
    for seed in SEEDS:
        disk = VirtualDisk(Random(seed))
        disk.make_folder(HOME)
        prepare(disk)
        for folder in (Path("/"), HOME):
            disk.sync_folder(folder)
        make(disk)
        found.append(tree(disk.crash(), HOME))
    return found


def nothing(disk: Disk) -> None:
    """Prepare nothing."""


# Without faults


class Randomly:
    """Does the same random things, right and wrong ones, on any disk."""

    def __init__(self, disk: Disk, home: Path, seed: int) -> None:
        self._disk = disk
        self._home = home
        self._random = Random(seed)
        self._writers: list[Writer] = []

    def act(self) -> Any:
        """Do one thing; return what came of it."""
        acts = (self._open, self._write, self._sync, self._close, self._cut)
        names = (self._look, self._read, self._move, self._drop, self._fold)
        act = self._random.choice(
            (*acts, *names, self._write, self._truncate, self._again)
        )
        try:
            return act()
        except OSError as error:
            return error.errno

    def end(self) -> None:
        """Close all files."""
        for writer in self._writers:
            writer.close()

    def _path(self) -> Path:
        depth = self._random.choice((1, 1, 2, 3))
        return self._home.joinpath(*self._random.choices("abc", k=depth))

    def _writer(self) -> Writer:
        if not self._writers:
            raise OSError(errno.EBADF, "no file is open")
        return self._random.choice(self._writers)

    def _open(self) -> None:
        self._writers.append(self._disk.create(self._path()))

    def _write(self) -> None:
        count = self._random.choice((0, 1, 3))
        buffers = [self._random.randbytes(self._random.randrange(700))] * count
        self._writer().write(buffers)

    def _sync(self) -> None:
        self._writer().sync()
        self._disk.sync_folder(self._path())

    def _close(self) -> None:
        writer = self._writer()
        self._writers.remove(writer)
        writer.close()

    def _cut(self) -> None:
        self._writer().truncate(self._random.randrange(1000))

    def _truncate(self) -> None:
        self._disk.truncate(self._path(), self._random.randrange(1000))

    def _again(self) -> None:
        self._disk.sync(self._path(), self._random.randrange(1000))

    def _look(self) -> list[str]:
        return self._disk.names(self._path())

    def _read(self) -> tuple[int, bytes]:
        path, start = self._path(), self._random.randrange(300)
        return self._disk.nbytes(path), self._disk.read(path, start, 500)

    def _move(self) -> None:
        self._disk.rename(self._path(), self._path())

    def _drop(self) -> None:
        self._disk.remove(self._path())

    def _fold(self) -> None:
        self._disk.make_folder(self._path())


@pytest.mark.parametrize("seed", range(20))
def test_without_faults_it_does_what_a_real_disk_does(
    seed: int, tmp_path: Path
) -> None:
    """150 operations each: the same answers, the same errors, the same contents."""
    disks = RealDisk(), VirtualDisk(Random(seed))
    disks[1].make_folder(tmp_path)
    real, virtual = (Randomly(disk, tmp_path, seed) for disk in disks)

    for _ in range(150):
        assert virtual.act() == real.act()

    assert tree(disks[1], tmp_path) == tree(disks[0], tmp_path)
    real.end()


def test_a_writer_that_is_closed_writes_no_more(tmp_path: Path) -> None:
    """It says so as a real one does."""
    disk = VirtualDisk(Random(0))
    disk.make_folder(tmp_path)
    for each in (RealDisk(), disk):
        writer = each.create(tmp_path / "file")
        writer.close()

        with pytest.raises(OSError, match="Bad file descriptor"):
            writer.write([b"late"])


# A loss of power


def test_what_is_synced_lasts() -> None:
    """The bytes, by the file's sync; its name, by the folder's."""

    def make(disk: Disk) -> None:
        write(disk, HOME / "new", NEW, sync=True)
        disk.sync_folder(HOME)

    found = left(make, lambda disk: write(disk, HOME / "old", OLD, sync=True))

    assert found == [{"old": OLD, "new": NEW}] * len(SEEDS)


def test_bytes_that_are_not_synced_are_lost_wholly_partly_or_not_at_all() -> None:
    """Partly: up to some byte, or sector by sector."""

    def make(disk: Disk) -> None:
        write(disk, HOME / "file", NEW)
        disk.sync_folder(HOME)

    found = [names["file"] for names in left(make, nothing)]

    assert all(set(data) <= {0, *NEW} for data in found)
    assert {len(data) for data in found} > {0, len(NEW)}
    assert NEW in found
    assert any(10_000 < len(data) < len(NEW) and 0 not in data for data in found)
    holes = [data for data in found if 0 in data]
    assert any(data.rstrip(b"\0") != data.replace(b"\0", b"") for data in holes)
    for data in holes:
        starts = range(0, len(data), 512)
        assert all(len(set(data[start : start + 512])) == 1 for start in starts)


def test_of_several_changes_each_sector_keeps_one() -> None:
    """A file that was cut and written again: never bytes that it has not had."""

    def make(disk: Disk) -> None:
        writer = disk.create(HOME / "file")
        writer.write([OLD])
        writer.sync()
        disk.sync_folder(HOME)
        writer.truncate(512)
        writer.write([NEW])

    found = [names["file"] for names in left(make, nothing)]

    assert all(data[:512] == OLD[:512] for data in found)
    assert {bytes({*data[512:1000]}) for data in found} == {
        *(b"", b"o", b"n", b"\0"),  # Cut short, not cut, written again, and lost.
    }
    assert OLD in found
    assert OLD[:512] + NEW in found


def test_a_name_that_is_not_synced_may_be_lost_though_its_file_is() -> None:
    """Or it is there, and then so are the bytes."""
    found = left(lambda disk: write(disk, HOME / "file", NEW, sync=True), nothing)

    assert {} in found
    assert {"file": NEW} in found
    assert all(names in ({}, {"file": NEW}) for names in found)


def test_names_of_one_folder_change_in_order() -> None:
    """A creation, a renaming, another creation, a removal: all up to some moment."""

    def make(disk: Disk) -> None:
        write(disk, HOME / "a", b"", sync=True)
        disk.rename(HOME / "a", HOME / "b")
        write(disk, HOME / "c", b"", sync=True)
        disk.remove(HOME / "b")

    def make_and_sync(disk: Disk) -> None:
        make(disk)
        disk.sync_folder(HOME)

    found = {"".join(names) for names in left(make, nothing)}
    synced = {"".join(names) for names in left(make_and_sync, nothing)}

    assert found == {"", "a", "b", "bc", "c"}
    assert synced == {"c"}


def test_a_file_that_moves_to_another_folder_is_in_one_of_them() -> None:
    """If the first has its name at all; a sync of the other settles both."""

    def prepare(disk: Disk) -> None:
        for name in ("from", "to"):
            disk.make_folder(HOME / name)

    def move(disk: Disk) -> None:
        write(disk, HOME / "from/file", NEW, sync=True)
        disk.rename(HOME / "from/file", HOME / "to/file")

    def move_and_sync(disk: Disk) -> None:
        move(disk)
        disk.sync_folder(HOME / "to")

    file, empty = {"file": NEW}, dict[str, bytes]()
    moved = {"from": empty, "to": file}

    found = left(move, prepare)
    synced = left(move_and_sync, prepare)

    for expected in ({"from": file, "to": empty}, moved):
        assert expected in found
    assert all(len(names["from"]) + len(names["to"]) < 2 for names in found)
    assert synced == [moved] * len(SEEDS)


def test_what_was_removed_or_replaced_may_come_back_whole() -> None:
    """Until the folder is synced."""

    def prepare(disk: Disk) -> None:
        write(disk, HOME / "old", OLD, sync=True)
        write(disk, HOME / "new", NEW, sync=True)

    def replace(disk: Disk) -> None:
        disk.rename(HOME / "new", HOME / "old")

    found = left(replace, prepare)

    assert all(names in ({"old": OLD, "new": NEW}, {"old": NEW}) for names in found)
    assert {len(names) for names in found} == {1, 2}


def test_a_folder_that_was_removed_may_come_back_with_some_of_its_files() -> None:
    """It was emptied first: it never comes back with fewer than that allows."""

    def prepare(disk: Disk) -> None:
        disk.make_folder(HOME / "folder")
        for name in "abc":
            write(disk, HOME / "folder" / name, OLD, sync=True)
        disk.sync_folder(HOME / "folder")

    found = left(lambda disk: disk.remove(HOME / "folder"), prepare)

    kept = {"".join(names.get("folder", "-")) for names in found}
    assert kept == {"abc", "bc", "c", "", "-"}


def test_a_folder_whose_own_name_is_lost_takes_its_files_along() -> None:
    """Whatever was synced in it."""

    def make(disk: Disk) -> None:
        disk.make_folder(HOME / "folder")
        write(disk, HOME / "folder/file", NEW, sync=True)
        disk.sync_folder(HOME / "folder")

    found = left(make, nothing)

    assert all(names in ({}, {"folder": {"file": NEW}}) for names in found)
    assert {} in found


def test_after_a_sync_that_failed_no_later_one_proves_anything() -> None:
    """As on Linux: the pages that could not be written are taken for clean."""

    def make(disk: VirtualDisk) -> None:
        writer = disk.create(HOME / "file")
        disk.sync_folder(HOME)
        writer.write([NEW])
        disk.on_operation = failing(disk.operations + 1, OSError(errno.EIO, "broken"))
        with pytest.raises(OSError, match="broken"):
            writer.sync()
        writer.sync()

    found = left(make, nothing)

    assert {"file": b""} in found
    assert {"file": NEW} in found


def test_what_is_written_again_lasts_even_after_a_sync_that_failed() -> None:
    """But not what comes before it."""

    def make(disk: VirtualDisk) -> None:
        writer = disk.create(HOME / "file")
        disk.sync_folder(HOME)
        writer.write([NEW])
        disk.on_operation = failing(disk.operations + 1, OSError(errno.EIO, "broken"))
        with pytest.raises(OSError, match="broken"):
            writer.sync()
        disk.sync(HOME / "file", 600)

    found = [names["file"] for names in left(make, nothing)]

    assert all(data[600:] == NEW[600:] for data in found)
    assert {bytes({*data[:512]}) for data in found} == {b"n", b"\0"}


def test_the_same_seed_loses_the_same() -> None:
    """Two runs of everything above."""

    def make(disk: Disk) -> None:
        for name in "abc":
            write(disk, HOME / name, NEW)

    assert left(make, nothing) == left(make, nothing)


# The death of a process


def test_a_process_that_is_killed_loses_nothing_until_the_power_goes() -> None:
    """What it had not synced is then as much at risk as before."""
    found = []
    for seed in SEEDS:
        disk = VirtualDisk(Random(seed))
        disk.make_folder(HOME)
        disk.sync_folder(Path("/"))
        write(disk, HOME / "file", NEW)

        survivor = disk.kill()

        assert tree(survivor, HOME) == {"file": NEW}
        found.append(tree(survivor.crash(), HOME))
    assert {} in found


def test_a_dead_process_does_nothing_more() -> None:
    """Neither with the disk nor with a file that it had opened."""
    disk = VirtualDisk(Random(0))
    disk.make_folder(HOME)
    writer = disk.create(HOME / "file")

    survivor = disk.kill()

    with pytest.raises(Crashed):
        writer.write([NEW])
    with pytest.raises(Crashed):
        disk.make_folder(HOME / "more")
    assert tree(survivor, HOME) == {"file": b""}


# Plans


@pytest.mark.parametrize("number", range(1, 7))
def test_a_plan_crashes_a_process_at_any_operation(number: int) -> None:
    """What came before it is done, and nothing that comes after it."""
    disk = VirtualDisk(Random(0))
    disk.make_folder(HOME)
    disk.on_operation = failing(1 + number, Crashed())

    with pytest.raises(Crashed):
        write_each(disk, "abcd")

    assert disk.operations == 1 + number
    with pytest.raises(Crashed):
        disk.names(HOME)
    assert "".join(tree(disk.kill(), HOME)) == "abcd"[: number // 2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_write_that_fails_has_written_some_bytes(number: int) -> None:
    """Any number of them, from none to all; other operations fail as a whole."""
    sizes = set()
    for seed in SEEDS:
        disk = VirtualDisk(Random(seed))
        disk.make_folder(HOME)
        disk.on_operation = failing(3, OSError(number, "by plan"))

        with pytest.raises(OSError, match="by plan") as raised:
            write(disk, HOME / "file", b"12")

        assert raised.value.errno == number
        sizes.add(disk.nbytes(HOME / "file"))
        disk.on_operation = failing(disk.operations + 1, OSError(number, "by plan"))
        with pytest.raises(OSError, match="by plan"):
            disk.create(HOME / "more")
        assert disk.names(HOME) == ["file"]
    assert sizes == {0, 1, 2}


def test_a_full_disk_takes_what_fits_and_more_once_there_is_room() -> None:
    """The capacity may change, or a file go."""
    disk = VirtualDisk(Random(0), capacity=1000)
    disk.make_folder(HOME)
    write(disk, HOME / "old", b"o" * 900)
    writer = disk.create(HOME / "new")

    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device"):
            writer.write([b"n" * 200])
    disk.remove(HOME / "old")
    writer.write([b"n" * 200])
    disk.capacity = 100
    writer.truncate(50)
    writer.write([b"n" * 50])

    assert tree(disk, HOME) == {"new": b"n" * 100}
