"""Child processes: their logs, their ends, and that no starter leaves any behind."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from psworker.children import Children

WAIT_S = 20.0

# Each is a module of its own, which `python -m` runs.
MODULES = {
    "speaker": """
import sys
for text in sys.argv[1:]:
    print(text, flush=True)
""",
    "complainer": """
import sys
sys.stderr.write("it went wrong\\n\\n  \\n")
sys.exit(3)
""",
    "self_killer": """
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
""",
    "polite": """
import os, signal, sys
def leave(number, frame):
    print("goodbye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print(os.getpid(), flush=True)
while True:
    signal.pause()
""",
    "stubborn": """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True:
    signal.pause()
""",
    "parent": """
import subprocess, sys
child = subprocess.Popen((sys.executable, "-c", "import signal; signal.pause()"))
print(child.pid, flush=True)
""",
    "talker": """
print("hello\\n\\nat last the line\\nmore", flush=True)
""",
    "starter": """
import sys
from pathlib import Path
from psworker.children import Children
with Children(Path(sys.argv[1])) as children:
    for name in ("first", "second"):
        print(children.start_and_read_line(name, "polite", ()), end="", flush=True)
    sys.stdin.read()
""",
    "leashed": """
import sys
from psworker import leash
leash._GRACE_S = 0.1
leash.main()
""",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the modules where children find them."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Keep children that are stopped with the test."""
    with Children(tmp_path / "logs") as children:
        yield children


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    """Close what a test opens, and end what it starts, also if it fails."""
    with ExitStack() as stack:
        yield stack


def test_what_a_child_prints_is_in_its_log(children: Children) -> None:
    """In the folder that was made for the logs; a second life adds to the first."""
    for life in ("one", "two"):
        children.start("worker-0", "speaker", (f"life {life}", "grüße"))
        assert children.wait(WAIT_S) == ("worker-0", 0)

    log = children.log("worker-0")
    assert log.parent.name == "logs"
    assert log.read_text() == "life one\ngrüße\nlife two\ngrüße\n"


@pytest.mark.parametrize(
    ("module", "code"),
    [("speaker", 0), ("complainer", 3), ("self_killer", -signal.SIGKILL)],
)
def test_the_end_of_a_child_is_told_with_its_code(
    children: Children, module: str, code: int
) -> None:
    """A signal's number is negative, as `subprocess` has it."""
    children.start("it", module, ())

    ended = children.wait(WAIT_S)

    assert ended == ("it", code)
    assert children.wait(0) is None


def test_the_last_words_are_the_last_line_that_says_something(
    children: Children,
) -> None:
    """Blank lines at the end say nothing, and neither does an empty log."""
    children.start("bad", "complainer", ())
    children.wait(WAIT_S)
    children.start("silent", "speaker", ())
    children.wait(WAIT_S)

    words = [children.last_words("bad"), children.last_words("silent")]

    assert words == ["it went wrong", ""]


def test_last_words_in_no_known_encoding_can_be_read(children: Children) -> None:
    """A crash may leave any bytes behind."""
    children.log("bad").write_bytes(b"before\nb\xff\xfe!\n")

    words = children.last_words("bad")

    assert words == "b\ufffd\ufffd!"


def test_the_first_line_can_be_waited_for(tmp_path: Path) -> None:
    """What comes after it goes to the log."""
    with Children(tmp_path) as children:
        line = children.start_and_read_line("it", "speaker", ("one", "two", "three"))
        children.wait(WAIT_S)

    assert (line, children.log("it").read_text()) == ("one\n", "two\nthree\n")


def test_a_child_that_never_prints_a_line_is_not_waited_for(
    children: Children,
) -> None:
    """Its end comes out as an empty line, and its complaint is in the log."""
    line = children.start_and_read_line("it", "complainer", ())

    assert line == ""
    assert children.last_words("it") == "it went wrong"


def test_stopping_asks_first(tmp_path: Path) -> None:
    """The child has time to leave in good order."""
    with Children(tmp_path) as children:
        children.start_and_read_line("it", "polite", ())
        children.stop()
        ended = children.wait(WAIT_S)

    assert ended == ("it", 0)
    assert children.log("it").read_text() == "goodbye\n"


def test_stopping_does_not_ask_for_ever(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ignores SIGTERM gets SIGKILL when the grace is over."""
    monkeypatch.setattr("psworker.children._GRACE_S", 0.05)
    pid = int(children.start_and_read_line("it", "stubborn", ()))

    try:
        children.stop()
        ended = children.wait(WAIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    assert ended == ("it", -signal.SIGKILL)


def test_what_a_child_has_started_ends_with_it(children: Children) -> None:
    """Also if the child itself has ended in good order."""
    pid = int(children.start_and_read_line("it", "parent", ()))
    grandchild = os.pidfd_open(pid)

    try:
        children.stop()
        gone, _, _ = select.select([grandchild], [], [], WAIT_S)
    finally:
        os.close(grandchild)

    assert gone


def test_a_line_is_found_among_others(children: Children) -> None:
    """A module may print what it likes before; that goes to the log."""
    line = children.start_and_read_line("it", "talker", (), begins="at last ")

    children.wait(WAIT_S)
    assert line == "at last the line\n"
    assert children.log("it").read_text().startswith("hello\n\n")


def test_some_lines_can_be_waited_for(tmp_path: Path) -> None:
    """From the one that begins as wanted, whatever the next say; then it runs on."""
    with Children(tmp_path) as children:
        lines = children.start_and_read_lines(
            "it", "speaker", ("hm", "a 1", "oh", "a 2"), begins="a ", number=2
        )
        children.wait(WAIT_S)

    assert lines == ["a 1\n", "oh\n"]
    assert children.log("it").read_text() == "hm\na 2\n"


def test_some_can_be_stopped_and_others_go_on(children: Children) -> None:
    """The one that was not named is there until all are stopped."""
    for name in ("one", "other"):
        children.start_and_read_line(name, "polite", ())

    children.stop(["one"])
    first = children.wait(WAIT_S)
    assert children.wait(0) is None
    children.stop()
    second = children.wait(WAIT_S)

    assert (first, second) == (("one", 0), ("other", 0))


def test_ctrl_c_in_the_terminal_does_not_reach_a_child(children: Children) -> None:
    """The terminal signals its foreground group, and a child is in its own."""
    pid = int(children.start_and_read_line("it", "polite", ()))

    group = os.getpgid(pid)

    assert group == pid
    assert group != os.getpgid(0)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Logs and pipes are closed with the children."""
    before = os.listdir("/proc/self/fd")

    with Children(tmp_path / "logs") as children:
        children.start("one", "speaker", ())
        children.start_and_read_line("other", "polite", ())

    assert os.listdir("/proc/self/fd") == before


def test_children_end_with_a_starter_that_is_killed(
    tmp_path: Path, ends: ExitStack
) -> None:
    """SIGKILL gives it no chance to stop them, so the closed pipe has to."""
    starter = ends.enter_context(
        subprocess.Popen(
            (sys.executable, "-m", "starter", tmp_path / "logs"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    ends.callback(starter.kill)
    assert starter.stdout is not None
    pids = [int(starter.stdout.readline()) for _ in range(2)]
    alive = {os.pidfd_open(pid) for pid in pids}
    for descriptor in alive:
        ends.callback(os.close, descriptor)
    assert select.select(alive, (), (), 0)[0] == []

    starter.kill()

    while alive:
        gone, _, _ = select.select(alive, (), (), WAIT_S)
        assert gone
        alive -= set(gone)


@pytest.mark.parametrize(
    ("module", "code"), [("polite", 0), ("stubborn", -signal.SIGKILL)]
)
def test_a_leash_that_is_let_go_ends_the_process(
    module: str, code: int, ends: ExitStack
) -> None:
    """First by SIGTERM, and for who ignores that, some time later, at once."""
    reading, writing = os.pipe()
    process = ends.enter_context(
        subprocess.Popen(
            (sys.executable, "-m", "leashed", str(reading), module),
            stdout=subprocess.PIPE,
            pass_fds=(reading,),
        )
    )
    ends.callback(process.kill)
    os.close(reading)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid

    os.close(writing)

    assert process.wait(WAIT_S) == code
