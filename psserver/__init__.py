"""Keeps the variables: decides every push, applies the rule, serves snapshots."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psserver.metrics.jsonlines import JsonLines as JsonLines
    from psserver.server import Server as Server

_HOMES = {
    "JsonLines": "psserver.metrics.jsonlines",
    "Server": "psserver.server",
}

__all__ = ["JsonLines", "Server"]


def __getattr__(name: str) -> Any:
    # `Server` loads JAX, which takes seconds; `psserver --help` must not.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
