"""Child processes that cannot outlive this one."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Self

_GRACE_S = 10.0


class Children:
    """Starts Python modules as processes, one log file each, and stops them all.

    Ctrl-C in the terminal reaches only this process, which then decides.
    """

    def __init__(self, log_dir: Path) -> None:
        """Make the folder of the logs."""
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.Queue[tuple[str, int]] = queue.Queue()
        self._pipe, self._leash = os.pipe()
        self._threads: list[threading.Thread] = []

    def log(self, name: str) -> Path:
        """Return where a child's output goes."""
        return self._log_dir / f"{name}.log"

    def last_words(self, name: str) -> str:
        """Return the last line of a child's log."""
        lines = self.log(name).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def start(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Start `python -m module`; what it prints is added to its log."""
        with self.log(name).open("ab") as log:
            self._spawn(name, module, arguments, stdout=log, stderr=log)

    def start_and_read_line(
        self, name: str, module: str, arguments: Sequence[str], *, begins: str = ""
    ) -> str:
        """Start a process, and return the first line that begins so; "" if none does.

        Other lines, before it and after it, go to the child's log: a user's module may
        print what it likes.
        """
        lines = self.start_and_read_lines(name, module, arguments, begins, 1)
        return "".join(lines)

    def start_and_read_lines(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        begins: str,
        number: int,
    ) -> list[str]:
        """Start a process, and return so many lines, the first of which begins so.

        If the process ends before, there are fewer. Other lines go to the child's log.
        """
        with self.log(name).open("ab") as log:
            process = self._spawn(
                name, module, arguments, stdout=subprocess.PIPE, stderr=log
            )
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        first = self._copy_until(begins.encode(), lines, name)
        found = [first, *islice(lines, number - 1)] if first else []
        self._run(f"{name}-output", self._copy, process.stdout, name)
        return [line.decode() for line in found]

    def wait(self, timeout_s: float | None) -> tuple[str, int] | None:
        """Return the name and exit code of the next child to end; None: none did."""
        try:
            name, code = self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._running.pop(name, None)
        return name, code

    def stop(self, names: Sequence[str] | None = None) -> None:
        """End some children, or all: first asked, then made to."""
        chosen = list(self._running) if names is None else names
        stopped = [self._running.pop(name) for name in chosen if name in self._running]
        for process in stopped:
            process.terminate()
        for process in stopped:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()
        os.close(self._pipe)
        os.close(self._leash)

    def _spawn(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        stdout: IO[bytes] | int,
        stderr: IO[bytes],
    ) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "psworker.leash", str(self._pipe), module)
        process = subprocess.Popen(
            (*command, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(self._pipe,),
        )
        self._running[name] = process
        self._run(f"{name}-end", self._await, name, process)
        return process

    def _run(self, name: str, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name=name)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _await(self, name: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with suppress(ProcessLookupError):
            # What the child has left behind, in the group that its leash has made.
            os.killpg(process.pid, signal.SIGKILL)
        self._ended.put((name, code))

    def _copy_until(self, begins: bytes, lines: Iterator[bytes], name: str) -> bytes:
        with self.log(name).open("ab", buffering=0) as log:
            for line in lines:
                if line.startswith(begins):
                    return line
                log.write(line)
        return b""

    def _copy(self, source: IO[bytes], name: str) -> None:
        with source, self.log(name).open("ab", buffering=0) as log:
            log.writelines(source)
