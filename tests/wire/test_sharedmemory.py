"""Memory of two processes: both see it, and neither takes it from the other."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pswire.sharedmemory import SharedMemory

Make = Callable[[int], int]

ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def mappings() -> int:
    """Count this process's mappings of shared memory."""
    return Path("/proc/self/maps").read_text().count("memfd:asyncps")


def descriptors() -> set[str]:
    """Return what this process has open, as the kernel names it."""
    names: set[str] = set()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # The listing's own.
            names.add(f"{number.name} {os.readlink(number)}")
    return names


@pytest.fixture
def make() -> Iterator[Make]:
    """Make a file of 100 bytes in memory, with some seals; it closes with the test."""
    made = []

    def make(seals: int) -> int:
        descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        made.append(descriptor)
        os.ftruncate(descriptor, 100)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor

    yield make
    for descriptor in made:
        os.close(descriptor)


@pytest.fixture
def shared() -> Iterator[tuple[SharedMemory, int]]:
    """Take memory of 5,000 bytes; its descriptor closes with the test."""
    memory, descriptor = SharedMemory.create(5000)
    yield memory, descriptor
    os.close(descriptor)


def test_new_memory_is_zero(shared: tuple[SharedMemory, int]) -> None:
    """Of the size asked for, not that of its pages."""
    memory, _ = shared

    assert memory.nbytes == 5000
    assert memory.view().tolist() == [0] * 5000


def test_what_one_writes_the_other_reads(shared: tuple[SharedMemory, int]) -> None:
    """In both directions, through any number of views."""
    here, descriptor = shared
    there = SharedMemory(descriptor)
    written, seen = here.view(), there.view()

    written[7] = 1
    seen[4999] = 2

    assert there.nbytes == 5000
    assert (seen[7], written[4999], here.view()[4999]) == (1, 2, 2)


def test_another_process_writes_what_this_one_reads(
    shared: tuple[SharedMemory, int],
) -> None:
    """It needs nothing but the descriptor."""
    memory, descriptor = shared
    code = (
        "import mmap, sys\n"
        "with mmap.mmap(int(sys.argv[1]), 0) as memory:\n"
        "    memory[len(memory) - 1] = 9\n"
    )

    subprocess.run(
        [sys.executable, "-c", code, str(descriptor)],
        pass_fds=[descriptor],
        timeout=60,
        check=True,
    )

    assert memory.view()[4999] == 9


@pytest.mark.parametrize("nbytes", [0, 1, 4999, 5001, 10_000])
def test_nobody_makes_memory_longer_or_shorter(
    shared: tuple[SharedMemory, int], nbytes: int
) -> None:
    """A reader past the end of a file would be killed by the kernel."""
    _, descriptor = shared

    with pytest.raises(PermissionError, match="not permitted"):
        os.ftruncate(descriptor, nbytes)


@pytest.mark.parametrize(
    "seals",
    [
        0,
        fcntl.F_SEAL_SEAL,
        fcntl.F_SEAL_SHRINK,
        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW,
        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
    ],
)
def test_memory_whose_size_may_change_is_refused(make: Make, seals: int) -> None:
    """Whatever its maker has sealed but not all; the descriptor stays open."""
    descriptor = make(seals)

    text = "^shared memory: expected a sealed size, got one that varies$"
    with pytest.raises(ValueError, match=text):
        SharedMemory(descriptor)

    assert os.fstat(descriptor).st_size == 100


def test_memory_of_another_maker_is_taken(make: Make) -> None:
    """With all three seals; more of them may be there."""
    descriptor = make(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    assert SharedMemory(descriptor).nbytes == 100


def test_memory_that_cannot_be_written_is_refused(make: Make) -> None:
    """A snapshot is to be written there."""
    descriptor = make(ALL_SEALS | fcntl.F_SEAL_WRITE)

    with pytest.raises(PermissionError, match="not permitted"):
        SharedMemory(descriptor)


def test_what_is_no_memory_is_refused() -> None:
    """A stranger may send any descriptor at all."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            SharedMemory(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_the_descriptor_stays_the_caller_s(make: Make) -> None:
    """It can be closed at once, and the memory stays."""
    own = make(ALL_SEALS)
    descriptor = os.dup(own)
    memory = SharedMemory(descriptor)

    os.close(descriptor)
    memory.view()[3] = 4

    assert SharedMemory(own).view()[3] == 4


def test_memory_stays_while_a_view_lives() -> None:
    """Even a part of one; with the last the memory is gone."""
    before = mappings()
    memory, descriptor = SharedMemory.create(5000)
    os.close(descriptor)
    memory.view()[:] = 7
    part = memory.view()[100:200].data

    del memory
    during = mappings()
    content = bytes(part)
    del part

    assert content == bytes([7]) * 100
    assert (during, mappings()) == (before + 1, before)


@pytest.mark.parametrize("nbytes", [0, 2**62])
def test_memory_that_cannot_be_had_leaves_nothing_behind(nbytes: int) -> None:
    """No descriptor, no mapping."""
    before = descriptors(), mappings()

    with pytest.raises((OSError, ValueError), match=r"empty|large|memory|argument"):
        SharedMemory.create(nbytes)

    assert (descriptors(), mappings()) == before


def test_a_child_does_not_inherit_memory(shared: tuple[SharedMemory, int]) -> None:
    """Workers start processes of their own."""
    _, descriptor = shared

    assert not os.get_inheritable(descriptor)


def test_views_are_bytes_that_can_be_written(shared: tuple[SharedMemory, int]) -> None:
    """From the first byte on, where JAX takes arrays without a copy."""
    memory, _ = shared

    view = memory.view()

    assert view.dtype == np.uint8
    assert view.flags.writeable
    assert view.ctypes.data % 64 == 0
