"""What can be wrong with a data directory."""

import errno


class DataDirectoryError(OSError):
    """A file in it is missing, damaged, or of another model; the message names it."""


class DiskFullError(OSError):
    """Nothing of what was to be kept is; once there is room it can be tried again."""


class DiskFailedError(OSError):
    """Nobody knows what the disk still has: all that is left is to stop."""


def is_final(error: OSError) -> bool:
    """Say whether to try again would prove nothing."""
    return isinstance(error, DiskFailedError) or error.errno == errno.EIO
