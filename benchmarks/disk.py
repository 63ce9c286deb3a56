"""A child that times what only the disk limits: to write bytes, and sync them."""

import os
import tempfile

from benchmarks.commands import obey, timed

_file = tempfile.NamedTemporaryFile(prefix="asyncps-bench-")  # noqa: SIM115 - to the end.


def syncs(nbytes: int, seconds: float, at_least: int) -> list[float]:
    """Time appending so many bytes to a file, and fdatasync."""
    data = bytes(nbytes)

    def append() -> None:
        os.write(_file.fileno(), data)
        os.fdatasync(_file.fileno())

    times = timed(append, seconds, at_least)
    os.ftruncate(_file.fileno(), 0)
    os.lseek(_file.fileno(), 0, os.SEEK_SET)
    return times


if __name__ == "__main__":
    obey({"syncs": syncs})
