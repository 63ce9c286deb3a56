"""Network namespaces: which devices a process sees, which addresses it has."""

import ctypes
import os

_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def create() -> int:
    """Move this process to a new namespace, and return its descriptor.

    Raises:
        OSError: That is not allowed.
    """
    _check(_libc.unshare(_CLONE_NEWNET), "a new network namespace")
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def enter(path: str) -> None:
    """Move this process to the namespace of a path.

    Raises:
        OSError: There is none, or that is not allowed.
    """
    with open(path) as file:
        _check(_libc.setns(file.fileno(), _CLONE_NEWNET), path)


def _check(failed: int, subject: str) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
