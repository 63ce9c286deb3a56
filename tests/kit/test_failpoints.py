"""A server fails where and how it is told to, and only one that a test has started."""

import ast
import errno
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from kit.failingdisk import FailingDisk
from kit.failpoints import POINTS, Failpoint, Failpoints
from kit.processes import Served, Successors
from kit.serve import install
from psserver.durability.disk import RealDisk

StartServer = Callable[..., psserver.Server]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


def armed(*failpoints: str) -> Failpoints:
    """Make points of their notation."""
    return Failpoints(map(Failpoint.parse, failpoints))


def mark(number: int) -> dict[str, Any]:
    """Make the gradient with which push `number` adds 1 to its own element."""
    gradient = np.zeros(20, np.float32)
    gradient[number] = -1.0
    return {"A": gradient}


ZEROS = {"A": np.zeros(20, np.float32)}


# In this process


def test_each_point_is_reached(
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In two lives with some pushes; the second one ends with a third checkpoint."""
    told = {name: f"{name}=tell" for name in POINTS}
    told["log.torn_write"] = "log.torn_write(10)=tell@2"
    install(armed(*told.values()), monkeypatch.setattr)
    settings = {"durability": "log", "data_dir": str(tmp_path / "data"), "keep": 2}

    for _ in range(2):
        with (
            start_server(**settings) as server,
            psworker.connect(server.address) as client,
        ):
            client.initialize(ZEROS)
            for number in range(3):
                client.push(mark(number), client.pull())

    said = capfd.readouterr().out.split("\n")
    assert sorted(filter(None, said)) == sorted(f"reached {name}" for name in POINTS)


@pytest.mark.parametrize(
    ("action", "error", "number"),
    [
        ("eio", OSError, errno.EIO),
        ("enospc", OSError, errno.ENOSPC),
        ("error", RuntimeError, None),
    ],
)
def test_a_point_fails_once_in_the_way_it_is_told(
    action: str, error: type[Exception], number: int | None
) -> None:
    """The second time that it is reached, and never again."""
    points = armed(f"push.recv={action}@2", "apply.done=eio")

    points.reach("push.recv")
    with pytest.raises(error, match=r"failpoint push\.recv") as raised:
        points.reach("push.recv")
    points.reach("push.recv")

    assert getattr(raised.value, "errno", None) == number


def test_a_torn_write_writes_its_first_bytes(tmp_path: Path) -> None:
    """Of all the buffers together; the one before it is whole, and so is one after."""
    disk = FailingDisk(RealDisk(), armed("log.torn_write(4)=enospc@2"))
    writer = disk.create(tmp_path / "1.log")

    writer.write([b"first "])
    with pytest.raises(OSError, match=r"failpoint log\.torn_write"):
        writer.write([b"sec", b"", b"ond "])
    writer.write([b"third"])
    writer.close()

    assert disk.read(tmp_path / "1.log", 0, 100) == b"first secothird"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("push.recv", "expected NAME=ACTION[@AT], got 'push.recv'"),
        ("push.recv=kill@x", "expected NAME=ACTION[@AT], got 'push.recv=kill@x'"),
        ("push.sent=kill", f"expected one of {', '.join(POINTS)}, got push.sent"),
        ("push.recv=sleep", "tell, got sleep"),
    ],
)
def test_what_is_no_failpoint_is_refused(text: str, expected: str) -> None:
    """A test that misspells one would prove nothing."""
    with pytest.raises(ValueError, match=re.escape(expected)):
        Failpoint.parse(text)


# In a process of its own


@pytest.fixture
def successors(tmp_path: Path) -> Successors:
    """Prepare servers with a log, at one address, of one data directory."""
    return Successors(
        *("--rule", "sgd", "-a", "learning_rate=1.0", "--max-staleness", "off"),
        *("--http-port", "off", "--durability", "log", "--checkpoint-every", "10"),
        *("--data-dir", str(tmp_path / "data"), "--keep", "2"),
    )


@pytest.fixture
def start(successors: Successors) -> Iterator[Callable[..., Served]]:
    """Start one after another; they end with the test."""
    with ExitStack() as stack:
        yield lambda *failpoints: stack.enter_context(successors.start(*failpoints))


def test_a_step_that_is_not_synced_is_not_seen(start: Callable[..., Served]) -> None:
    """The process is held right before the sync, and goes on when it is told to."""
    # The first one is of a new log.
    server = start("log.before_sync=hold@2")
    with (
        psworker.connect(server.address()) as client,
        psworker.connect(server.address()) as other,
        ThreadPoolExecutor(1, "test") as pool,
    ):
        client.initialize(ZEROS)
        server.line()  # What to type next.

        pushing = pool.submit(client.push, mark(0), client.pull())
        assert server.line() == "reached log.before_sync"
        before = other.pull()
        server.tell()

        assert pushing.result(TIMEOUT_S).step == 1
        assert before.step == 0
        assert not before.params["A"].any()
        assert other.pull().step == 1


# Production code

# By no option, as whoever lists the processes would see it.
TOKENS_COME_HERE = ("options.py", "serve.py")


def test_production_code_knows_nothing_of_this() -> None:
    """No point, nothing of this folder, no environment variable but by an option."""
    home = {"pswire": ROOT / "proto", "psserver": ROOT, "psworker": ROOT}
    sources = [
        path
        for package, folder in home.items()
        for path in (folder / package).rglob("*")
    ]
    for path in sources:
        if path.suffix not in (".py", ".js", ".html", ".proto"):
            continue
        text = path.read_text()
        assert not re.search(r"fail_?point|chaos|\bkit\b", text, re.IGNORECASE), path
        if path.suffix == ".py":
            asked = list(read_from_environment(ast.parse(text)))
            assert len(asked) == TOKENS_COME_HERE.count(path.name), path
    assert len(sources) > 100


def read_from_environment(tree: ast.AST) -> Iterator[str]:
    """Yield what a module asks the environment for; to set something is no question."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="getenv" | "environb" as name):
                yield name
            case ast.ImportFrom(module="os", names=names):
                yield from (alias.name for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="get", value=ast.Attribute(attr="environ"))
            ):
                yield "environ.get"
            case ast.Subscript(value=ast.Attribute(attr="environ"), ctx=ast.Load()):
                yield "environ"
