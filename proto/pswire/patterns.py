"""Patterns of variables' names."""

from fnmatch import fnmatchcase


def fits(pattern: str, name: str) -> bool:
    """Say whether a pattern, with `*`, `?` and `[...]` as for files, means a name.

    A name also means itself: it may have letters that mean something else in a pattern.
    """
    return name == pattern or fnmatchcase(name, pattern)
