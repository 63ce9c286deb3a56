"""A child with servers of its own, as many as it is told to have."""

import psserver
from benchmarks import product
from benchmarks.commands import obey

_servers: list[psserver.Server] = []


def serve(rule: str) -> str:
    """Start one more server, and return its address."""
    server = psserver.Server(product.resolve(rule), max_staleness=None, port=0)
    _servers.append(server)
    return server.address


if __name__ == "__main__":
    obey({"serve": serve})
