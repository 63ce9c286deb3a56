"""The system calls of a server with a log: no answer before its record is synced."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT

import numpy as np
import pytest

import psworker
from kit.processes import TIMEOUT_S, Served

ConnectNear = Callable[..., psworker.Client]

PUSHES = 250  # Over gRPC, and as many past it.
UP = {"w": np.full(2, -1.0, np.float32)}

# The end of an answer in HTTP/2: a HEADERS frame that ends its stream.
_TRAILERS = re.escape(r"\x01\x05\x00\x00")
_ANSWERS = (
    re.compile(rf"sendmsg\(\d+<TCP.*{_TRAILERS}.*"),
    re.compile(r"sendto\(\d+<UNIX.*"),
)


@contextmanager
def traced(process: int, output: Path) -> Iterator[None]:
    """Write down, in order, what a process writes in parts, syncs and sends."""
    if shutil.which("strace") is None:
        missing = "strace is not installed"
        assert not os.environ.get("REQUIRE_TOOLS"), missing
        pytest.skip(missing)
    calls = ("-e", "trace=writev,fdatasync,sendmsg,sendto", "-e", "signal=none")
    form = ("-f", "-yy", "-xx", "-s", "256", "-o", str(output))
    command = ["strace", *form, *calls, "-p", str(process)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        if "attached" not in (said := strace.stderr.readline()):
            pytest.skip(f"strace may not look at a process here: {said}")
        try:
            yield
        finally:
            strace.send_signal(SIGINT)
            strace.wait(TIMEOUT_S)


def test_no_push_is_answered_before_its_record_is_synced(
    connect_near: ConnectNear, tmp_path: Path
) -> None:
    """500 pushes, one after another: so each answer is that to the newest record."""
    options = ("--rule", "sgd", "-a", "learning_rate=1.0", "--max-staleness", "off")
    ports = ("--port", "0", "--http-port", "off")
    kept = ("--durability", "log", "--data-dir", str(tmp_path / "data"))
    trace = tmp_path / "trace"
    with Served(*options, *ports, *kept) as server:
        ways = [
            connect_near(server.address(), same_host=same_host)
            for same_host in (False, True)
        ]
        ways[0].initialize(UP)
        for client in ways:
            client.push(UP, client.pull())  # With it, who joined is written.
        with traced(server.pid, trace):
            for client in ways:
                for _ in range(PUSHES):
                    assert client.push(UP, step_read=0).applied

    written = synced = 0
    answered = [0 for _ in ways]
    syncing: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        thread = line.split()[0]
        if "writev(" in line:
            written += 1
        if "fdatasync(" in line:
            syncing[thread] = written
        if re.search(r"fdatasync.* = 0$", line):
            synced = syncing.pop(thread)
        for way, answer in enumerate(_ANSWERS):
            if answer.search(line):
                answered[way] += 1
                assert synced >= sum(answered), line
    assert answered == [PUSHES for _ in ways]
    assert written == sum(answered)
