"""The README's code and commands, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:7070"
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return every command that the README tells to type."""
    lines = "\n".join(blocks("console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def starting(*starts: str) -> list[str]:
    """Return the commands that start with one of some words."""
    return [command for command in commands() if command.startswith(starts)]


def watching() -> list[str]:
    """Return the commands that show a run while it lasts."""
    return [c for c in commands() if "--watch" in c or "psserver metrics" in c]


def run(command: str, folder: Path) -> str:
    """Run a command as a person would, and return what it printed to stdout."""
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def words(text: str) -> list[str]:
    """Return each line's words, without the figures and bars that change."""
    text = re.sub(r"generation [0-9a-f]+", "generation", text)
    # So is whether another worker than the slow one has lost a batch.
    text = re.sub(r"(never learned from): .*", r"\1", text)
    lines = (re.findall(r"[a-z][a-z-]+", line) for line in text.splitlines())
    # How old the oldest gradients get, and so how many bars there are, is chance.
    return [w for line in lines if (w := " ".join(line)) and "staleness" not in w]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the README's task in it."""
    (code,) = (block for block in blocks("python") if block.startswith("# train.py"))
    (tmp_path / "train.py").write_text(code)
    return tmp_path


def serving(*, durable: bool) -> str:
    """Return the command that starts a server, with or without a data directory."""
    (command,) = [c for c in starting("psserver serve") if ("data-dir" in c) == durable]
    return command


@contextmanager
def started(
    command: str, folder: Path
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Start a server on a free port, and yield its address and process."""
    process = subprocess.Popen(
        [BIN / "psserver", *command.split()[1:], "--port", "0", "--http-port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield line.removeprefix("listening on ").strip(), process
        finally:
            process.terminate()


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The server that the README starts, on a free port."""
    with started(serving(durable=False), folder) as (address, _):
        yield address


def test_the_code_for_one_process_runs() -> None:
    """It holds its own assertions."""
    codes = [block for block in blocks("python") if "psserver.Server" in block]

    assert len(codes) == 2
    for code in codes:
        exec(compile(code, "README.md", "exec"), {})


def test_every_command_of_the_readme_is_run_here() -> None:
    """A new one has to be added to one of these tests."""
    tried = starting("psserver", "psworker", "make demo")
    setup = starting("python3 -m venv", "pip install")

    assert len(tried) == 20
    assert sorted(tried + setup) == sorted(commands())


def test_the_commands_for_a_server_and_its_workers_run(
    folder: Path, server: str
) -> None:
    """In the order in which they stand there; a report of it all is the last."""
    others = {*watching(), *starting("psserver checkpoint")}
    asked = [c for c in commands() if ADDRESS in c and c not in others]
    typed = [c.replace(ADDRESS, server) for c in asked]

    printed = {command: run(command, folder) for command in typed}

    launched, ran, status, _, evaluated, health, stopped = printed.values()
    assert "0 workers lost" in launched
    assert ran.startswith("step 80")
    assert "drop rate" in status
    assert "error of w" in evaluated
    assert health == "serving\n"
    assert stopped == f"{server} is stopping\n"
    (report,) = starting("psserver report")
    assert run(report, folder) == "report: report.html\n"


@pytest.mark.long
def test_a_server_goes_on_where_one_that_was_killed_had_ended(folder: Path) -> None:
    """Between the two, the commands for checkpoints run, in the README's order."""
    save, *offline = starting("psserver checkpoint")
    (train, _) = starting("psworker launch")

    with started(serving(durable=True), folder) as (address, process):
        run(train.replace(ADDRESS, address).replace("500", "20"), folder)
        saved = run(save.replace(ADDRESS, address), folder)
        process.kill()
    listed, shown, exported = (run(command, folder) for command in offline)
    with started(serving(durable=True), folder) as (address, _):
        after = json.loads(run(f"psserver status {address} --json", folder))

    assert saved.startswith("step 2")  # 20, or one more of the other worker.
    assert " good " in listed
    assert "variables/w" in shown
    assert exported.startswith("model.safetensors: 2 variables of step 2")
    assert after["step"] == after["applied"] == int(saved.split()[1].rstrip(":"))


def test_the_commands_for_watching_a_run_run(folder: Path, server: str) -> None:
    """The live view wants a terminal, and says so; what goes on for ever is cut off."""
    live, *others = [c.replace(ADDRESS, server) for c in watching()]

    said = run(f"{live} 2>&1 || true", folder)
    once, table, lines = (run(f"{each} | head -2", folder) for each in others)

    assert "--watch: expected a terminal" in said
    assert json.loads(once)["step"] == 0
    assert table.startswith("time,incarnation,step,scope,worker,")
    first, second = map(json.loads, lines.splitlines())
    assert second["time"] > first["time"]


@pytest.mark.long
def test_the_command_for_all_at_once_runs(folder: Path) -> None:
    """The server's port is a free one by itself."""
    (command,) = [c for c in starting("psworker launch") if "--local-server" in c]

    printed = run(command, folder)

    assert "error of w" in printed


def test_the_demo_prints_what_the_readme_shows() -> None:
    """Figures differ from run to run; words, accuracy and some drops do not."""
    (shown,) = blocks("text")

    printed = run(f"make --silent demo VENV={sys.prefix}", ROOT)

    assert words(printed) == words(shown)
    accuracy = re.search(r"accuracy on held-out digits (0\.\d+|1)", printed)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.95
    dropped = re.search(r"applied, (\d+) dropped", printed)
    assert dropped is not None
    assert int(dropped[1]) > 0
