"""Memory that bodies lie in starts where it should, and is nobody else's meanwhile."""

import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pswire import memory

MIB = 2**20
VIEWS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda taken: taken,
    "a part": lambda taken: taken[5:9],
    "a part of a part": lambda taken: taken[5:].reshape(-1)[1:9],
    "of another type": lambda taken: taken[:64].view(np.float32).reshape(2, 8),
    "buffer": lambda taken: taken.data,
    "part of a buffer": lambda taken: taken.data[5:9],
    "array of a buffer": lambda taken: np.frombuffer(taken.data[64:128], np.int64),
    "jax": jnp.asarray,
}


@pytest.mark.parametrize("nbytes", [1, 64, 1000, MIB - 1, MIB, MIB + 1, 3 * MIB + 5])
def test_memory_starts_at_a_multiple_of_64(nbytes: int) -> None:
    """Of the size asked for, to be written."""
    taken = memory.aligned(nbytes)

    taken[:] = 7

    assert taken.dtype == np.uint8
    assert taken.shape == (nbytes,)
    assert taken.ctypes.data % 64 == 0


def test_what_starts_elsewhere_is_told_apart() -> None:
    """Whatever the array's own offset."""
    taken = memory.aligned(200)

    assert memory.is_aligned(taken)
    assert memory.is_aligned(taken[64:])
    assert not memory.is_aligned(taken[1:])
    assert not memory.is_aligned(taken[32:])


def test_large_memory_is_taken_again() -> None:
    """Its bytes show it: fresh memory is zero."""
    taken = memory.aligned(MIB + 1)
    taken[:] = 7
    del taken

    again = memory.aligned(MIB + 1)

    assert again.min() == 7


def test_memory_of_another_size_is_passed_over() -> None:
    """It waits for who asks for its own."""
    first = memory.aligned(MIB + 2)
    first[:] = 7
    del first

    other = memory.aligned(MIB + 3)
    again = memory.aligned(MIB + 2)

    assert (other.size, again.size) == (MIB + 3, MIB + 2)
    assert (other.max(), again.min()) == (0, 7)


def test_memory_that_nobody_could_write_can_be_written_again() -> None:
    """A snapshot is frozen, and what comes after it in its place is not."""
    taken = memory.aligned(MIB + 4)
    taken[:] = 7
    taken.flags.writeable = False
    del taken

    again = memory.aligned(MIB + 4)

    assert again.min() == 7
    assert again.flags.writeable


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_memory_is_not_taken_while_a_view_lives(make: Callable[[Any], Any]) -> None:
    """Any array or buffer made of it, however it was made."""
    taken = memory.aligned(MIB + 64)
    taken[:] = 7
    view = make(taken)
    before = bytes(memoryview(view).cast("B"))
    del taken

    others = [memory.aligned(MIB + 64) for _ in range(3)]
    for other in others:
        other[:] = 1

    assert bytes(memoryview(view).cast("B")) == before


@pytest.mark.parametrize("name", sorted(VIEWS.keys() - {"jax"}))
def test_memory_is_taken_again_after_its_last_view(name: str) -> None:
    """Whichever that was, not just the array first made."""
    taken = memory.aligned(MIB + 128)
    taken[:] = 7
    view = VIEWS[name](taken)
    del taken, view

    again = memory.aligned(MIB + 128)

    assert again.min() == 7


def test_threads_never_take_the_same_memory() -> None:
    """All write while all hold theirs, and each finds its own bytes afterwards."""
    count, rounds = 4, 30
    barrier = threading.Barrier(count, timeout=20)

    def take(mark: int) -> set[tuple[int, int]]:
        found = set()
        for _ in range(rounds):
            taken = memory.aligned(MIB + 5)
            taken[:] = mark
            barrier.wait()
            found.add((int(taken.min()), int(taken.max())))
            del taken
        return found

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(take, range(count), timeout=60))

    assert found == [{(mark, mark)} for mark in range(count)]


@pytest.mark.parametrize("nbytes", [0, 1, 1000, 16 * MIB, 16 * MIB + 1])
def test_bytes_are_copied_whole(nbytes: int) -> None:
    """Every byte, however many threads share the work; none beside them."""
    source = np.resize(np.arange(251, dtype=np.uint8), nbytes)
    target = np.full(nbytes + 2, 255, np.uint8)

    memory.fill(target[1:-1], source)

    assert np.array_equal(target[1:-1], source)
    assert (target[0], target[-1]) == (255, 255)


_KEEP = """
import logging, resource, threading
from pswire.heap import keep_freed_memory

logging.basicConfig(format="%(message)s")
logging.getLogger("pswire").setLevel(logging.DEBUG)
keep_freed_memory()
keep_freed_memory()

import numpy as np
from pswire.memory import aligned

def work(mark):
    for nbytes in (100, 2**20, 2**22):
        arrays = [np.full(nbytes, mark, np.uint8), aligned(nbytes)]
        arrays[1][:] = mark
        assert [(a.min(), a.max()) for a in arrays] == [(mark, mark)] * 2

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**25, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, second = faults(), faults()
threads = [threading.Thread(target=work, args=(mark,)) for mark in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("fewer" if second * 10 < first else f"{first} {second}")
"""


def test_a_process_that_keeps_its_freed_memory_goes_on_as_before() -> None:
    """Where the C library can, what is taken again needs no fresh pages."""
    done = subprocess.run(
        [sys.executable, "-c", _KEEP],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    if platform.libc_ver()[0] == "glibc":
        assert done.stderr.splitlines() == ["freed memory: kept"] * 2
        assert done.stdout == "fewer\n"
