"""A child with servers of its own, as many as it is told to have."""

import tempfile
from pathlib import Path
from typing import Any

import psserver
from benchmarks import product
from benchmarks.commands import obey

_folder = tempfile.TemporaryDirectory(prefix="asyncps-bench-")
_servers: list[psserver.Server] = []


def serve(rule: str, host: str, metrics: bool = False) -> str:
    """Start one more server, with or without metrics, and return its address."""
    settings: dict[str, Any] = {}
    if metrics:
        sink = psserver.JsonLines(Path(_folder.name) / f"{len(_servers)}.jsonl")
        settings = {"http_port": 0, "sinks": (sink,)}
    server = psserver.Server(
        product.resolve(rule),
        max_staleness=None,
        host=host,
        port=0,
        insecure=True,
        **settings,
    )
    _servers.append(server)
    return server.address


if __name__ == "__main__":
    obey({"serve": serve})
