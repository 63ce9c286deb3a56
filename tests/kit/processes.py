"""Processes of a test's: read line by line, stopped and killed, never outliving it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psworker

TIMEOUT_S = 60.0
_TESTS = Path(__file__).parents[1]


class Process(subprocess.Popen[str]):
    """A Python process that never hangs a test: after a while an alarm kills it.

    To wait for a line is to wait for the event that it tells of.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: Of the interpreter: `-m` and a module, say.
            folder: Where it runs; None: where the tests do.
            timeout_s: How long it may run, in seconds.
            environment: Besides this process's own.
        """
        known = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(_TESTS), *([known] if known else [])])
        base = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        super().__init__(
            [sys.executable, *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**base, **(environment or {})},
        )
        self._alarm = threading.Timer(timeout_s, self.kill)
        self._alarm.start()

    def line(self) -> str:
        """Wait for the next line of its stdout; empty: there is none any more."""
        assert self.stdout is not None
        return self.stdout.readline().rstrip("\n")

    def log_line(self) -> str:
        """Wait for the next line of its stderr likewise."""
        assert self.stderr is not None
        return self.stderr.readline().rstrip("\n")

    def until(self, pattern: str) -> str:
        """Read its stderr up to a line in which there is a pattern; return that."""
        assert self.stderr is not None
        said = []
        for line in self.stderr:
            said.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it ended without {pattern!r}: {said}")

    def tell(self, line: str = "") -> None:
        """Write a line to its stdin."""
        assert self.stdin is not None
        self.stdin.write(f"{line}\n")
        self.stdin.flush()

    def pause(self) -> None:
        """Stop it in the midst of whatever it does, and wait until it stands still."""
        self.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self) -> None:
        """Let it continue."""
        self.send_signal(signal.SIGCONT)

    def end(self, number: signal.Signals) -> int:
        """Send it a signal, and wait for its end; return its exit code."""
        self.send_signal(number)
        return self.wait()

    def finish(self) -> tuple[int, str]:
        """Return its exit code and its log, once it has ended by itself."""
        _, log = self.communicate()
        return self.returncode, log

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def files(self) -> int:
        """Return how many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_nbytes(self) -> int:
        """Return how much memory it takes, in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._alarm.cancel()
        self._alarm.join()
        for pipe in (self.stdin, self.stdout, self.stderr):
            assert pipe is not None
            pipe.close()
        self.wait()


class Served(Process):
    """A `psserver serve`."""

    def __init__(
        self,
        *options: str,
        failpoints: Sequence[str] = (),
        timeout_s: float = TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            options: Of the command.
            failpoints: What is to fail; see `kit.serve`.
            timeout_s: See `Process`.
            environment: Likewise.
        """
        module, armed = "psserver", list[str]()
        if failpoints:
            module = "kit.serve"
            armed = [*(f"--failpoint={each}" for each in failpoints), "--"]
        super().__init__(
            *("-m", module, *armed, "serve", *options),
            timeout_s=timeout_s,
            environment=environment,
        )
        self._address = ""

    def address(self) -> str:
        """Wait until it listens; return where: HOST:PORT."""
        if not self._address:
            line = self.line()
            assert line.startswith("listening on "), (line, self.log_line())
            self._address = line.removeprefix("listening on ")
        return self._address


class Successors:
    """Starts one server after another, with the same options and at one address."""

    def __init__(self, *options: str, timeout_s: float = TIMEOUT_S) -> None:
        """Start none yet.

        Args:
            options: Of `psserver serve`, but for the port.
            timeout_s: How long each may run, in seconds.
        """
        self._options = options
        self._timeout_s = timeout_s
        self._first: Served | None = None

    def start(self, *failpoints: str) -> Served:
        """Start the next one; the first has to listen before."""
        port = self._first.address().rpartition(":")[2] if self._first else "0"
        server = Served(
            *(*self._options, "--port", port),
            failpoints=failpoints,
            timeout_s=self._timeout_s,
        )
        self._first = self._first or server
        return server


def wait_until(
    is_so: Callable[[], bool], client: psworker.Client, timeout_s: float = TIMEOUT_S
) -> None:
    """Wait for what no event of this process tells; the server has turns meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        client.status()
