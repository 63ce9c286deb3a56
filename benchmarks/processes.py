"""Child processes: started, commanded over a pipe, measured from outside, stopped."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT_S = 180.0
_GRACE_S = 15.0
_LAST_WORDS_NBYTES = 2_000


class ChildError(Exception):
    """A child failed, ended, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a child runs.

    Attributes:
        host: The address to listen on, for children at other places too.
        namespace: The path of its network namespace; None: this process's own.
    """

    host: str
    namespace: str | None = None


LOOPBACK = Place("127.0.0.1")


class Child:
    """`python -m MODULE ARGUMENTS`, which ends when this process does, however."""

    def __init__(self, module: str, *arguments: str, place: Place = LOOPBACK) -> None:
        """Start it; whether it came up shows in the first answer."""
        self._name = module
        self._buffer = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`.
        self._process = subprocess.Popen(
            # What it has to do first it does itself: a process forked to do it before
            # the program starts is not safe where gRPC runs.
            [
                *(sys.executable, "-m", "benchmarks.child"),
                *(str(os.getpid()), place.namespace or "", module, *arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            # Ctrl-C in the terminal is for this process alone, which ends the others.
            process_group=0,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "GRPC_VERBOSITY": "ERROR"},
        )

    def call(self, do: str, *, timeout_s: float = _TIMEOUT_S, **arguments: Any) -> Any:
        """Run a command, and return its answer.

        Raises:
            ChildError: There was none in time, or it is an error.
        """
        self.begin(do, **arguments)
        return self.end(timeout_s)

    def begin(self, do: str, **arguments: Any) -> None:
        """Send a command; `end` returns its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode())
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("expected to take a command, got its end") from None

    def end(self, timeout_s: float = _TIMEOUT_S) -> Any:
        """Return the answer to the command that was begun.

        Raises:
            ChildError: There was none in time, or it is an error.
        """
        answer = json.loads(self.read_line(timeout_s))
        if "error" in answer:
            raise self._failure(answer["error"])
        return answer["result"]

    def has_answered(self) -> bool:
        """Say whether `end` need not wait."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def read_line(self, timeout_s: float = _TIMEOUT_S) -> str:
        """Return the next line that it prints.

        Raises:
            ChildError: It printed none in time.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise self._failure(f"expected an answer in {timeout_s:g} s, got none")
            data = os.read(descriptor, 2**16)
            if not data:
                raise self._failure("expected an answer, got its end")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        """The processor time that it has used, in seconds."""
        return cpu_s(self.pid)

    @property
    def peak_rss_nbytes(self) -> int:
        """The most memory that it has ever held, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kib = next(row for row in status.splitlines() if row.startswith("VmHWM"))
        return int(kib.split()[1]) * 1024

    def ask_to_stop(self) -> None:
        """Ask it to end; `stop` waits for that."""
        self._process.terminate()

    def stop(self) -> None:
        """See that it has ended."""
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._said):
            assert file is not None
            file.close()

    def _failure(self, text: str) -> ChildError:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _LAST_WORDS_NBYTES))
        words = self._said.read().decode(errors="replace").strip().splitlines()
        self._said.seek(0, os.SEEK_END)
        said = f"; it said: {words[-1]}" if words else ""
        return ChildError(f"{self._name}: {text}{said}")


class Children:
    """Processes that are stopped together."""

    def __init__(self) -> None:
        self._running: list[Child] = []

    def start(self, module: str, *arguments: str, place: Place = LOOPBACK) -> Child:
        """Start `python -m module`, without waiting for it to come up."""
        child = Child(module, *arguments, place=place)
        self._running.append(child)
        return child

    def end(self, *children: Child) -> None:
        """End some before the others."""
        for child in children:
            child.ask_to_stop()
        for child in children:
            child.stop()
            self._running.remove(child)

    def end_all(self) -> None:
        """End them, all at once."""
        self.end(*self._running)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    # The clock that clock_getcpuclockid(3) names: it counts nanoseconds, where
    # /proc counts hundredths of a second.
    return time.clock_gettime((~pid << 3) | 2)
