"""`psserver metrics`: the same figures as `status`, for scripts, and as documented."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result

import psserver
import psworker
from kit.processes import Process
from kit.statuses import QUIET
from psserver import output
from psserver.metrics import recorder
from psserver.output import COLUMNS
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import ServerUnavailableError
from pswire.status import Durability

StartServer = Callable[..., psserver.Server]
Run = Callable[..., Result]
Follow = Callable[..., AbstractContextManager[Process]]

_TIMEOUT_S = 60.0
_DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def rows(text: str) -> list[dict[str, str]]:
    """Read CSV."""
    return list(csv.DictReader(text.splitlines()))


def lasting(sample: Any) -> Any:
    """Leave out of a status what changes by itself."""
    passing = {"time", "uptime_s", "last_seen_s", "pushes_per_s", "steps_per_s"}
    if isinstance(sample, list):
        return [lasting(each) for each in sample]
    if isinstance(sample, dict):
        return {k: lasting(v) for k, v in sample.items() if k not in passing}
    return sample


def test_json_is_one_line_with_every_figure_of_the_status(
    run: Run, known: psserver.Server
) -> None:
    """Beside them there is the time alone."""
    result = run("metrics", known.address)

    (line,) = result.output.splitlines()
    sample = json.loads(line)
    status = known.status().to_json()
    assert result.exit_code == 0
    assert sample.keys() - status.keys() == {"time"}
    assert lasting(sample) == lasting(status)
    assert sample["time"] > 1.7e9


def test_what_outlasts_the_server_is_a_figure_of_the_total() -> None:
    """Its names are those of the JSON, but for the mode, which has none of its own."""
    durability = Durability("log", 1200, 34.5678, saves=3, failures=2, corrupt=1)
    sample = recorder.sample(replace(QUIET, durability=durability), 1.7e9)

    total, unjoined = output.rows(sample)

    told = ("durability", "saved_step", "saved_s", "saves", "failures", "corrupt")
    assert [total[c] for c in told] == ["log", 1200, 34.568, 3, 2, 1]
    assert not unjoined.keys() & {*told}


def test_csv_has_a_row_for_the_total_each_worker_and_who_never_joined(
    run: Run, known: psserver.Server, dial: Callable[[str], grpc.Channel]
) -> None:
    """The rows of workers and of what is no worker's add up to the total."""
    push = pb.PushRequest(header=pb.PushHeader(session="stranger", seq=1))
    stranger = rpc.ParameterServerStub(dial(known.address))
    with pytest.raises(grpc.RpcError, match="session: expected one that has joined"):
        stranger.Push(push, timeout=_TIMEOUT_S)

    result = run("metrics", known.address, "--format", "csv")

    total, ann, unjoined = rows(result.output)
    told = ("scope", "worker", "applied", "dropped", "rejected", "drop_rate", "state")
    assert result.exit_code == 0
    assert tuple(total) == COLUMNS
    assert [total[c] for c in told] == ["total", "", "2", "1", "2", str(1 / 3), ""]
    assert [ann[c] for c in told] == [
        "worker",
        "ann",
        "2",
        "1",
        "1",
        str(1 / 3),
        "active",
    ]
    assert [unjoined[c] for c in told] == ["unjoined", "", "0", "0", "1", "0.0", ""]
    assert (
        len(
            {
                (row["time"], row["incarnation"], row["step"])
                for row in (total, ann, unjoined)
            }
        )
        == 1
    )


@pytest.mark.parametrize("name", ["=1+1", "@a", "-1", "+1", 'a,"b"', "total", "ünï"])
def test_a_worker_s_name_is_data(
    name: str, run: Run, start_server: StartServer
) -> None:
    """It is written as it is, whatever a spreadsheet would make of it."""
    server = start_server()
    with psworker.connect(server.address, name=name):
        result = run("metrics", server.address, "--format", "csv")

    named = [(row["scope"], row["worker"]) for row in rows(result.output)]
    assert named == [("total", ""), ("worker", name), ("unjoined", "")]


def test_following_goes_on_through_a_restart(
    follow: Follow, start_server: StartServer
) -> None:
    """That the server is away is said once, on stderr; then another one counts."""
    first = start_server()
    with follow(first.address) as process:
        before = json.loads(process.line())
        assert json.loads(process.line())["incarnation"] == before["incarnation"]
        first.stop()
        away = process.log_line()
        second = start_server(port=int(first.address.rpartition(":")[2]))
        lines = iter(lambda: json.loads(process.line()), None)
        after = next(s for s in lines if s["incarnation"] != before["incarnation"])
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()

    assert re.fullmatch(rf"{first.address}: .*; going on once it answers", away)
    assert after["incarnation"] == second.status().incarnation
    assert after["time"] > before["time"]
    assert all(json.loads(line) for line in rest.splitlines())
    assert (process.returncode, errors) == (0, "")


def test_every_absence_is_told_once(
    known: psserver.Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However long it lasts; nothing but data goes where the data goes."""
    there, gone = known.status(), ServerUnavailableError("a:1: gone")
    answers = iter([there, gone, gone, there, gone, gone])
    monkeypatch.setattr("psserver.admin.follow", lambda address, credentials: answers)
    file = io.StringIO()

    output.write("a:1", file, style="json", follow=True)

    samples = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [sample["step"] for sample in samples] == [2, 2]
    assert capsys.readouterr().err == "a:1: gone; going on once it answers\n" * 2


def test_following_as_csv_writes_the_header_once(
    follow: Follow, known: psserver.Server
) -> None:
    """SIGTERM ends it as Ctrl-C does."""
    with follow(known.address, "--format", "csv") as process:
        lines = [process.line() for _ in range(1 + 2 * 3)]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate()

    scopes = [row["scope"] for row in rows("\n".join([*lines, rest]))]
    assert process.returncode == 0
    assert scopes[:6] == ["total", "worker", "unjoined"] * 2


def test_a_closed_pipe_ends_it_quietly(follow: Follow, known: psserver.Server) -> None:
    """As in `| head -1`."""
    with follow(known.address) as process:
        process.line()
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        code = process.wait()

    assert (code, errors) == (0, "")


# What docs/metrics.md says


def documented(heading: str, table: int = 0) -> set[str]:
    """Return the first column of one of a section's tables."""
    section = _DOCS.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    block = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[table]
    return set(re.findall(r"^\| `(\w+)` \|", block, re.MULTILINE))


def test_every_key_and_column_is_documented_and_no_other(
    run: Run, known: psserver.Server
) -> None:
    """A worker shares the keys of the counts with the total."""
    sample = json.loads(run("metrics", known.address).output)

    counts = sample["unjoined"].keys()
    (worker,) = sample["workers"]
    assert documented("JSON") == sample.keys()
    assert documented("JSON", 1) == worker.keys() - counts
    assert documented("JSON", 2) == sample["durability"].keys()
    assert counts < worker.keys()
    assert documented("CSV") == set(COLUMNS)


def test_the_documented_code_runs(known: psserver.Server, tmp_path: Path) -> None:
    """It names the worker that loses pushes; the one that follows ends here."""
    follows, once = re.findall(r"```python\n(.*?)```", _DOCS, re.DOTALL)
    follows = follows.replace(
        "        last = now", "        if last:\n            break\n        last = now"
    )

    def printed(code: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(code.replace("127.0.0.1:7070", known.address))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, script],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
            timeout=_TIMEOUT_S,
        )
        return done.stdout

    assert printed(once) == "ann 1 active\n"
    assert printed(follows) == "step 2: 0 dropped since the last line\n"
