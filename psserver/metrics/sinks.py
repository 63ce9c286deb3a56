"""Sinks by name: whatever packages offer under the entry point `psserver.sinks`."""

from importlib.metadata import entry_points
from typing import Any

from psserver.metrics.recorder import Sink

_GROUP = "psserver.sinks"


def resolve(text: str) -> Sink:
    """Make the sink that `NAME` or `NAME=ARGUMENT` stands for.

    Args:
        text: The name of an entry point, which leads to a function of one string that
            returns a `Sink`; and that string, empty if there is none.

    Raises:
        ValueError: There is no such name, or what it leads to makes no sink.
    """
    name, _, argument = text.partition("=")
    found = entry_points(group=_GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "what an installed package offers"
        raise ValueError(f"sink: expected one of {known}, got {name!r}")
    try:
        sink = found[name].load()(argument)
    except Exception as error:
        raise ValueError(
            f"sink: expected {name} to be made of {argument!r}, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not _is_sink(sink):
        raise ValueError(
            f"sink: expected {name} to make an object with write and close, "
            f"got {type(sink).__name__}"
        )
    return sink


def _is_sink(made: Any) -> bool:
    return callable(getattr(made, "write", None)) and callable(
        getattr(made, "close", None)
    )
