"""Keeps the variables: decides every push, applies the rule, serves snapshots."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psserver.server import Server as Server

__all__ = ["Server"]


def __getattr__(name: str) -> Any:
    # `Server` loads JAX, which takes seconds; `psserver --help` must not.
    if name == "Server":
        from psserver.server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
