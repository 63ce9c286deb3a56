"""The disk is waited for once for many pushes that come at the same time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from psserver.durability.disk import RealDisk, Writer
from pswire.body import Buffer

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
Kept = Callable[..., dict[str, Any]]

PUSHERS = 16
ROUNDS = 3
TIMEOUT_S = 30.0
UP = {"w": np.full(2, -1.0, np.float32)}


class SlowDisk(RealDisk):
    """Syncs the log only while it is open.

    Attributes:
        reached: Is released whenever a sync begins.
    """

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.reached = threading.Semaphore(0)

    def create(self, path: Path) -> Writer:
        writer = super().create(path)
        return _SlowWriter(writer, self) if path.suffix == ".log" else writer


class _SlowWriter:
    def __init__(self, writer: Writer, disk: SlowDisk) -> None:
        self._writer = writer
        self._disk = disk
        self.truncate = writer.truncate
        self.close = writer.close

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._writer.write(buffers)

    def sync(self) -> None:
        self._disk.reached.release()
        assert self._disk.is_open.wait(TIMEOUT_S)
        self._writer.sync()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    """Give the servers that start from now on a slow disk."""
    disk = SlowDisk()
    monkeypatch.setattr("psserver.durability.disk.RealDisk", lambda: disk)
    yield disk
    disk.is_open.set()


def test_sixteen_pushes_wait_for_the_disk_twice(
    start_server: StartServer,
    connect: Connect,
    kept: Kept,
    hook: Any,
    disk: SlowDisk,
) -> None:
    """The first one alone; the others are applied meanwhile, and synced together.

    None is acknowledged, and no step is seen, before its sync has ended.
    """
    server = start_server(hook.rule, **kept("log"))
    clients = [connect(server.address) for _ in range(PUSHERS)]
    clients[0].initialize(UP)
    for client in clients:
        client.pull()  # Each learns what there is to be pushed.
    clients[0].push(UP, clients[0].pull())  # Compiles; and those who joined are kept.
    applied = threading.Semaphore(0)
    hook.run = applied.release
    began = server.status()

    with ThreadPoolExecutor(PUSHERS, "test") as pool:
        for number in range(1, 1 + ROUNDS):
            snapshot = clients[0].pull()
            while disk.reached.acquire(blocking=False):
                pass
            disk.is_open.clear()
            pushes = [pool.submit(clients[0].push, UP, snapshot)]
            assert disk.reached.acquire(timeout=TIMEOUT_S)
            pushes += [pool.submit(each.push, UP, snapshot) for each in clients[1:]]
            for _ in pushes:
                assert applied.acquire(timeout=TIMEOUT_S)
            assert server.status().step == snapshot.step
            assert not any(push.done() for push in pushes)
            disk.is_open.set()
            verdicts = [push.result(TIMEOUT_S) for push in pushes]
            assert all(verdict.applied for verdict in verdicts)
            syncs = server.status().durability.log_syncs - began.durability.log_syncs
            assert syncs == 2 * number

    status = server.status()
    pushed = status.counts.applied - began.counts.applied
    assert pushed == ROUNDS * PUSHERS
    assert syncs / pushed < 0.5
