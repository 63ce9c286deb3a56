"""What can be wrong with a data directory."""


class DataDirectoryError(OSError):
    """A file in it is missing, damaged, or of another model; the message names it."""
