"""A child with servers of its own, as many as it is told to have."""

import psserver
from benchmarks import product
from benchmarks.commands import obey

_servers: list[psserver.Server] = []


def serve(rule: str, host: str) -> str:
    """Start one more server, and return its address."""
    server = psserver.Server(
        product.resolve(rule), max_staleness=None, host=host, port=0, insecure=True
    )
    _servers.append(server)
    return server.address


if __name__ == "__main__":
    obey({"serve": serve})
