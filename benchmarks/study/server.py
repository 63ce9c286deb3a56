"""A child with one server after another."""

from contextlib import ExitStack
from typing import Any

import psserver
from benchmarks.commands import obey
from psserver import rulespec

_running = ExitStack()


def serve(rule: str, arguments: dict[str, Any], settings: dict[str, Any]) -> str:
    """Start a server in place of the last one, and return its address."""
    stop()
    made = rulespec.resolve(rule, arguments)
    server = psserver.Server(made, rule_name=rule, port=0, **settings)
    return _running.enter_context(server).address


def stop() -> None:
    """Stop the server."""
    _running.close()


if __name__ == "__main__":
    obey({"serve": serve, "stop": stop})
