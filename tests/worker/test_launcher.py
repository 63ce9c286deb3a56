"""`psworker launch` and `psworker run` as processes, and what they refuse.

The tasks of these processes talk to their test, which says when a batch comes, when it
is the last, and when a worker crashes.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from pswire._generated import parameter_server_pb2 as pb
from psworker.cli import main

pytestmark = pytest.mark.timeout(180)

WAIT_S = 60.0
UNLEARNED = "batches never learned from"
NONE_LEFT = f"0 {UNLEARNED}"

TASK = """
import os, socket

def meet(*words):
    # Say who this is; the lines that come back say what to do.
    talk = socket.create_connection(("127.0.0.1", int(os.environ["CONDUCTOR"])))
    lines = talk.makefile("rw")
    print(*words, os.getpid(), file=lines, flush=True)
    for line in lines:
        if line == "crash\\n":
            os._exit(3)
        if line == "fail\\n":
            raise ValueError("no such batch")
        yield line

if os.environ.get("STOP_AT_IMPORT"):
    list(meet("import"))

import jax.numpy as jnp
import psworker

def batches(shard):
    for line in meet("training", shard.index):
        yield jnp.ones(2)

task = psworker.Task(
    init=lambda: {"w": jnp.zeros(2)},
    loss=lambda params, batch: jnp.sum((params["w"] - batch) ** 2),
    batches=batches,
    evaluate=lambda params: {"distance": float(abs(params["w"] - 1).max())},
)
"""

CRASH = """
import os, sys
print("the data are gone", file=sys.stderr, flush=True)
os._exit(3)
"""

PARROT = """
import os, sys
print(*sys.argv[1:], file=sys.stderr, flush=True)
os._exit(2)
"""

SPY = """
import psworker.loop

def train(client, task, shard, *, prefetch, background_push, **settings):
    print("prefetch", prefetch, "background_push", background_push)

psworker.loop.train = train
task = psworker.Task(init=dict, loss=lambda params, batch: 0, batches=lambda shard: ())
"""

SLOW_RULE = """
import quick
list(quick.meet("rule"))
"""


@dataclass
class Partner:
    """A process that has come to a point where it does as the test says.

    Attributes:
        place: Where it is: `training 0`, say.
        pid: Its process id.
        lines: What it is told, a batch for each line; its end is the end.
    """

    place: str
    pid: int
    lines: IO[str]

    def tell(self, *words: str) -> None:
        """Say one thing after another."""
        for word in words:
            print(word, file=self.lines, flush=True)


Meet = Callable[[int], dict[str, Partner]]


class Command:
    """A `psworker` command that runs as a process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out = folder / "stdout"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "psworker", *arguments),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self.process.stderr is not None
        self._err = self.process.stderr
        self._said = ""

    def until_it_says(self, pattern: str) -> None:
        """Read what it prints to stderr, up to a line that matches."""
        for line in self._err:
            self._said += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"it ended without {pattern!r}: {self._said}")

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, stdout and all of stderr."""
        self._said += self._err.read()
        code = self.process.wait(WAIT_S)
        return code, self._out.read_text(), self._said

    def children(self) -> set[int]:
        """Return the process ids of its children."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return {
            int(pid)
            for task in tasks
            for pid in (task / "children").read_text().split()
        }

    def watch_children(self, stack: ExitStack) -> set[int]:
        """Return a pidfd of each child; one is readable once its process has ended."""
        watched = {os.pidfd_open(pid) for pid in self.children()}
        for descriptor in watched:
            stack.callback(os.close, descriptor)
        return watched

    def close(self) -> None:
        """End it at once, if it runs still."""
        self.process.kill()
        self.process.wait()
        self._err.close()


def all_end(watched: set[int]) -> bool:
    """Say whether the processes of some pidfds end, waiting for it."""
    while watched:
        ended, _, _ = select.select(watched, (), (), WAIT_S)
        if not ended:
            return False
        watched = watched - set(ended)
    return True


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    """Close what a test opens, and end what it starts, also if it fails."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def psworker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: ExitStack
) -> Callable[..., Command]:
    """Start commands in a folder with a task, `quick:task`; they end with the test."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name, text in (("quick", TASK), ("crash", CRASH), ("slow_rule", SLOW_RULE)):
        (tmp_path / f"{name}.py").write_text(text)

    def start(*arguments: str) -> Command:
        command = Command(tmp_path, *arguments)
        ends.callback(command.close)
        return command

    return start


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch, ends: ExitStack) -> Meet:
    """Wait for so many processes to come, and return them by where they are."""
    listener = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener.settimeout(WAIT_S)
    monkeypatch.setenv("CONDUCTOR", str(listener.getsockname()[1]))

    def meet(count: int) -> dict[str, Partner]:
        partners = {}
        for _ in range(count):
            talk, _ = listener.accept()
            ends.callback(talk.close)
            talk.settimeout(WAIT_S)
            lines = ends.enter_context(talk.makefile("rw"))
            place, _, pid = lines.readline().strip().rpartition(" ")
            talk.settimeout(None)
            partners[place] = Partner(place, int(pid), lines)
            talk.close()  # The lines keep it open, until they are closed.
        return partners

    return meet


LOCAL = ("--local-server", "--", "--rule", "sgd", "-a", "learning_rate=0.125")


def test_a_launch_trains_to_the_end_and_sums_up(
    psworker: Callable[..., Command], meet: Meet, tmp_path: Path
) -> None:
    """Progress goes to stderr, the summary to stdout, and every process has a log."""
    command = psworker("launch", "quick:task", "--workers", "2", *LOCAL)
    workers = meet(2)
    command.until_it_says(r"^\d+ s: no push yet, 2 workers have joined")
    workers["training 0"].tell("batch", "batch", "batch")
    workers["training 1"].tell("batch", "batch")
    for worker in workers.values():
        worker.lines.close()

    code, out, err = command.end()

    assert code == 0
    assert re.search(r"^2 workers of quick:task, server 127\.0.*, logs in", err, re.M)
    assert re.search(r"^metrics on http://127\.0\.0\.1:[1-9]\d*/$", err, re.MULTILINE)
    assert "pushes: 5 applied, 0 dropped, 0 duplicate, 0 rejected" in out
    assert re.search(r"^worker-0 +active +\d+\.\d +3 +0 +0\.0%", out, re.MULTILINE)
    assert re.search(r"^worker-1 +active +\d+\.\d +2 +0 +0\.0%", out, re.MULTILINE)
    assert re.search(r"^5 pushes of these .*; 0 restarts, 0 workers lost$", out, re.M)
    assert f"\n{UNLEARNED}: 0\n" in out
    # Whatever the order, every push takes a quarter of the way that it has seen.
    assert re.search(r"^at step 5: distance 0\.\d+$", out, re.MULTILINE)
    logs = {log.stem: log.read_text() for log in (tmp_path / "psworker-logs").iterdir()}
    assert "initialized: 1 variables" in logs["server"]
    assert "as worker-0" in logs["worker-0"]
    assert "3 applied, 0 dropped" in logs["worker-0"]
    assert "2 applied, 0 dropped" in logs["worker-1"]


def test_a_launch_says_whose_batches_were_never_learned_from(
    psworker: Callable[..., Command], meet: Meet, tmp_path: Path
) -> None:
    """This server drops all; the worker that has lost most is named first."""
    command = psworker(
        *("launch", "quick:task", "--workers", "3", "--on-drop", "requeue"),
        *(*LOCAL, "--max-staleness", "-1"),
    )
    workers = meet(3)
    workers["training 0"].tell("batch")
    workers["training 2"].tell("batch", "batch")
    for worker in workers.values():
        worker.lines.close()

    code, out, _ = command.end()

    assert code == 0
    assert "pushes: 0 applied, 12 dropped," in out
    whose = r"3 \(2 of worker-2, 1 of worker-0\)"
    assert re.search(rf"^{UNLEARNED}: {whose}$", out, re.MULTILINE)


@pytest.mark.long
def test_what_a_worker_lost_in_all_its_lives_is_summed_up(
    psworker: Callable[..., Command], meet: Meet
) -> None:
    """The one that crashed may have lost more than it came to say."""
    command = psworker(
        *("launch", "quick:task", "--workers", "2"),
        *(*LOCAL, "--max-staleness", "-1"),
    )
    workers = meet(2)
    workers["training 0"].tell("batch", "batch", "batch", "fail")
    command.until_it_says(r"worker-0: restart 1 of 3$")
    workers["training 1"].tell("batch", "crash")
    command.until_it_says(r"worker-1: restart 1 of 3$")
    for partner in workers.values():
        partner.lines.close()
    workers = meet(2)
    workers["training 1"].tell("batch")
    for partner in workers.values():
        partner.lines.close()

    code, out, _ = command.end()

    assert code == 0
    whose = r"5 \(3 of worker-0, 2 or more of worker-1\)"
    assert re.search(rf"^{UNLEARNED}: {whose}$", out, re.MULTILINE)


@pytest.mark.long
def test_a_second_launch_sums_up_its_own_pushes(
    psworker: Callable[..., Command], meet: Meet, start_server: Any
) -> None:
    """Not those that workers of the same names had made before."""
    server = start_server()
    options = ("--workers", "1", "--server", server.address)
    outs = []

    for batches in (3, 2):
        command = psworker("launch", "quick:task", *options)
        (worker,) = meet(1).values()
        worker.tell(*["batch"] * batches)
        worker.lines.close()
        outs.append(command.end()[1])

    summed = [re.findall(r"^(\d+) pushes of these workers", out, re.M) for out in outs]
    assert summed == [["3"], ["2"]]
    assert server.status().counts.applied == 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("folders", "summary", "lost"),
    [
        (
            (),
            r"{} pushes of .* s, since the server was started anew: ",
            ["its variables, and training begins anew"],
        ),
        (("one", "one"), r"6 pushes of .* s, start-up included: ", []),
        (
            ("one", "other"),
            r"pushes of these workers: not known, .*; 0 restarts, ",
            ["what no checkpoint had"],
        ),
    ],
    ids=["begins_anew", "goes_on", "goes_back"],
)
def test_a_launch_that_outlives_its_server_says_what_it_sums_up(
    folders: tuple[str, ...],
    summary: str,
    lost: list[str],
    psworker: Callable[..., Command],
    meet: Meet,
    start_server: Any,
    tmp_path: Path,
) -> None:
    """What the server before had counted went with it, or goes on, or does in part.

    What is lost is said, once, rather than seen from steps that fall.
    """
    kept = [{"durability": "log", "data_dir": tmp_path / name} for name in folders]
    before, after = kept or ({}, {})
    first = start_server(**before)
    port = int(first.address.rpartition(":")[2])
    options = ("--workers", "1", "--server", first.address)
    command = psworker("launch", "quick:task", *options)
    (worker,) = meet(1).values()
    worker.tell("batch", "batch")
    command.until_it_says(r"^\d+ s: step 2")
    first.stop()
    second = start_server(port=port, **after)
    worker.tell("batch", "batch", "batch", "batch")
    worker.lines.close()

    _, out, said = command.end()

    was = r"^the server was at step 2 or later: it has lost (.*)$"
    told = re.findall(was, said, re.M)
    assert told == lost
    pushes = second.status().counts.judged
    assert 0 < pushes <= 6
    assert re.search(rf"^{summary.format(pushes)}", out, re.MULTILINE)


def test_a_worker_that_crashes_is_restarted(
    psworker: Callable[..., Command], meet: Meet, start_server: Any, tmp_path: Path
) -> None:
    """Under its old name, at a server that ran before; the run is complete then.

    The evaluation, which comes last, is no worker and is not counted as one.
    """
    server = start_server()
    command = psworker(
        *("launch", "quick:task", "--workers", "2", "--server", server.address),
        *("--log-dir", "here/logs"),
    )
    workers = meet(2)
    workers["training 0"].tell("batch", "batch")
    workers["training 1"].tell("batch", "crash")
    command.until_it_says(
        r"-1: ended with exit code 3; last: .* \(see here/logs/.*log\)"
    )
    command.until_it_says(r"-1: restart 1 of 3$")
    workers |= meet(1)
    workers["training 1"].tell("batch", "batch", "batch")
    for worker in workers.values():
        worker.lines.close()

    code, out, _ = command.end()

    assert code == 0
    assert re.search(
        r"^6 pushes of these .*; 1 restarts, 0 workers lost$", out, re.MULTILINE
    )
    status = server.status()
    assert [row.counts.applied for row in status.workers] == [2, 4]
    (log,) = (tmp_path / "here" / "logs").glob("*-1.log")
    assert log.read_text().count(f"joined {server.address} as {log.stem}") == 2


def test_a_worker_that_always_crashes_is_given_up(
    psworker: Callable[..., Command], start_server: Any
) -> None:
    """After the restarts that it may have; the message has its last words."""
    command = psworker(
        *("launch", "crash:task", "--workers", "1", "--max-restarts", "2"),
        *("--server", start_server().address),
    )

    code, out, err = command.end()

    assert code == 1
    assert re.search(rf"^{UNLEARNED}: 0 \(not known of .*-0\)$", out, re.MULTILINE)
    obituary = r"-0: ended with exit code 3; last: the data are gone \(see .*-0.log\)"
    assert len(re.findall(obituary, err)) == 3
    assert re.findall(r"-0: (.*restart.*)", err) == [
        "restart 1 of 2",
        "restart 2 of 2",
        "no restart is left of 2",
    ]
    assert "2 restarts, 1 workers lost" in out


def test_a_usage_error_of_a_worker_is_not_repeated(
    psworker: Callable[..., Command], start_server: Any
) -> None:
    """To try again would change nothing, so the message comes once from each."""
    command = psworker(
        *("launch", "quik:task", "--workers", "2", "--server", start_server().address)
    )

    code, out, err = command.end()

    assert code == 1
    message = r"-[01]: ended with exit code 2; last: Error: quik: expected a module in"
    assert len(re.findall(message, err)) == 2
    assert "0 restarts, 2 workers lost" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "--outage 5 --on-drop retry --steps 7 --compression topk:0.5",
            "--outage 5.0 --on-drop retry --steps 7 --compression topk:0.5",
        ),
        (
            "--background-push --prefetch --wire-dtype bf16",
            "--outage 60.0 --prefetch --background-push --wire-dtype bf16",
        ),
    ],
)
def test_a_worker_is_told_all_that_the_launch_was_told(
    psworker: Callable[..., Command],
    start_server: Any,
    tmp_path: Path,
    given: str,
    told: str,
) -> None:
    """And its own name and shard; this task repeats it as its last words."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "parrot.py").write_text(PARROT)
    address = start_server().address
    command = psworker(
        *("launch", "parrot:task", "--workers", "2", "--server", address),
        *("--app-dir", "elsewhere", *given.split()),
    )

    _, _, err = command.end()

    # The host's name and the launcher's process id: no other launch has them.
    prefix = re.escape(f"{socket.gethostname()}-{command.process.pid}")
    for index in range(2):
        name = f"{prefix}-{index}"
        assert re.search(
            rf"^{name}: .*; last: run parrot:task --server {address} --name {name} "
            rf"--shard {index}/2 --app-dir elsewhere {told} \(see ",
            err,
            re.MULTILINE,
        )


def test_a_local_server_that_cannot_start_ends_the_launch(
    psworker: Callable[..., Command],
) -> None:
    """Its own words say why, and no worker is started."""
    command = psworker(
        *("launch", "quick:task", "--workers", "1"),
        *("--local-server", "--", "--rule", "adamm"),
    )

    code, out, err = command.end()

    assert (code, out) == (1, "")
    assert re.search(r"^Error: server: ended.*; last: Error: .*adamm.*only adam", err)
    assert "workers of" not in err


def test_a_local_server_that_dies_ends_the_launch(
    psworker: Callable[..., Command],
    meet: Meet,
    monkeypatch: pytest.MonkeyPatch,
    ends: ExitStack,
) -> None:
    """What the workers have done is lost with it, so they are stopped."""
    monkeypatch.setenv("STOP_AT_IMPORT", "1")
    command = psworker("launch", "quick:task", "--workers", "2", *LOCAL)
    command.until_it_says("^2 workers of quick:task")
    partners = [meet(1)["import"], meet(1)["import"]]
    watched = command.watch_children(ends)
    (server,) = command.children() - {partner.pid for partner in partners}

    os.kill(server, signal.SIGKILL)
    code, _, err = command.end()

    assert code == 1
    assert re.search(r"^Error: server: ended with SIGKILL; last: ", err, re.MULTILINE)
    assert all_end(watched)


def test_ctrl_c_stops_all_and_sums_up(
    psworker: Callable[..., Command], meet: Meet, ends: ExitStack
) -> None:
    """Only the launcher gets the signal, as if the children were not in the terminal.

    A stop that was asked for is no failure, so the exit code is 0.
    """
    command = psworker("launch", "quick:task", "--workers", "2", *LOCAL)
    workers = meet(2)
    workers["training 0"].tell("batch")
    watched = command.watch_children(ends)
    assert len(watched) == 3

    command.process.send_signal(signal.SIGINT)
    code, out, err = command.end()

    assert code == 0
    assert "stopping" in err
    assert re.search(r"^\d pushes of these .*; 0 restarts, 0 workers lost$", out, re.M)
    assert all_end(watched)


def test_ctrl_c_before_the_server_is_there_stops_too(
    psworker: Callable[..., Command], meet: Meet, ends: ExitStack
) -> None:
    """The server is held up in the import of its rule when the signal comes."""
    command = psworker(
        *("launch", "quick:task", "--workers", "1"),
        *("--local-server", "--", "--rule", "slow_rule:rule"),
    )
    assert set(meet(1)) == {"rule"}
    watched = command.watch_children(ends)

    command.process.send_signal(signal.SIGINT)
    code, _, err = command.end()

    assert "Traceback" not in err
    assert code == 0
    assert all_end(watched)


def test_no_process_outlives_a_launcher_that_is_killed(
    psworker: Callable[..., Command], meet: Meet, ends: ExitStack
) -> None:
    """Server and workers alike, in the middle of the training."""
    command = psworker("launch", "quick:task", "--workers", "2", *LOCAL)
    meet(2)["training 1"].tell("batch")
    watched = command.watch_children(ends)
    assert len(watched) == 3

    command.process.kill()

    assert all_end(watched)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_stops_with_grace(
    psworker: Callable[..., Command], meet: Meet, start_server: Any, number: int
) -> None:
    """It says how far it has come, and that is no failure."""
    server = start_server()
    command = psworker("run", "quick:task", "--server", server.address)
    worker = meet(1)["training 0"]
    worker.tell("batch")
    command.until_it_says(r"step 1, loss 2, 1 applied, 0 dropped")

    command.process.send_signal(number)
    code, out, _ = command.end()

    assert (code, out) == (0, f"step 1, loss 2, 1 applied, 0 dropped, {NONE_LEFT}\n")


def test_a_worker_goes_through_the_parts_that_it_is_leased(
    psworker: Callable[..., Command], meet: Meet, start_server: Any
) -> None:
    """When the batches of one end, it has the next one."""
    server = start_server()
    command = psworker(
        "run", "quick:task", "--server", server.address, "--shard=auto/2"
    )

    places = []
    for _ in range(3):
        [(place, worker)] = meet(1).items()
        places.append(place)
        worker.tell("batch")
        worker.lines.close()
    assert {*places[:2]} == {"training 0", "training 1"}
    assert [*meet(1)] == places[1:2] != places[2:]
    command.process.send_signal(signal.SIGTERM)
    code, out, _ = command.end()

    assert (code, out[:7]) == (0, "step 3,")


@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "environment"])
def test_a_worker_sends_arrays_as_it_was_told(
    psworker: Callable[..., Command],
    meet: Meet,
    start_server: Any,
    start_relay: Any,
    monkeypatch: pytest.MonkeyPatch,
    by_flag: bool,
) -> None:
    """A relay sees what the first pull and the first push say of themselves."""
    relay = start_relay(start_server(same_host=False).address)
    options = ["--wire-dtype", "bf16", "--compression", "topk:0.5"] if by_flag else []
    if not by_flag:
        monkeypatch.setenv("PSWORKER_WIRE_DTYPE", "bf16")
        monkeypatch.setenv("PSWORKER_COMPRESSION", "topk:0.5")
    command = psworker("run", "quick:task", "--server", relay.address, *options)
    worker = meet(1)["training 0"]
    worker.tell("batch")
    worker.lines.close()

    code, _, err = command.end()

    assert code == 0, err
    sent = {call.method: b"".join(call.requests) for call in relay.calls}
    pull = pb.PullRequest.FromString(sent["Pull"])
    push = pb.ExchangeRequest.FromString(sent["Exchange"]).push.header
    assert pull.wire_dtype == pb.BFLOAT16
    assert (push.wire_dtype, push.snapshot_wire_dtype) == (pb.BFLOAT16, pb.BFLOAT16)
    assert push.counts == [2]


def test_a_worker_that_finds_all_done_says_at_which_step(
    psworker: Callable[..., Command], meet: Meet, start_server: Any
) -> None:
    """It has pushed nothing."""
    address = start_server().address
    command = psworker("run", "quick:task", "--server", address, "--steps", "0")
    meet(1)["training 0"].tell("batch")

    code, out, _ = command.end()

    assert (code, out) == (0, f"step 0, loss none, 0 applied, 0 dropped, {NONE_LEFT}\n")


def test_a_worker_that_fails_says_what_it_has_done(
    psworker: Callable[..., Command], meet: Meet, start_server: Any
) -> None:
    """As at any other end; what it failed of is said as ever."""
    command = psworker("run", "quick:task", "--server", start_server().address)
    meet(1)["training 0"].tell("batch", "batch", "fail")

    code, out, err = command.end()

    assert code == 1
    assert re.fullmatch(rf"step 2, loss .*, 2 applied, 0 dropped, {NONE_LEFT}\n", out)
    assert "ValueError: no such batch" in err


def test_a_worker_stops_while_it_still_loads_its_task(
    psworker: Callable[..., Command],
    meet: Meet,
    start_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Imports take seconds, so that is when people change their minds."""
    monkeypatch.setenv("STOP_AT_IMPORT", "1")
    command = psworker("run", "quick:task", "--server", start_server().address)
    meet(1)

    command.process.send_signal(signal.SIGINT)
    code, out, err = command.end()

    assert (code, out) == (0, "no push\n")
    assert "Traceback" not in err


def test_a_worker_that_finds_no_server_says_where_it_looked(
    psworker: Callable[..., Command],
) -> None:
    """Without a traceback, and with an exit code that lets it be restarted."""
    command = psworker(
        *("run", "quick:task", "--server", "127.0.0.1:1", "--outage", "0")
    )

    code, out, err = command.end()

    assert (code, out) == (1, "")
    assert "Error: ServerUnavailableError: 127.0.0.1:1: no answer for 0 s" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "Missing argument 'MODULE:TASK'"),
        ("run quick:task", "Missing option '--server'"),
        ("run quick --server :1", "quick: expected module:attribute, got 'quick'"),
        ("run nowhere:task --server :1", "nowhere: expected a module in"),
        (
            "run psworker:tusk --server :1",
            "psworker:tusk: expected 'tusk' in psworker, got only task",
        ),
        ("run m:t --server :1 --shard 4/4", "'--shard': shard: expected I/N with 0 <="),
        ("run m:t --server :1 --shard half", "'--shard': shard: expected I/N, as in"),
        ("run m:t --server :1 --steps -1", "'--steps': -1 is not in the range"),
        ("run m:t --server :1 --on-drop stop", "'--on-drop': 'stop' is not one of"),
        (
            "run m:t --server :1 --on-drop retry --prefetch",
            'on_drop: expected "skip" or "requeue" beside prefetch, got "retry"',
        ),
        (
            "launch m:t --workers 1 --server :1 --on-drop retry --background-push",
            'on_drop: expected "skip" or "requeue" beside background_push, got "retry"',
        ),
        ("run m:t --server :1 --outage -1", "'--outage': -1.0 is not in the range"),
        ("run m:t --server :1 --app-dir not/here", "'--app-dir': Directory 'not/here'"),
        ("run m:t --server :1 --wire-dtype f16", "wire_dtype: expected one of bf16, "),
        ("run m:t --server :1 --compression topk:2", "compression: expected topk:FR"),
        ("launch m:t --local-server", "Missing option '--workers'"),
        ("launch m:t --workers 0 --local-server", "'--workers': 0 is not in the range"),
        ("launch m:t --workers 1", "expected either --server or --local-server"),
        (
            "launch m:t --workers 1 --server :1 --local-server",
            "expected either --server or --local-server",
        ),
        (
            "launch m:t --workers 1 --server :1 -- --rule sgd",
            "--local-server: expected beside serve options, got --rule",
        ),
        (
            "launch m:t --workers 1 --local-server --max-restarts -1",
            "'--max-restarts': -1 is not in the range",
        ),
        (
            "launch m:t --workers 1 --local-server --wire-dtype bf16:push:pull",
            "wire_dtype: expected one of bf16, bf16:pull, bf16:push, got 'bf16:push:p",
        ),
        (
            "launch m:t --workers 1 --local-server --compression top:0.1",
            "compression: expected topk:FRACTION",
        ),
        ("evaluate m:t", "Missing option '--server'"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With click's exit code for it, and before anything is started."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, arguments.split())

    assert message in result.output
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "variable", "said"),
    [
        ((), None, "prefetch False background_push False"),
        (("--prefetch",), None, "prefetch True background_push False"),
        ((), "PSWORKER_BACKGROUND_PUSH", "prefetch False background_push True"),
    ],
)
def test_a_worker_overlaps_as_it_is_told(
    psworker: Callable[..., Command],
    start_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    variable: str | None,
    said: str,
) -> None:
    """By a flag or by the environment; this task trains by saying how."""
    (tmp_path / "spy.py").write_text(SPY)
    if variable:
        monkeypatch.setenv(variable, "1")

    command = psworker("run", "spy:task", "--server", start_server().address, *flags)

    code, out, _ = command.end()
    assert (code, out) == (0, f"{said}\nno push\n")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            'on_drop="retry"',
            'on_drop: expected "skip" or "requeue" beside prefetch, got "retry"',
        ),
        (
            'rows={"emb": list}',
            "prefetch: expected no rows in the task, got those of emb",
        ),
    ],
    ids=["retry", "rows"],
)
def test_not_every_task_can_be_overlapped(
    psworker: Callable[..., Command], tmp_path: Path, setting: str, told: str
) -> None:
    """Its own words are looked at like those of the command."""
    text = f"task = psworker.Task(init=int, loss=int, batches=int, {setting})"
    (tmp_path / "overlapped.py").write_text(f"import psworker\n\n{text}\n")

    command = psworker("run", "overlapped:task", "--server", ":1", "--prefetch")

    code, _, err = command.end()
    assert code == 2
    assert told in err


@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "environment"])
def test_an_option_may_come_from_the_environment(
    by_flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the flag says has precedence."""
    monkeypatch.setenv("PSWORKER_STEPS", "-1")
    flag = ["--steps", "-2"] if by_flag else []

    result = CliRunner().invoke(main, ["run", "m:t", "--server", ":1", *flag])

    value = -2 if by_flag else -1
    assert f"Invalid value for '--steps': {value} is not in the range" in result.output
    assert result.exit_code == 2
