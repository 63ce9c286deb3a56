"""Checkpoints are saved as often as they are asked for."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker

StartServer = Callable[..., psserver.Server]

TIMEOUT_S = 30.0
UP = {"w": np.ones(2, np.float32)}


class Saved(logging.Handler):
    """Hears of every checkpoint that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.told = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "checkpoint_saved":
            self.steps.append(record.__dict__["step"])
            self.told.release()


@pytest.fixture
def saved(caplog: pytest.LogCaptureFixture) -> Iterator[Saved]:
    """Listen to the server's log."""
    caplog.set_level(logging.INFO, "psserver")
    saved = Saved()
    logging.getLogger("psserver").addHandler(saved)
    yield saved
    logging.getLogger("psserver").removeHandler(saved)


@pytest.mark.parametrize("durability", ["checkpoint", "log"])
def test_a_server_that_goes_on_saves_as_often_as_the_first(
    start_server: StartServer,
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    durability: str,
) -> None:
    """Every two steps, though its newest checkpoint is older than it is."""
    monkeypatch.setattr("psserver.durability.saver._PATIENCE_S", 3600.0)
    settings: dict[str, Any] = {"durability": durability, "checkpoint_every": 2}

    for _ in range(2):
        with (
            start_server(data_dir=tmp_path / "data", **settings) as server,
            psworker.connect(server.address) as client,
        ):
            client.initialize(UP)
            for _ in range(2):
                for _ in range(2):
                    client.push(UP, client.pull())
                assert saved.told.acquire(timeout=TIMEOUT_S)

    assert saved.steps == [2, 4, 6, 8]
