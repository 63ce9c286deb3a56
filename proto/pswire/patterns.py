"""Patterns of variables' names."""

from fnmatch import fnmatchcase


def fits(pattern: str, name: str) -> bool:
    """Say whether a pattern means a name.

    `*` stands for any letters or none, slashes too, and `?` for one; every other letter
    stands for itself, so that a name such as `a[0]` means no other.
    """
    return fnmatchcase(name, pattern.replace("[", "[[]"))
