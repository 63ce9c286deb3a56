"""Checkpoints on a disk that tears, fails and lies."""

import errno
import itertools
import random
import re
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from kit.changes import FOLDER, data_disk
from kit.virtualdisk import Crashed, Operation, VirtualDisk, failing
from psserver.checkpoint import Checkpoint
from psserver.durability import keptcounters, sealed
from psserver.durability.checkpoints import Checkpoints
from psserver.durability.disk import RealDisk
from psserver.durability.errors import DataDirectoryError

Make = Callable[..., Checkpoint]

_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"
_FEW = (np.dtype(np.float32), np.dtype(np.bool_))
_FOLDER = FOLDER.with_name("checkpoints")
_SEED = 20261123


class Unsynced(RealDisk):
    """Takes no time to sync folders, where a thousand are and none is to last."""

    def sync_folder(self, folder: Path) -> None:
        pass


class Flipping(RealDisk):
    """Gives the files of one name back with another first byte."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, path: Path, start: int, nbytes: int) -> bytes:
        data = super().read(path, start, nbytes)
        return bytes([data[0] ^ 1]) + data[1:] if path.name == self._name else data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name the folder that the checkpoints are in."""
    return tmp_path / "checkpoints"


@pytest.fixture
def checkpoints(folder: Path) -> Checkpoints:
    """Make checkpoints, and put them on the real disk."""
    return Checkpoints(RealDisk(), folder)


@pytest.fixture
def two(checkpoints: Checkpoints, make_checkpoint: Make) -> Path:
    """Save one of step 7, then one of step 8, and return the newer one's folder."""
    checkpoints.save(make_checkpoint(seed=1, step=7, dtypes=_FEW))
    return checkpoints.save(make_checkpoint(seed=2, step=8, dtypes=_FEW))


def told(checkpoint: Checkpoint | None) -> list[Any]:
    """Return all that there is in a checkpoint, as values that can be compared."""
    assert checkpoint is not None
    arrays = [
        [(name, a.dtype, a.shape, a.tobytes()) for name, a in mapping.items()]
        for mapping in (checkpoint.variables, checkpoint.slots.arrays)
    ]
    return [
        *(arrays, checkpoint.variables.layout),
        *(checkpoint.generation, checkpoint.step, checkpoint.slots.weak),
        *(checkpoint.initializer, checkpoint.rule, checkpoint.max_staleness),
        *(checkpoint.max_grad_norm, repr(checkpoint.sessions)),
        *(checkpoint.staleness_policy, checkpoint.server),
        keptcounters.to_json(checkpoint.counters),
    ]


# What is kept


@pytest.mark.parametrize("seed", range(12))
def test_all_of_a_checkpoint_comes_back(
    seed: int, checkpoints: Checkpoints, folder: Path, make_checkpoint: Make
) -> None:
    """Bit for bit and in the same order, to another process."""
    kept = make_checkpoint(seed, step=seed**17)

    checkpoints.save(kept)
    got = Checkpoints(RealDisk(), folder).load_newest(now=3.0)

    assert told(got) == told(kept)
    assert got is not None
    assert not any(a.flags.writeable for a in got.variables.values() if a.size)
    seen = [row.last_seen_s for row in got.counters.workers(now=5.0, uptime_s=1.0)]
    assert seen == [2.0, 2.0, 2.0]


def test_the_arrays_open_with_the_plain_library(
    checkpoints: Checkpoints, make_checkpoint: Make
) -> None:
    """Variables have their names after a prefix, slots have their own."""
    kept = make_checkpoint()

    path = checkpoints.save(kept)

    expected = {f"variables/{name}": array for name, array in kept.variables.items()}
    expected |= kept.slots.arrays
    got = load_file(path / _ARRAYS)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


def test_numbers_rise_and_the_good_ones_are_known(
    two: Path, checkpoints: Checkpoints, folder: Path, make_checkpoint: Make
) -> None:
    """Of one step there may be several; who comes later has read none yet."""
    later = Checkpoints(RealDisk(), folder)
    later.load_newest(now=0.0)
    again = later.save(make_checkpoint(step=8))

    names = ["00000001-step-7", "00000002-step-8", "00000003-step-8"]
    assert checkpoints.names() == later.names() == names
    assert (two.name, again.name) == (names[1], names[2])
    assert (checkpoints.good, later.good) == ([8, 7], [8, 8])
    found = [later.find(which) for which in (None, "8", "7", names[1])]
    assert found == [names[2], names[2], names[0], names[1]]
    with pytest.raises(DataDirectoryError, match=r"expected .*-7 or .*, got 9$"):
        later.load("9", now=0.0)


def test_only_the_owner_reads_them(two: Path, folder: Path) -> None:
    """Files 0600, folders 0700."""
    files = [*two.iterdir()]

    assert sorted(file.name for file in files) == [_ARRAYS, _MANIFEST]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert {each.stat().st_mode & 0o777 for each in (folder, two)} == {0o700}


def test_the_oldest_are_pruned(
    two: Path, checkpoints: Checkpoints, folder: Path, make_checkpoint: Make
) -> None:
    """As many as asked for stay; numbers go on from theirs."""
    third = checkpoints.save(make_checkpoint(step=9))

    checkpoints.prune(keep=5)
    assert len(checkpoints.names()) == 3
    checkpoints.prune(keep=1)

    assert [*folder.iterdir()] == [third]
    assert checkpoints.good == [9]
    assert checkpoints.save(make_checkpoint(step=9)).name == "00000004-step-9"


# What is broken


def require_fallback(newest: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Check that the one before is used, loudly; then put all back as it was."""
    caplog.clear()
    checkpoints = Checkpoints(Unsynced(), newest.parent)

    found = checkpoints.load_newest(now=0.0)

    assert found is not None
    assert (found.step, checkpoints.good) == (7, [7])
    (record,) = caplog.records
    aside = newest.with_name(f"{newest.name}.broken")
    assert (record.levelname, vars(record)["event"]) == ("ERROR", "checkpoint_corrupt")
    assert str(newest) in caplog.text
    aside.rename(newest)


def test_a_flipped_byte_is_always_found(
    two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is: in a number, a name, a header, a digest, or mere padding."""
    draw = random.Random(_SEED)
    files = {path: path.read_bytes() for path in sorted(two.iterdir())}
    sizes = [len(data) for data in files.values()]

    for path in draw.choices([*files], weights=sizes, k=1000):
        data = bytearray(files[path])
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(data)
        require_fallback(two, caplog)
        path.write_bytes(files[path])

    assert Checkpoints(RealDisk(), two.parent).load(two.name, now=0.0).step == 8


def test_a_file_cut_short_or_made_longer_is_always_found(
    two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At every 64 bytes, and one byte from its end."""
    for path in sorted(two.iterdir()):
        data = path.read_bytes()
        cuts = [data[:end] for end in (*range(0, len(data), 64), len(data) - 1)]
        for changed in (*cuts, data + b"\n", data + b"\0" * 64):
            path.write_bytes(changed)
            require_fallback(two, caplog)
        path.write_bytes(data)


def reseal(newest: Path, *keys: str | int, value: Any) -> None:
    """Change a field of the manifest, as somebody would who knows the format."""
    path = newest / _MANIFEST
    data = sealed.decode(path.read_bytes())
    del data["sha256"]
    found: Any = data
    for key in keys[:-1]:
        found = found[key]
    found[keys[-1]] = value
    path.write_bytes(sealed.encode(data))


def copy_older(newest: Path, *names: str) -> None:
    """Put files of the checkpoint before into the newest one."""
    for name in names:
        shutil.copy(newest.with_name("00000001-step-7") / name, newest)


def put_file(newest: Path) -> None:
    """Put a file in place of the folder."""
    shutil.rmtree(newest)
    newest.touch()


def put_pickle(newest: Path) -> None:
    """Put something in place of the arrays that writes a file when it is unpickled."""
    opened = f"cposix\nmkdir\n(V{newest.parent / 'canary'}\ntR."
    (newest / _ARRAYS).write_bytes(opened.encode())


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda newest: (newest / _MANIFEST).unlink(), "No such file"),
        (lambda newest: (newest / _ARRAYS).unlink(), "No such file"),
        (put_file, "Not a directory"),
        (lambda newest: copy_older(newest, _ARRAYS), "expected "),
        (lambda newest: copy_older(newest, _MANIFEST), "expected that of the folder"),
        (lambda newest: copy_older(newest, _ARRAYS, _MANIFEST), "of the folder, got 7"),
        (lambda newest: reseal(newest, "format", value=2), "format: expected 1, got 2"),
        (put_pickle, "expected [0-9]+ bytes, got"),
    ],
)
def test_damage_of_any_other_kind_is_found(
    damage: Callable[[Path], object],
    text: str,
    two: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said what is wrong, and in which file; nothing that is read is run."""
    damage(two)

    require_fallback(two, caplog)
    assert re.search(text, caplog.text)
    assert not (two.parent / "canary").exists()


_HUGE = [{"name": "variables/w", "dtype": "int8", "shape": [2**40], "sha256": ""}]
_TWICE = [{"name": "slots", "dtype": "int8", "shape": [], "sha256": ""}] * 2


@pytest.mark.parametrize(
    ("keys", "value", "text"),
    [
        (["step"], "8", "step: expected int, got str"),
        (["step"], True, "step: expected int, got bool"),
        (["step"], -8, "step: expected 0 to 18446744073709551615, got -8"),
        (["step"], 2**64, "step: expected 0 to 18446744073709551615, got "),
        (["rule"], None, "rule: expected str, got NoneType"),
        (["max_grad_norm"], "1", "max_grad_norm: expected float, got str"),
        (["max_staleness"], 1.5, "max_staleness: expected int, got float"),
        (["staleness_policy"], 1, "staleness_policy: expected str, got int"),
        (["server"], 1, "server: expected str, got int"),
        (["sessions", "s2", "last_verdict", "factor"], "1", "factor: expected float"),
        (
            ["sessions", "s2", "last_verdict", "dropped_variables"],
            -1,
            "dropped_variables: expected 0 to",
        ),
        (["counters", "dropped_variables"], 0.5, "dropped_variables: expected int, go"),
        (["counters", "withheld"], [], "withheld: expected float, got list"),
        (["weak"], {}, "weak: expected list, got dict"),
        (["versions", "jax"], 1, "jax: expected str, got int"),
        (["counters", "total", "rejected"], {"X": -1}, "X: expected 0 to "),
        (["counters", "staleness"], {"old": 1}, "invalid literal .* 'old'"),
        (["counters", "workers", "ann"], 0, "ann: expected dict, got int"),
        (["counters", "workers", "ann", "staleness", "0"], [], "0: expected int"),
        (["sessions", "s1"], [], "s1: expected dict, got list"),
        (["sessions", "s3", "last_verdict", "reason"], "X", "reason: expected STALE"),
        (["arrays"], _HUGE, "arrays.safetensors: expected 1099511627[0-9]+ bytes, got"),
        (["arrays"], _TWICE, "arrays: expected each name once"),
        (["arrays", 0], 1, "name: expected str, got NoneType"),
        (["arrays", 0, "dtype"], "object", "expected one of .*, got object"),
        (["arrays", 0, "shape"], [2.0], r"expected dimensions of .*, got \(2.0,\)"),
        (["arrays", 0, "shape"], [-1], r"expected dimensions of .*, got \(-1,\)"),
        (["arrays", 0, "shape"], [0] * 65, "expected "),
        (["arrays", 0, "name"], "variables/../../x", "expected [0-9]+ bytes, got"),
        (["arrays", 0, "name"], "__metadata__", "__metadata__: expected another"),
        (
            ["arrays", 0, "sha256"],
            "0" * 64,
            "float32/.*: expected bytes of its sha256",
        ),
    ],
)
def test_a_manifest_that_lies_is_a_clear_error(
    keys: list[str | int], value: Any, text: str, two: Path, checkpoints: Checkpoints
) -> None:
    """Although its own digest is right: its file is named, and no memory is taken."""
    reseal(two, *keys, value=value)
    tracemalloc.start()
    try:
        with pytest.raises(DataDirectoryError, match=f"{two.name}.*{text}"):
            checkpoints.load(two.name, now=0.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**22


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 1025])
def test_a_variable_that_no_worker_could_name_is_refused(
    name: str, checkpoints: Checkpoints, make_checkpoint: Make
) -> None:
    """Somebody else's program may have written it, digests and all."""
    odd: Any = {name: np.ones(2)}
    path = checkpoints.save(replace(make_checkpoint(step=8), variables=odd))

    with pytest.raises(DataDirectoryError, match=f"{path / _MANIFEST}: .*name"):
        checkpoints.load("8", now=0.0)


def test_if_all_are_broken_nothing_is_used_or_changed(
    two: Path, checkpoints: Checkpoints, folder: Path
) -> None:
    """A fresh model would bury what can perhaps be saved; each is named."""
    older = two.with_name("00000001-step-7")
    for name in (_ARRAYS, _MANIFEST):
        (older / name).rename(folder / "aside")
        (two / name).rename(older / name)
        (folder / "aside").rename(two / name)

    with pytest.raises(DataDirectoryError, match="expected a good") as caught:
        checkpoints.load_newest(now=0.0)

    assert str(older / _MANIFEST) in str(caught.value)
    assert str(two / _MANIFEST) in str(caught.value)
    assert sorted(folder.iterdir()) == [older, two]


def test_what_was_put_aside_is_not_forgotten(
    two: Path, folder: Path, make_checkpoint: Make
) -> None:
    """If the good ones are then lost, this is still no new model; numbers go on."""
    two.rename(two.with_name(f"{two.name}.broken"))
    shutil.rmtree(folder / "00000001-step-7")
    checkpoints = Checkpoints(RealDisk(), folder)

    with pytest.raises(DataDirectoryError, match=rf"{two.name}\.broken: put aside"):
        checkpoints.load_newest(now=0.0)
    assert checkpoints.save(make_checkpoint(step=1)).name == "00000003-step-1"


@pytest.mark.parametrize("is_there", [False, True])
def test_where_there_was_none_there_is_none(
    is_there: bool, checkpoints: Checkpoints, folder: Path
) -> None:
    """Other files do not count, whatever they are called."""
    if is_there:
        folder.mkdir()
        for name in ("1-step-2", "00000001-step-2.old", "x-00000001-step-2"):
            (folder / name).mkdir()

    assert checkpoints.load_newest(now=0.0) is None
    assert checkpoints.names() == []


@pytest.mark.parametrize("name", [_ARRAYS, _MANIFEST])
def test_a_disk_that_gives_back_something_else_is_found_out(
    name: str, two: Path, folder: Path, make_checkpoint: Make
) -> None:
    """The save fails, and leaves nothing that could be taken for good."""
    checkpoints = Checkpoints(Flipping(name), folder)

    with pytest.raises(OSError, match=rf"read back: .*{name}: ") as caught:
        checkpoints.save(make_checkpoint(step=9))

    assert caught.value.errno == errno.EIO
    assert checkpoints.good == []
    assert {path.name for path in folder.iterdir()} == {"00000001-step-7", two.name}


# What is interrupted


def saved(seed: int, *kept: Checkpoint) -> VirtualDisk:
    """Make a disk in memory with some checkpoints on it."""
    disk = data_disk(seed)
    for each in kept:
        Checkpoints(disk, _FOLDER).save(each)
    return disk


def without_power(
    make: Callable[[], VirtualDisk], work: Callable[[Checkpoints], object]
) -> list[VirtualDisk]:
    """Cut the power before each operation of some work, and right after the last.

    Returns:
        What is left of the disk each time.
    """
    left = []
    for number in itertools.count(1):
        disk = make()
        disk.on_operation = failing(disk.operations + number, Crashed())
        try:
            work(Checkpoints(disk, _FOLDER))
        except Crashed:
            left.append(disk.crash())
        else:
            return [*left, disk.crash()]
    raise AssertionError("the work never ends")


def require_whole(disk: VirtualDisk) -> Checkpoint:
    """Start anew: all that has a name is whole, nothing else is left; the newest."""
    checkpoints = Checkpoints(disk, _FOLDER)
    newest = checkpoints.load_newest(now=0.0)
    assert newest is not None
    assert disk.names(_FOLDER) == checkpoints.names()
    assert checkpoints.verify(checkpoints.names()[-1]).checkpoint.step == newest.step
    for name in checkpoints.names():
        checkpoints.verify(name)
    return newest


@pytest.mark.parametrize("seed", range(_SEED, _SEED + 5))
def test_a_loss_of_power_leaves_the_one_before_or_the_new_one(
    seed: int, make_checkpoint: Make
) -> None:
    """At any moment of a save; once it has returned, it is the new one."""
    old, new = (make_checkpoint(step=step, dtypes=_FEW) for step in (7, 8))

    left = without_power(lambda: saved(seed, old), lambda on: on.save(new))

    found = [told(require_whole(disk)) for disk in left]
    assert len(found) > 15
    assert found[0] == told(old)
    assert found[-1] == told(new)
    assert all(each in (told(old), told(new)) for each in found)


@pytest.mark.parametrize("seed", range(_SEED, _SEED + 5))
def test_the_first_one_lasts_too(seed: int, make_checkpoint: Make) -> None:
    """Before it is there, there is none; nothing counts as broken."""
    first = make_checkpoint(step=7, dtypes=_FEW)

    left = without_power(lambda: saved(seed), lambda on: on.save(first))

    found = [Checkpoints(disk, _FOLDER).load_newest(now=0.0) for disk in left]
    assert found[0] is None
    assert all(each is None or told(each) == told(first) for each in found)
    assert told(found[-1]) == told(first)


@pytest.mark.parametrize("seed", range(_SEED, _SEED + 5))
def test_to_prune_is_safe_at_any_moment(seed: int, make_checkpoint: Make) -> None:
    """Those that are to stay do; of the others none is there in part."""
    kept = [make_checkpoint(step=step, dtypes=_FEW) for step in range(4)]

    left = without_power(lambda: saved(seed, *kept), lambda on: on.prune(keep=2))

    for disk in left:
        assert told(require_whole(disk)) == told(kept[-1])
        steps = [int(name[-1]) for name in disk.names(_FOLDER)]
        assert steps[-2:] == [2, 3]
    assert steps == [2, 3]
    assert len(left) > 10


@pytest.mark.parametrize("seed", range(_SEED, _SEED + 5))
def test_to_fall_back_is_safe_at_any_moment(seed: int, make_checkpoint: Make) -> None:
    """Whoever starts after the crash finds the same good one."""
    kept = [make_checkpoint(step=step, dtypes=_FEW) for step in (7, 8)]

    def broken() -> VirtualDisk:
        disk = saved(seed, *kept)
        disk.truncate(_FOLDER / "00000002-step-8" / _MANIFEST, 9)
        return disk

    left = without_power(broken, lambda on: on.load_newest(now=0.0))

    found = [Checkpoints(disk, _FOLDER).load_newest(now=0.0) for disk in left]
    assert len(found) > 5
    assert all(told(each) == told(kept[0]) for each in found)
    assert "00000002-step-8" not in left[-1].names(_FOLDER)


# What fails, and goes on


def test_a_save_that_fails_leaves_what_was_there(make_checkpoint: Make) -> None:
    """Whichever operation fails; but for the last sync it is as if nothing had been."""
    old, new = (make_checkpoint(step=step, dtypes=_FEW) for step in (7, 8))
    names = ["00000001-step-7", "00000002-step-8"]
    disk = saved(_SEED, old)
    start = disk.operations
    Checkpoints(disk, _FOLDER).save(new)
    count = disk.operations - start

    for number in range(1, count + 1):
        disk = saved(_SEED, old)
        checkpoints = Checkpoints(disk, _FOLDER)
        disk.on_operation = failing(disk.operations + number, OSError("by plan"))
        with pytest.raises(OSError, match="by plan"):
            checkpoints.save(new)
        assert disk.names(_FOLDER) == names[: 1 + (number == count)]
        assert checkpoints.good == []
        checkpoints.save(new)
        assert told(require_whole(disk)) == told(new)


def test_a_full_disk_is_as_full_as_before_when_a_save_fails(
    make_checkpoint: Make,
) -> None:
    """With room for any part of it; the next one succeeds once there is room."""
    old, new = (make_checkpoint(step=step, dtypes=_FEW) for step in (7, 8))
    disk = saved(_SEED, old)
    checkpoints = Checkpoints(disk, _FOLDER)
    nbytes = checkpoints.nbytes("00000001-step-7")

    for room in range(0, nbytes, 256):
        disk.capacity = nbytes + room
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoints.save(new)
        assert caught.value.errno == errno.ENOSPC
        assert disk.names(_FOLDER) == ["00000001-step-7"]
    disk.capacity = None
    checkpoints.save(new)

    assert told(require_whole(disk)) == told(new)


def test_an_io_error_while_reading_is_survived(
    make_checkpoint: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """As any other damage is; it is told what the disk has said."""
    disk = saved(_SEED, make_checkpoint(step=7), make_checkpoint(step=8))

    def fail(operation: Operation) -> None:
        if operation.kind == "read" and operation.path.parent.name.endswith("-8"):
            raise OSError(errno.EIO, "by plan")

    disk.on_operation = fail
    found = Checkpoints(disk, _FOLDER).load_newest(now=0.0)

    assert told(found) == told(make_checkpoint(step=7))
    assert "checkpoint 00000002-step-8 is corrupt" in caplog.text
    assert "by plan" in caplog.text
