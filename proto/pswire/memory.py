"""The memory that bodies lie in."""

import mmap
import threading
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from pswire.layout import ALIGNMENT

_RECYCLED_NBYTES = 2**20
_SHARED_NBYTES = 2**24
_MAX_FREE = 1.75  # Times the largest: for a body, and for half of one.

_free: deque[mmap.mmap] = deque()


def aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Take memory that starts where JAX can use it without a copy.

    Memory of a large body that nobody reads any more is taken again, if there is some
    of just this size: the kernel clears every page that it hands out, which takes far
    longer than to fill it.
    """
    if nbytes < _RECYCLED_NBYTES:
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -_address(memory) % ALIGNMENT
        return memory[start : start + nbytes]
    return _lent(_recycled(nbytes) or _fresh(nbytes))


def zeros(nbytes: int) -> npt.NDArray[np.uint8]:
    """Take memory like `aligned`, all zero; it takes no room before it is written."""
    if nbytes < _RECYCLED_NBYTES:
        memory = aligned(nbytes)
        memory[:] = 0
        return memory
    return _lent(_fresh(nbytes))


def _lent(region: mmap.mmap) -> npt.NDArray[np.uint8]:
    memory = np.frombuffer(region, np.uint8)
    # All arrays made of it keep it alive, so this comes after the last reader.
    weakref.finalize(memory, _keep, region).atexit = False
    return memory


def _keep(region: mmap.mmap) -> None:
    # For the gradients, or the snapshot, that come next; if they travel narrowed, both
    # for what arrives and for what is made of it.
    _free.append(region)
    while sizes := [len(free) for free in tuple(_free)]:
        if sum(sizes) <= _MAX_FREE * max(sizes):
            return
        with suppress(IndexError):  # Another thread was first.
            _free.popleft()


def _recycled(nbytes: int) -> mmap.mmap | None:
    for _ in range(len(_free)):
        try:
            region = _free.popleft()
        except IndexError:  # Another thread was first.
            return None
        if len(region) == nbytes:
            return region
        _free.append(region)
    return None


def _fresh(nbytes: int) -> mmap.mmap:
    region = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE)  # 512 times fewer pages to clear.
    return region


def is_aligned(array: npt.NDArray[np.uint8]) -> bool:
    """Say whether an array starts where JAX can use it without a copy."""
    return _address(array) % ALIGNMENT == 0


def copied(source: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the same bytes in memory like `aligned`."""
    memory = aligned(len(source))
    fill(memory, source)
    return memory


def fill(target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
    """Copy as many bytes as the target has, and let other threads run meanwhile."""
    if len(target) < _SHARED_NBYTES:
        # Unlike a slice assignment of a memoryview, this lets go of the GIL.
        np.copyto(target, source)
        return
    # One core cannot keep the memory busy; two copy up to three times as fast.
    middle = len(target) // 2
    helper = threading.Thread(
        target=np.copyto, args=(target[middle:], source[middle:]), name="pswire copy"
    )
    helper.start()
    try:
        np.copyto(target[:middle], source[:middle])
    finally:
        helper.join()  # Nobody may find it still writing.


def _address(array: npt.NDArray[np.uint8]) -> int:
    # A third of what `array.ctypes.data` takes.
    address: int = array.__array_interface__["data"][0]
    return address
