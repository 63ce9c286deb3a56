"""What the HTTP port shows: the live page's files, and its data."""

import json
import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from psserver.metrics.history import History
from psserver.metrics.recorder import sample
from psserver.web.request import HEALTH, Page
from pswire.status import Status

_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "uPlot.min.css": "text/css",
    "charts.js": "text/javascript",
    "page.js": "text/javascript",
    "view.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def make_pages(
    read: Callable[[], Status], history: History, expose: Page
) -> Mapping[str, Page]:
    """Return what there is to read, by path.

    Args:
        read: Returns the server's figures.
        history: Keeps those of the run so far.
        expose: Shows them to Prometheus.
    """
    files = {f"/{name}": _file(name) for name in _TYPES}
    return {
        "/": files.pop("/index.html"),
        **files,
        "/history.json": _json(history.to_json),
        HEALTH: lambda accept: ("text/plain", _alive(read)),
        "/metrics": expose,
        "/status.json": _json(lambda: sample(read(), time.time())),
    }


def _file(name: str) -> Page:
    body = resources.files("psserver").joinpath("web", "files", name).read_bytes()
    return lambda accept: (f"{_TYPES[name]}; charset=utf-8", body)


def _alive(read: Callable[[], Status]) -> bytes:
    read()  # A server that is stuck cannot.
    return b"alive\n"


def _json(get: Callable[[], Any]) -> Page:
    return lambda accept: ("application/json", json.dumps(get()).encode())
