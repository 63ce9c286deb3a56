"""A child with servers of its own, as many as it is told to have."""

import tempfile
from pathlib import Path
from typing import Any

import psserver
from benchmarks import product
from benchmarks.commands import obey

_folder = tempfile.TemporaryDirectory(prefix="asyncps-bench-")
_servers: list[psserver.Server] = []


def serve(rule: str, host: str, metrics: bool = False, durability: str = "none") -> str:
    """Start one more server, and return its address.

    Args:
        rule: Its rule, among `product.RULES`.
        host: Where it listens.
        metrics: Whether it has an HTTP port, and writes a history.
        durability: What it keeps. By itself it saves the first checkpoint alone, and
            others when the log gets long.
    """
    settings: dict[str, Any] = {}
    if durability != "none":
        folder = Path(_folder.name) / f"{len(_servers)}"
        settings = {"data_dir": folder, "checkpoint_every": 10**9}
    if metrics:
        sink = psserver.JsonLines(Path(_folder.name) / f"{len(_servers)}.jsonl")
        settings = {"http_port": 0, "sinks": (sink,)}
    server = psserver.Server(
        product.resolve(rule),
        max_staleness=None,
        host=host,
        port=0,
        insecure=True,
        durability=durability,
        **settings,
    )
    _servers.append(server)
    return server.address


if __name__ == "__main__":
    obey({"serve": serve})
