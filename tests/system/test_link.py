"""The benchmark's link carries what it is given, and leaves nothing behind."""

import os
import random
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks import namespaces
from benchmarks.processes import Place
from benchmarks.rig import Ends, MachineError, Rig
from benchmarks.sites import Effort

InParallel = Callable[[Sequence[Callable[[], Any]]], list[Any]]

ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 60.0
_EFFORT = Effort(rounds=1, quick=False)
_PROCESSES = 3  # The link's own, and one at each end.

_BENCHMARK = """
from benchmarks.rig import Rig
from benchmarks.sites import Effort

with Rig(Effort(rounds=1, quick=False)) as rig:
    ends = rig.link()
    rig.echo("ping", "tcp", 1, ends)()  # Both its processes are up.
    print(*(end.namespace for end in ends), flush=True)
    input()
"""


@pytest.fixture(scope="module", autouse=True)
def link_is_allowed() -> None:
    """Skip where there can be no link: elsewhere its failure is a failure."""
    with Rig(_EFFORT) as rig:
        try:
            rig.link()
        except MachineError as error:
            pytest.skip(str(error))


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Build a link that lasts as long as the test."""
    with Rig(_EFFORT) as rig:
        yield rig.link()


def test_packets_cross_the_link_unchanged_and_in_order(ends: Ends) -> None:
    """Nothing mends what is wrong with them, as TCP would."""
    sent = [random.Random(number).randbytes(1_000) for number in range(50)]
    kind = socket.SOCK_DGRAM
    with _socket_at(ends[0], kind) as near, _socket_at(ends[1], kind) as far:
        far.bind((ends[1].host, 0))

        for packet in sent:
            near.sendto(packet, far.getsockname())

        assert [far.recv(2_000) for _ in sent] == sent


def test_streams_cross_the_link_unchanged(ends: Ends, in_parallel: InParallel) -> None:
    """Both ways at once, in pieces far larger than a packet."""
    sent = [random.Random(seed).randbytes(20_000_000) for seed in (1, 2)]
    with (
        _socket_at(ends[0], socket.SOCK_STREAM) as listener,
        _socket_at(ends[1], socket.SOCK_STREAM) as near,
    ):
        listener.bind((ends[0].host, 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()

        with far:
            *received, _, _ = in_parallel(
                [
                    lambda: _receive(near, len(sent[0])),
                    lambda: _receive(far, len(sent[1])),
                    lambda: far.sendall(sent[0]),
                    lambda: near.sendall(sent[1]),
                ]
            )

    assert received == sent


def test_the_link_is_never_faster_than_it_says(ends: Ends) -> None:
    """No load makes it: 1 Gbit/s, and 5 ms each way."""
    with Rig(_EFFORT) as rig:
        rate = rig.stream("rate", 20_000_000, ends)()["rate"]
        ping_s = rig.echo("ping", "tcp", 1, ends)()["ping"]

    assert rate <= 125
    assert ping_s >= 0.010


def test_a_link_that_has_ended_has_left_nothing() -> None:
    """Neither a namespace, nor a device in this one, nor a process in either."""
    devices = {*os.listdir("/sys/class/net")}
    with Rig(_EFFORT) as rig:
        ends = rig.link()
        rig.echo("ping", "tcp", 1, ends)()
        inodes = {_inode(end.namespace) for end in ends}
        assert len(_inside(inodes)) == _PROCESSES

    assert _inside(inodes) == set()
    assert {*os.listdir("/sys/class/net")} == devices


def test_a_link_ends_with_a_benchmark_that_is_killed() -> None:
    """By a signal that it cannot handle: the kernel ends what it has started."""
    with subprocess.Popen(
        [sys.executable, "-c", _BENCHMARK],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as benchmark:
        assert benchmark.stdout is not None
        inodes = {_inode(path) for path in benchmark.stdout.readline().split()}
        processes = [os.pidfd_open(int(pid)) for pid in _inside(inodes)]

        benchmark.kill()

    assert len(processes) == _PROCESSES
    for process in processes:
        assert select.select([process], [], [], _TIMEOUT_S)[0]
        os.close(process)
    assert _inside(inodes) == set()


def _socket_at(place: Place, kind: socket.SocketKind) -> socket.socket:
    """Make a socket at a place, to which only a thread goes that ends there."""

    def make() -> socket.socket:
        assert place.namespace is not None
        namespaces.enter(place.namespace)
        made = socket.socket(type=kind)
        made.settimeout(_TIMEOUT_S)
        return made

    with ThreadPoolExecutor(1, "test") as pool:
        return pool.submit(make).result()


def _receive(connection: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        piece = connection.recv(2**20)
        assert piece, f"expected {nbytes} bytes, got {len(data)}"
        data += piece
    return bytes(data)


def _inode(namespace: str | None) -> int:
    assert namespace is not None
    return os.stat(namespace).st_ino


def _inside(inodes: set[int]) -> set[str]:
    """Return the processes that are in one of the namespaces."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has just ended.
            if (process / "ns/net").stat().st_ino in inodes:
                found.add(process.name)
    return found
