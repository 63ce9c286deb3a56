"""One `psserver` after another, at once: forked off a process that has imported all."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from kit.processes import Process


class Forge(Process):
    """Runs one server at a time; it says what they say, and how they end."""

    def __init__(self, log: Path, *, timeout_s: float) -> None:
        """Begin to import.

        Args:
            log: Where the servers' stderr goes.
            timeout_s: How long all of them may take together, in seconds.
        """
        options = ("-m", "kit.forge", str(log), str(int(timeout_s)))
        super().__init__(*options, timeout_s=timeout_s)
        self.log = log
        self._port = "0"

    def start(self, *options: str, failpoints: tuple[str, ...] = ()) -> int:
        """Start a server where the last one listened; return its process's id.

        Args:
            options: Of `psserver serve`, but for the ports.
            failpoints: What is to fail; see `kit.serve`.
        """
        armed = [f"--failpoint={each}" for each in failpoints]
        ports = ("--port", self._port, "--http-port", "off")
        self.tell(json.dumps([*armed, "--", "serve", *options, *ports]))
        return int(self.line().removeprefix("started "))

    def address(self) -> str:
        """Wait until the server listens; return where: HOST:PORT."""
        line = self.line()
        assert line.startswith("listening on "), (line, self.log.read_text())
        address = line.removeprefix("listening on ")
        self._port = address.rpartition(":")[2]
        return address

    def kill(self) -> None:
        """Kill it, and the server with it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().kill()

    def ended(self) -> int:
        """Wait for the server's end; return its exit code, or less than 0: a signal."""
        while not (line := self.line()).startswith("ended "):
            assert line, self.log.read_text()
        return int(line.removeprefix("ended "))


def main(log: str, timeout_s: int) -> None:
    """Run what is told in lines of stdin, one after another."""
    os.setpgrp()  # For `kill`.
    signal.alarm(timeout_s)  # Should nobody be left to do that.
    _import_all()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    for line in iter(sys.stdin.readline, ""):
        process = os.fork()
        if not process:
            signal.alarm(timeout_s)
            _become(json.loads(line))
        print(f"started {process}", flush=True)
        _, status = os.waitpid(process, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


def _import_all() -> None:
    import psserver.cli
    import psserver.metrics.workernews
    import psserver.rulespec
    import psserver.server  # noqa: F401


def _become(arguments: list[str]) -> None:
    import kit.serve

    sys.argv = ["kit.serve", *arguments]
    kit.serve.main()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
