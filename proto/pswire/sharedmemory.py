"""Memory that two processes of one host see."""

import fcntl
import mmap
import os
from typing import Self

import numpy as np

from pswire.body import Bytes

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedMemory:
    """A run of bytes without a name: it is gone when the last process lets go of it."""

    def __init__(self, descriptor: int) -> None:
        """Map what a descriptor stands for; the descriptor stays the caller's.

        Raises:
            ValueError: It is empty, or its maker could make it shorter, which would
                kill whoever reads it.
            OSError: It cannot be mapped.
        """
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError(
                "shared memory: expected a sealed size, got one that varies"
            )
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self.nbytes = len(self._map)

    @classmethod
    def create(cls, nbytes: int) -> tuple[Self, int]:
        """Take new memory, all zero.

        Returns:
            It, and its descriptor, for the caller to send and to close.
        """
        descriptor = os.memfd_create("asyncps", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, nbytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return cls(descriptor), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def view(self) -> Bytes:
        """Return the bytes, as a new array; a part of it keeps it alive."""
        return np.frombuffer(self._map, np.uint8)
