"""What can be wrong with a data directory."""

import errno
from pathlib import Path


class DataDirectoryError(OSError):
    """A file in it is missing, damaged, or of another model; the message names it."""


class DiskFullError(OSError):
    """Nothing of what was to be kept is; once there is room it can be tried again.

    There may be room on the disk, but no more open files for this process, say.

    Attributes:
        nbytes: What was to be written, in bytes.
    """

    def __init__(self, path: Path, nbytes: int, error: OSError) -> None:
        super().__init__(f"{path}: expected to write {nbytes} bytes, got {error}")
        self.nbytes = nbytes


class DiskFailedError(OSError):
    """Nobody knows what the disk still has: all that is left is to stop."""


def is_final(error: OSError) -> bool:
    """Say whether to try again would prove nothing."""
    return isinstance(error, DiskFailedError) or error.errno == errno.EIO
