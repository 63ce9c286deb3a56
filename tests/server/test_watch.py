"""`psserver status --watch`: drawn to fit any terminal, and alive in a real one."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from rich.cells import cell_len
from rich.console import Console

import psserver
import psworker
from kit.statuses import QUIET
from psserver.watch import View
from pswire.counts import Counts, WorkerStatus
from pswire.errors import ServerUnavailableError
from pswire.status import Durability, Limits, Status

StartServer = Callable[..., psserver.Server]
Run = Callable[..., Result]

_TIMEOUT_S = 60.0


def status(workers: int = 3, **changes: Any) -> Status:
    """Return a status in which the last worker is starved, and the others are not."""
    rows = [
        WorkerStatus(f"host-{4000 + n}-{n}", Counts(900, n), 0, 0.4, 3, 19.2)
        for n in range(workers - 1)
    ]
    starved = WorkerStatus("host-9999-0", Counts(0, 93), 93, 0.4, 93, 2.7)
    return replace(
        QUIET,
        **{
            "incarnation": "first",
            "step": 1330,
            "limits": Limits(6, None, 1, 1),
            "rule": "sgd(learning_rate=0.01)",
            "uptime_s": 35.0,
            "pushes_per_s": 41.3,
            "counts": Counts(1330, 93),
            "staleness": {0: 300, 2: 900, 6: 130, 9: 93},
            "workers": (*rows, starved),
            "steps_per_s": 38.6,
            "recent_drop_rate": 0.064,
            "loss": 0.123456,
            **changes,
        },
    )


def view(of: Status, clock: Callable[[], float] = lambda: 0.0) -> View:
    """Return the first view of a server."""
    return View("127.0.0.1:7070", of, of, clock(), clock=clock)


def drawn(what: View, width: int = 80, height: int = 25) -> list[str]:
    """Return the lines of a view, without the blanks that fill them up."""
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(what)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_view_tells_what_matters() -> None:
    """Exactly this, on a terminal of the usual size."""
    bar = "█"

    assert drawn(view(status())) == [
        "127.0.0.1:7070, up 35 s",
        "rule sgd(learning_rate=0.01), limit 6 steps",
        "",
        "step       1330, 41.3 pushes/s, 38.6 steps/s, loss 0.1235",
        "drop rate  6.4% in the last 10 s, 6.5% overall",
        "pushes     1330 applied, 93 dropped, 0 duplicate, 0 rejected",
        "staleness  median 2, p90 6, p99 9, most 9 steps",
        "",
        f"{'pushes':>28}{'drop  in a  longest  last':>47}",
        "worker       state        /s  applied  dropped    rate   row      run  seen",
        "─" * 75,
        "host-4000-0  active     19.2      900        0    0.0%     0        3   0 s",
        "host-4001-1  active     19.2      900        1    0.1%     0        3   0 s",
        "host-9999-0  starved     2.7        0       93  100.0%    93       93   0 s",
        "",
        f"   staleness 0  {bar * 13}▍{' ' * 26}  300 applied",
        f" staleness 1-2  {bar * 40}  900 applied",
        f" staleness 3-4  {' ' * 40}    0 applied",
        f" staleness 5-6  {bar * 5}▊{' ' * 34}  130 applied",
        f" staleness 7-8  {' ' * 40}    0 dropped",
        f"staleness 9-10  {bar * 4}▏{' ' * 35}   93 dropped",
    ]


@pytest.mark.parametrize("workers", [1, 4, 12, 300])
@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("height", [15, 20, 24, 60])
def test_a_view_fits_the_terminal(width: int, height: int, workers: int) -> None:
    """A line stays free for what follows; every worker is shown, or counted."""
    lines = drawn(view(status(workers)), width, height)

    names = [line for line in lines if line.startswith("host-")]
    more = [int(line.split()[0]) for line in lines if line.endswith("more workers")]
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width
    assert len(names) + sum(more) == workers
    if more:
        assert re.match("host-9999-0 +starved ", names[0])
        drops = [int(name.rsplit("-", 1)[1].split()[0]) for name in names[1:]]
        assert drops == sorted(drops, reverse=True)


def test_long_names_keep_their_ends() -> None:
    """They are where the names of one host's workers differ."""
    names = ("a-host-with-a-long-name-1", "a-host-with-a-long-name-2", "端" * 20)
    workers = tuple(WorkerStatus(name, Counts(1), 0, 0.0) for name in names)

    lines = drawn(view(replace(status(), staleness={}, workers=workers)), width=60)

    assert [line.split()[0] for line in lines[-3:]] == [
        *("…th-a-long-name-1", "…th-a-long-name-2", "…端端端端端端端端"),
    ]


def test_a_narrow_view_leaves_out_what_matters_least() -> None:
    """State, drops and when it was last seen are always there."""
    wide, narrow = (drawn(view(status()), width) for width in (80, 60))

    assert "applied  dropped    rate   row      run  seen" in wide[9]
    assert narrow[9].split() == [
        "worker",
        "state",
        "/s",
        "dropped",
        "rate",
        "row",
        "seen",
    ]


def test_a_server_that_is_away_is_said_with_the_time_since() -> None:
    """The last figures stay, and it is said that they are old."""
    now = 100.0
    first = view(status(), lambda: now)
    away = first.after(ServerUnavailableError("127.0.0.1:7070: refused"))
    now = 112.0

    lines = drawn(away)
    back = drawn(away.after(status(step=1331)))

    assert lines[2:4] == [
        "no answer for 12 s: all figures are as of then",
        "127.0.0.1:7070: refused",
    ]
    assert any(line.startswith("step       1330") for line in lines)
    assert back[3].startswith("step       1331")
    assert not any("no answer" in line for line in back)


def test_a_restart_is_said_from_then_on() -> None:
    """In another generation steps may be lost, in the same one none are."""
    cut = status(
        incarnation="second", generation="other", uptime_s=2.0, initialized=False
    )
    whole = status(incarnation="second", uptime_s=70.0)

    lines = drawn(view(status()).after(cut).after(replace(cut, uptime_s=70.0)))

    assert lines[2:4] == [
        "the server restarted 1 min ago: what no checkpoint had is lost",
        "no variables yet: the first worker brings them",
    ]
    assert drawn(view(status()).after(whole))[2:4] == [
        "the server restarted 1 min ago: no step is lost",
        "",
    ]
    assert drawn(view(status()).after(status()))[2] == ""


def test_a_view_tells_what_outlasts_the_server() -> None:
    """Where anything does; what could not be saved cannot be overlooked."""
    durability = Durability("log", saved_step=1300, saved_s=12.0, failures=1)

    lines = drawn(view(status(durability=durability)), width=100)

    assert lines[7] == (
        "kept       log, all 1330 steps; checkpoint of step 1300, 12 s old, "
        "1 failed to be saved"
    )
    assert not any(line.startswith("kept") for line in drawn(view(status())))


# In a terminal


class Terminal:
    """A pseudo-terminal in which a command runs."""

    def __init__(self, *command: str, rows: int, columns: int) -> None:
        self._end, inner = pty.openpty()
        self.resize(rows, columns)
        names = ("COLUMNS", "LINES", "FORCE_COLOR")
        env = {name: v for name, v in os.environ.items() if name not in names}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "psserver", *command],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**env, "TERM": "xterm-256color", "NO_COLOR": "1"},
        )
        os.close(inner)
        self.text = ""
        self._found = 0

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, size)

    def until(self, pattern: str) -> str:
        """Read on until a whole frame matches; return it without control codes."""
        end = time.monotonic() + _TIMEOUT_S
        while True:
            *frames, _ = self.text[self._found :].split("\x1b[H")
            for frame in map(_plain, frames):
                if re.search(pattern, frame):
                    self._found = len(self.text)
                    return frame
            assert self._read(end), f"no {pattern} in {_plain(self.text)[-2000:]}"

    def finish(self) -> str:
        """Return all that the command wrote, once it has ended."""
        while self._read(time.monotonic() + _TIMEOUT_S):
            pass
        self.process.wait(_TIMEOUT_S)
        return self.text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._end], [], [], end - time.monotonic())
        with suppress(OSError):  # Nobody holds the other end any more.
            if ready and (data := os.read(self._end, 2**16)):
                self.text += data.decode(errors="replace")
                return True
        return False


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def push(address: str, pushes: int) -> None:
    """Let a worker push."""
    with psworker.connect(address, name="ann") as client:
        client.initialize({"w": np.ones(2, np.float32)})
        for _ in range(pushes):
            client.push({"w": np.ones(2, np.float32)}, client.pull())


@pytest.fixture
def watch() -> Iterator[Callable[[str], Terminal]]:
    """Watch a server in a terminal of 24 lines and 80 columns."""
    terminals: list[Terminal] = []

    def start(address: str) -> Terminal:
        command = ("status", address, "--watch")
        terminals.append(Terminal(*command, rows=24, columns=80))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_a_terminal_shows_a_server_live(
    watch: Callable[[str], Terminal], start_server: StartServer
) -> None:
    """Its pushes, its end, its next start; Ctrl-C leaves the last view."""
    first = start_server()
    terminal = watch(first.address)

    waiting = terminal.until("no variables yet: the first worker brings them")
    push(first.address, 3)
    wide = terminal.until(r"ann +active +\d\.\d +3 ")
    terminal.resize(20, 60)
    narrow = terminal.until(r"\A.{60}\n")
    first.stop()
    away = terminal.until("no answer for [1-9]")
    second = start_server(port=int(first.address.rpartition(":")[2]))
    push(second.address, 2)
    restarted = terminal.until("the server restarted.*(.*\n)*step +2,")
    terminal.process.send_signal(signal.SIGINT)
    written = terminal.finish()

    assert "step       0" in waiting
    assert "step       3" in wide
    assert max(map(cell_len, narrow.splitlines())) <= 60
    assert "step       3" in away
    assert "no answer" not in restarted
    assert terminal.process.returncode == 0
    left = written.rpartition("\x1b[?1049l")[2]
    assert "step       2" in _plain(left)
    assert "Traceback" not in written
    assert not re.search(r"\x1b\[(\d+;)*[34]\d[;m]", written)  # NO_COLOR


@pytest.mark.parametrize(
    ("options", "got"), [(["--watch"], "none"), (["--watch", "--json"], "--json")]
)
def test_without_a_terminal_watching_is_a_usage_error(
    options: list[str], got: str, run: Run
) -> None:
    """It is said what is meant for scripts; no server is asked."""
    result = run("status", "127.0.0.1:1", *options)

    assert result.exit_code == 2
    assert f"--watch: expected a terminal, got {got}; psserver metrics --follow" in (
        " ".join(result.output.split())
    )


def test_a_server_that_is_not_there_at_first_is_an_error(
    watch: Callable[[str], Terminal], start_server: StartServer
) -> None:
    """Nothing is watched then: the address may be wrong."""
    gone = start_server()
    gone.stop()
    terminal = watch(gone.address)

    said = terminal.finish()

    assert terminal.process.returncode == 1
    assert said.startswith(f"Error: {gone.address}: ")
    assert "\x1b[?1049h" not in said
