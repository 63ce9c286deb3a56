"""Many workers on this machine: started, watched, restarted, summed up."""

import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pswire.credentials import ANONYMOUS, Credentials
from pswire.display import summary
from pswire.errors import ParameterServerError
from pswire.status import Status
from psworker.children import Children
from psworker.connection import Connection
from psworker.drops import NO_PUSH, UNLEARNED

_PROGRESS_S = 2.0
_USAGE_ERROR = 2  # What click exits with: to try again would change nothing.
_SERVER = "server"
_EVALUATE = "evaluate"
_LISTENING = "listening on "
_METRICS = "metrics on "
_LAST = re.compile(rf"^(?:step .* (\d+) {UNLEARNED}|{NO_PUSH})$", re.MULTILINE)
_NEWS = re.compile(rf" (\d+) {UNLEARNED}$", re.MULTILINE)

Say = Callable[[str], None]


class LaunchError(Exception):
    """The run could not go on; the message says where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to launch.

    Attributes:
        target: The task's `module:attribute`.
        workers: How many.
        server: HOST:PORT; None: start one.
        serve_options: Of `psserver serve`, for a server started here.
        run_options: Of `psworker run`, for every worker.
        name: What the workers' names begin with.
        app_dir: Where the task's module is.
        log_dir: Where the logs go.
        max_restarts: How often each worker may be restarted.
        credentials: Of workers and launcher; a token without a file has to be in the
            environment that they all share.
    """

    target: str
    workers: int
    server: str | None
    serve_options: Sequence[str]
    run_options: Sequence[str]
    name: str
    app_dir: str
    log_dir: Path
    max_restarts: int
    credentials: Credentials = ANONYMOUS

    @property
    def options(self) -> Sequence[str]:
        """Of every process that is started for it and calls the server."""
        names = ("token_file", "tls_ca", "tls_cert", "tls_key")
        files = {name: getattr(self.credentials, name) for name in names}
        told = ["--app-dir", self.app_dir]
        for name, file in files.items():
            if file is not None:
                told += [f"--{name.replace('_', '-')}", str(file)]
        return told


def launch(plan: Plan, say: Say) -> bool:
    """Run a plan to its end, or until Ctrl-C; leave no process behind.

    Args:
        plan: What to launch.
        say: Takes a line of news at a time. The summary goes to stdout.

    Returns:
        Whether every worker came to its end.

    Raises:
        LaunchError: The server did not start, or ended in mid-run.
    """
    with Children(plan.log_dir) as children:
        address = plan.server or _start_server(children, plan, say)
        run = _Run(plan, children, address, say)
        try:
            run.start()
            run.supervise()
        except KeyboardInterrupt:
            say("stopping; once more stops at once")
            run.stop()
            run.sum_up()
            return True
        if run.sum_up():
            run.evaluate()
        return not run.lost


class _Run:
    def __init__(self, plan: Plan, children: Children, address: str, say: Say) -> None:
        self.lost: list[str] = []
        self._plan = plan
        self._children = children
        self._address = address
        self._say = say
        self._restarts: Counter[str] = Counter()
        self._began = time.monotonic()
        self._lives: dict[str, list[int]] = defaultdict(list)
        """Where the log of each life of a worker begins, in bytes."""
        self._names = [f"{plan.name}-{index}" for index in range(plan.workers)]
        self._before = self._last = self._status()

    def start(self) -> None:
        for name in self._names:
            self._children.log(name).unlink(missing_ok=True)
            self._start_worker(name)
        self._say(
            f"{self._plan.workers} workers of {self._plan.target}, server "
            f"{self._address}, logs in {self._plan.log_dir}/"
        )

    def supervise(self) -> None:
        """Watch until every worker has ended, restarting those that crash."""
        left = set(self._names)
        next_news = time.monotonic() + _PROGRESS_S
        while left:
            ended = self._children.wait(max(0.0, next_news - time.monotonic()))
            if ended is None:
                self._tell_progress(len(left))
                next_news = time.monotonic() + _PROGRESS_S
                continue
            name, code = ended
            if name == _SERVER:
                raise LaunchError(_obituary(self._children, name, code))
            if code == 0:
                left.discard(name)
            elif self._may_restart(name, code):
                self._start_worker(name)
            else:
                self.lost.append(name)
                left.discard(name)

    def stop(self) -> None:
        """Stop the workers, not the server."""
        self._children.stop(self._names)

    def sum_up(self) -> bool:
        """Print what the server has counted; say whether there are variables."""
        elapsed = time.monotonic() - self._began
        status = self._look()
        if status is None:
            self._say(f"{self._address}: no answer, so there is no summary")
            return False
        summary.show(status, sys.stdout)
        print(
            f"{self._pushes(status, elapsed)}; "
            f"{self._restarts.total()} restarts, {len(self.lost)} workers lost\n"
            f"{UNLEARNED}: {self._unlearned()}",
            flush=True,
        )
        return status.initialized

    def evaluate(self) -> None:
        """Print what the task makes of the variables, if it has an opinion."""
        arguments = ("evaluate", self._plan.target, "--server", self._address)
        line = self._children.start_and_read_line(
            _EVALUATE,
            "psworker",
            (*arguments, *self._plan.options),
            begins="at step ",
        )
        print(line, end="", flush=True)
        while (ended := self._children.wait(None)) and ended[0] != _EVALUATE:
            pass
        if ended and ended[1]:
            self._say(_obituary(self._children, *ended))

    def _start_worker(self, name: str) -> None:
        index = self._names.index(name)
        log = self._children.log(name)
        self._lives[name].append(log.stat().st_size if log.exists() else 0)
        self._children.start(
            name,
            "psworker",
            (
                *("run", self._plan.target, "--server", self._address),
                *("--name", name, "--shard", f"{index}/{self._plan.workers}"),
                *(*self._plan.options, *self._plan.run_options),
            ),
        )

    def _may_restart(self, name: str, code: int) -> bool:
        self._say(_obituary(self._children, name, code))
        if code == _USAGE_ERROR:
            return False
        if self._restarts[name] == self._plan.max_restarts:
            self._say(f"{name}: no restart is left of {self._plan.max_restarts}")
            return False
        self._restarts[name] += 1
        self._say(
            f"{name}: restart {self._restarts[name]} of {self._plan.max_restarts}"
        )
        return True

    def _tell_progress(self, workers: int) -> None:
        status = self._look()
        if status is None:
            news = f"no answer from {self._address} yet"
        elif not status.counts.judged:
            news = f"no push yet, {len(status.workers)} workers have joined"
        else:
            news = (
                f"step {status.step}, {status.pushes_per_s:.0f} pushes/s, "
                f"drop rate {status.counts.drop_rate:.1%}, {workers} workers"
            )
        self._say(f"{time.monotonic() - self._began:.0f} s: {news}")

    def _pushes(self, status: Status, elapsed: float) -> str:
        pushes, since = self._judged(status), "start-up included"
        if self._before and self._before.generation == status.generation:
            pushes -= self._judged(self._before)  # Of an earlier launch by this name.
        elif self._before and status.durability.mode != "none":
            return (
                "pushes of these workers: not known, the server lost some of its counts"
            )
        elif self._before:
            elapsed, since = status.uptime_s, "since the server was started anew"
        return (
            f"{pushes} pushes of these workers in {elapsed:.1f} s, {since}: "
            f"{pushes / elapsed:.1f} pushes/s"
        )

    def _unlearned(self) -> str:
        """Say what the workers told of themselves, the most first."""
        told = sorted(map(self._told, self._names), key=lambda told: -told.number)
        whose = ", ".join(filter(None, map(str, told)))
        return f"{sum(each.number for each in told)}" + (f" ({whose})" if whose else "")

    def _told(self, name: str) -> "_Told":
        """Sum up over a worker's lives; each goes through its data anew."""
        begins = self._lives[name]
        log = self._children.log(name)
        text = log.read_bytes() if log.exists() else b""  # It may be gone.
        lives = [
            text[begin:end].decode(errors="replace")
            for begin, end in zip(begins, [*begins[1:], None], strict=True)
        ]
        ended = [life for life in lives if _LAST.search(life)]
        numbers = [(_LAST if life in ended else _NEWS).findall(life) for life in lives]
        number = sum(int(each[-1] or 0) for each in numbers if each)
        return _Told(name, number, is_all=bool(lives) and ended == lives)

    def _judged(self, status: Status) -> int:
        ours = (worker for worker in status.workers if worker.name in self._names)
        return sum(worker.counts.judged for worker in ours)

    def _look(self) -> Status | None:
        """Return the server's figures, and say so if it has lost what it had."""
        status, last = self._status(), self._last
        if status is None:
            return None
        if last and last.initialized and last.generation != status.generation:
            lost = "what no checkpoint had"
            if status.durability.mode == "none":
                lost = "its variables, and training begins anew"
            # It was asked seconds ago, and may have gone on since.
            self._say(
                f"the server was at step {last.step} or later: it has lost {lost}"
            )
        self._last = status
        return status

    def _status(self) -> Status | None:
        connection = Connection(
            self._address,
            timeout_s=5.0,
            outage_s=0.0,
            credentials=self._plan.credentials,
        )
        try:
            return connection.status()
        except ParameterServerError:
            return None
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class _Told:
    """What a worker told of the batches that it has never learned from.

    Attributes:
        name: The worker.
        number: How many there were.
        is_all: Whether each of its lives came to tell its last.
    """

    name: str
    number: int
    is_all: bool

    def __str__(self) -> str:
        if not self.number:
            return "" if self.is_all else f"not known of {self.name}"
        return f"{self.number}{'' if self.is_all else ' or more'} of {self.name}"


def _start_server(children: Children, plan: Plan, say: Say) -> str:
    children.log(_SERVER).unlink(missing_ok=True)
    ports = ("--port", "0", "--http-port", "0")
    options = ("--app-dir", plan.app_dir, *ports, *plan.serve_options)
    lines = children.start_and_read_lines(
        _SERVER, "psserver", ("serve", *options), _LISTENING, 2
    )
    if not lines:
        raise LaunchError(_obituary(children, _SERVER, None))
    if lines[-1].startswith(_METRICS):  # Whatever the second line is without a page.
        say(lines[-1].strip())
    return lines[0].removeprefix(_LISTENING).strip()


def _obituary(children: Children, name: str, code: int | None) -> str:
    how = ""
    if code is not None:
        how = f" with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    return (
        f"{name}: ended{how}; last: {children.last_words(name)} "
        f"(see {children.log(name)})"
    )
