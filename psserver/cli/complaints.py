"""What the operating system says of a data directory, as a command repeats it."""


def told(error: Exception) -> str:
    """Return an error's message; the system's own does not name the option."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"data_dir: expected files that can be used, got {error}"
    return str(error)
