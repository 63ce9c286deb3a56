"""Posts a server's figures as JSON to any tracker that takes them over HTTP.

A package offers a sink by a few lines in its pyproject.toml, and
`psserver serve --sink webhook=http://127.0.0.1:9000/` finds it once it is installed:

    [project.entry-points."psserver.sinks"]
    webhook = "webhook_sink:Webhook"
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.request import Request, urlopen


class Webhook:
    """What fails here is logged by the server, which tries again with the next."""

    def __init__(self, url: str) -> None:
        self._url = url

    def write(self, sample: Mapping[str, Any]) -> None:
        """Post the figures that the tracker wants."""
        figures = {name: sample[name] for name in ("time", "step", "drop_rate", "loss")}
        kind = {"Content-Type": "application/json"}
        request = Request(self._url, json.dumps(figures).encode(), kind)
        urlopen(request, timeout=5).close()

    def close(self) -> None:
        """Hold nothing open."""
