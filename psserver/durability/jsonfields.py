"""Fields of JSON that anybody may have written, each of the type that it should be."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_COUNT = 2**64 - 1  # As the contract has it.


def get(data: Any, name: str, kind: type[T]) -> T:
    """Return a field of what should be an object.

    Raises:
        ValueError: It is none, or the field is of another type; True is no int.
    """
    value = data.get(name) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise ValueError(
            f"{name}: expected {kind.__name__}, got {type(value).__name__}"
        )
    return value


def optional(data: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """Return a field of an object that may be null, or not there, likewise."""
    return None if data.get(name) is None else get(data, name, kind)


def number(data: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number, which need not be whole and may be null, likewise."""
    kind = int if type(data.get(name)) is int else float
    value = optional(data, name, kind)
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def count(data: Mapping[str, Any], name: str) -> int:
    """Return a whole number of 0 or more, that fits in 64 bits, likewise."""
    value = get(data, name, int)
    if not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"{name}: expected 0 to {_MAX_COUNT}, got {value}")
    return value


def counts(data: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return an object whose fields are all such numbers, likewise."""
    found = get(data, name, dict)
    return {key: count(found, key) for key in found}
