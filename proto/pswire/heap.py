"""What this process does with memory that it frees."""

import ctypes
import logging
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD_NBYTES = 64 * 2**20

_log = logging.getLogger("pswire")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for what it takes next.

    The kernel clears every page that it hands out: for an array of 100 MB that takes
    three times as long as an update of SGD. Left alone, glibc gives large blocks back
    as soon as they are freed, so that every step pays for fresh ones. The price is
    that the process stays as large as it has once been. Other C libraries are left as
    they are.

    To be called before numpy is imported: it starts threads, and glibc gives each
    thread that allocates before this a heap of its own, which does not keep anything.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    settings = (
        (_M_MMAP_MAX, 0),  # Large blocks come from the heap,
        (_M_ARENA_MAX, 1),  # of which there is one for all threads,
        (_M_TRIM_THRESHOLD, -1),  # which never shrinks,
        (_M_TOP_PAD, _TOP_PAD_NBYTES),  # and grows by much at a time.
    )
    done = [mallopt(name, value) for name, value in settings]
    kept = "kept" if all(done) else "kept in part"
    _log.debug("freed memory: %s", kept, extra={"event": "freed_memory_kept"})


def give_back_freed_memory() -> None:
    """Hand what is free now to the kernel: after work that is not done again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
