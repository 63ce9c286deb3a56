"""A disk that fails: nobody is told that a push is kept which may not be."""

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest

import psserver
import psworker
from kit.processes import Successors
from kit.virtualdisk import Operation, VirtualDisk
from psserver import admin
from pswire.errors import ServerUnavailableError

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
UseDisk = Callable[[VirtualDisk], None]

SEED = 5
TIMEOUT_S = 30.0
ZEROS = {"w": np.zeros(2, np.float32)}
UP = {"w": np.full(2, -1.0, np.float32)}


@contextmanager
def on_event(event: str, run: Callable[[], object]) -> Iterator[None]:
    """Run a function in the midst of what the server does when it logs an event."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "event", None) == event:
                run()

    handler = Handler()
    logging.getLogger("psserver").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("psserver").removeHandler(handler)


@pytest.mark.parametrize(
    ("kind", "failure", "told"),
    [
        ("sync", OSError(errno.EIO, "no luck"), r"a disk that keeps all.* no luck"),
        ("write", OSError(errno.EIO, "no luck"), r"a disk that keeps all.* no luck"),
        ("write", MemoryError(), r"MemoryError"),
    ],
)
def test_a_log_that_fails_ends_the_server_and_is_not_tried_again(
    start_server: StartServer,
    connect: Connect,
    use_disk: UseDisk,
    tmp_path: Path,
    kind: str,
    failure: Exception,
    told: str,
) -> None:
    """What was acknowledged before has lasted, though power is lost then."""
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    settings = {"durability": "log", "data_dir": tmp_path, "checkpoint_every": "9s"}
    server = start_server(**settings)
    client = connect(server.address, outage_s=0.0)
    client.initialize(ZEROS)
    for _ in range(3):
        client.push(UP, client.pull())
    later: list[Operation] = []

    def fail(operation: Operation) -> None:
        if operation.path.suffix == ".log":
            later.append(operation)
            if operation.kind == kind:
                raise failure

    disk.on_operation = fail
    with pytest.raises(ServerUnavailableError, match=told):
        client.push(UP, client.pull())
    failed = len(later)
    with pytest.raises(ServerUnavailableError, match=told):
        client.push(UP, client.pull())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.wait)
        try:
            assert isinstance(waiting.exception(TIMEOUT_S), type(failure))
            last = client.pull()
        finally:
            with pytest.raises(type(failure)):
                server.stop()

    assert len(later) == failed
    assert (last.step, last.params["w"].tolist()) == (3, [3.0, 3.0])
    use_disk(disk.crash())
    again = connect(start_server(**settings).address).pull()
    assert again.step in (3, 4)
    assert again.params["w"].tolist() == [again.step] * 2


def test_a_server_whose_disk_fails_ends_with_an_error(tmp_path: Path) -> None:
    """With the cause in its last words; its successor has all that was acknowledged."""
    options = "--rule sgd -a learning_rate=1.0 --http-port off --durability log"
    servers = Successors(*options.split(), "--data-dir", str(tmp_path))
    with servers.start("log.before_sync=eio@4") as server:
        with psworker.connect(server.address(), outage_s=0.0) as client:
            client.initialize(ZEROS)
            acknowledged = push_until_refused(client)
        code, log = server.finish()
    with servers.start() as server, psworker.connect(server.address()) as client:
        again = client.pull()

    assert code == 1
    assert "Error: " in log.splitlines()[-1]
    assert "expected a disk that keeps all, got [Errno 5]" in log.splitlines()[-1]
    assert acknowledged > 0
    assert again.step in (acknowledged, acknowledged + 1)


def push_until_refused(client: psworker.Client) -> int:
    """Return how many pushes were acknowledged."""
    for acknowledged in range(10):
        try:
            client.push(UP, client.pull())
        except ServerUnavailableError:
            return acknowledged
    raise AssertionError("none was refused")


def test_a_disk_that_fails_while_the_server_stops_is_no_graceful_end(
    start_server: StartServer, connect: Connect, use_disk: UseDisk, tmp_path: Path
) -> None:
    """A push was in flight; what was acknowledged before is not sealed, but there."""
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    settings = {"durability": "log", "data_dir": tmp_path, "checkpoint_every": 9**9}
    server = start_server(**settings)
    client = connect(server.address, outage_s=0.0)
    client.initialize(ZEROS)
    client.push(UP, client.pull())
    syncing, stopping = threading.Event(), threading.Event()

    def fail(operation: Operation) -> None:
        if operation.kind == "sync" and operation.path.suffix == ".log":
            syncing.set()
            assert stopping.wait(TIMEOUT_S)
            raise OSError(errno.EIO, "no luck")

    disk.on_operation = fail
    with ThreadPoolExecutor(2) as pool:
        pushed = pool.submit(client.push, UP, client.pull())
        assert syncing.wait(TIMEOUT_S)
        stopped = pool.submit(server.stop)
        server.wait()  # Until it begins to.
        stopping.set()
        assert isinstance(stopped.exception(TIMEOUT_S), OSError)
        assert isinstance(pushed.exception(TIMEOUT_S), ServerUnavailableError)

    use_disk(disk.kill())
    again = connect(start_server(**settings).address)
    assert again.pull().step in (1, 2)  # Nobody was told of the second one.


def test_a_disk_that_gives_no_answer_is_noticed_whoever_waits_for_it(
    start_server: StartServer,
    connect: Connect,
    use_disk: UseDisk,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A checkpoint waits too; others are told to come again, and pulls go on."""
    monkeypatch.setattr("psserver.durability.logwatch._POLL_S", 0.01)
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    server = start_server(durability="log", data_dir=tmp_path, checkpoint_every=9**9)
    client, other = (connect(server.address, outage_s=0.0) for _ in range(2))
    client.initialize(ZEROS)
    snapshot = client.pull()
    monkeypatch.setattr("psserver.durability.logwatch._STALL_S", 0.1)
    saving, syncing, noticed, answers = (threading.Event() for _ in range(4))

    def wait(operation: Operation) -> None:
        is_log = operation.path.suffix == ".log"
        if operation.kind == "sync":
            (syncing if is_log else saving).set()
            assert answers.wait(TIMEOUT_S)

    disk.on_operation = wait
    with ThreadPoolExecutor(2) as pool, on_event("disk_stalled", noticed.set):
        saved = pool.submit(admin.save_checkpoint, server.address)
        assert saving.wait(TIMEOUT_S)
        pushed = pool.submit(client.push, UP, snapshot)
        assert syncing.wait(TIMEOUT_S)
        assert noticed.wait(TIMEOUT_S)

        assert not admin.is_healthy(server.address)
        with pytest.raises(ServerUnavailableError, match="expected the disk to answer"):
            other.push(UP, snapshot)
        with pytest.raises(ServerUnavailableError, match="expected the disk to answer"):
            connect(server.address, outage_s=0.0)
        assert other.pull().step == 0
        answers.set()
        assert pushed.result(TIMEOUT_S).step == 1
        assert saved.result(TIMEOUT_S)

    patient = connect(server.address)
    assert patient.push(UP, snapshot).step == 2
    assert admin.is_healthy(server.address)


def test_few_at_once_may_wait_for_a_checkpoint(
    start_server: StartServer, connect: Connect, use_disk: UseDisk, tmp_path: Path
) -> None:
    """Each holds one of the server's threads; the others are told to come again."""
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    server = start_server(durability="checkpoint", data_dir=tmp_path)
    connect(server.address).initialize(ZEROS)
    answers = threading.Event()

    def wait(operation: Operation) -> None:
        if operation.kind == "sync":
            assert answers.wait(TIMEOUT_S)

    disk.on_operation = wait
    with ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(admin.save_checkpoint, server.address) for _ in range(12)]
        refused = list(islice(as_completed(asking, TIMEOUT_S), 4))
        answers.set()

    for each in refused:
        assert "expected at most 8" in str(each.exception())
    assert {each.result()[1] for each in asking if each not in refused} == {0}


def test_a_disk_that_has_room_again_at_once_does_not_stay_full(
    start_server: StartServer,
    connect: Connect,
    use_disk: UseDisk,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It has before the push is refused for which there was none."""
    monkeypatch.setattr("psserver.durability.logwatch._POLL_S", 0.01)
    disk = VirtualDisk(Random(SEED))
    use_disk(disk)
    server = start_server(durability="log", data_dir=tmp_path)
    client = connect(server.address, outage_s=5.0)
    client.initialize(ZEROS)
    probed = threading.Event()

    def note(operation: Operation) -> None:
        if operation.path.name == "probe":
            probed.set()

    def free() -> None:
        disk.capacity = None
        probed.wait(0.3)  # It should not be: there is nothing to be undone yet.

    disk.on_operation = note
    disk.capacity = 1
    with on_event("disk_full", free):
        verdict = client.push(UP, client.pull())

    assert verdict.applied
    assert probed.is_set()
