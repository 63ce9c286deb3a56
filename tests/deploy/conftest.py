"""What the tests of what is shipped share: the names of all that a server exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker


@pytest.fixture
def exported(
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    scrape: Callable[[psserver.Server], dict[tuple[str, ...], float]],
    tmp_path: Path,
) -> set[str]:
    """Return the names of a server's series, once there is something of each kind."""
    settings: dict[str, Any] = {"durability": "log", "data_dir": tmp_path / "data"}
    server = start_server(http_port=0, max_staleness=0, **settings)
    with connect(server.address) as client:
        client.initialize({"w": np.zeros(1, np.float32)})
        client.push({"w": np.ones(1, np.float32)}, client.pull(), value=1.0)
    return {name for (name, *_) in scrape(server)}
