"""The lock that keeps a second server out of a data directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psserver.durability.disk import RealDisk
from psserver.durability.errors import DataDirectoryError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a data directory for oneself; it is made if it is not there.

    Raises:
        DataDirectoryError: Another server has it.
        OSError: It cannot be made.
    """
    RealDisk().make_folder(folder)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            # The kernel lets go of it with the process, however that ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            raise DataDirectoryError(
                f"data_dir: expected {folder} for this server alone, got one that "
                f"process {owner or 'unknown'} is using"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
