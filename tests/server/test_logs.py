"""The log: a line for an event worth reading, for people or as JSON."""

import ast
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import psworker
from kit.statuses import QUIET
from psserver.metrics.workernews import WorkerNews
from pswire.counts import Counts, WorkerStatus

Run = Callable[..., Result]
Serve = Callable[..., AbstractContextManager[Any]]

_ROOT = Path(__file__).parents[2]
_LOGS_SOME = """
import logging, sys, warnings
from psserver import logs

logs.configure(sys.argv[1], "lab")
told = {"event": "told"}
logging.getLogger("psserver").info("one\\ntwo \\x1b[31m\\u2028", extra=told)
try:
    raise ValueError("three\\nfour")
except ValueError:
    logging.getLogger("pswire").exception("failed", extra={"event": "call_failed"})
logging.getLogger("library").warning("%d bytes", 5)
logging.getLogger("library").info("not worth reading")
warnings.warn("old")
"""
_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def logged(style: str) -> list[str]:
    """Return the lines that come of some events."""
    done = subprocess.run(
        [sys.executable, "-c", _LOGS_SOME, style],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.stderr.split("\n")[:-1]


def test_a_run_is_told_in_json(serve: Serve) -> None:
    """From the first worker to the last counts; nothing is told of single pushes."""
    gradient = {"w": np.ones(2, np.float32)}
    settings = ("--max-staleness", "0", "--log-format", "json", "--name", "lab-1")

    def until(event: str) -> Iterator[dict[str, Any]]:
        while True:
            line = json.loads(process.log_line())
            yield line
            if line["event"] == event:
                return

    with serve(*settings) as process:
        address = process.line().removeprefix("listening on ")
        with (
            psworker.connect(address, name="ann", same_host=False) as ann,
            psworker.connect(address, name="bo", same_host=False) as bo,
        ):
            ann.initialize(gradient)
            old = bo.pull()
            for _ in range(30):
                ann.push(gradient, ann.pull())
            for _ in range(12):
                bo.push(gradient, old)
            lines = [*until("worker_starved")]
            bo.push(gradient, bo.pull())
            lines += until("worker_recovered")
            with psworker.connect(address, name="bo", same_host=False):
                lines += until("taken_over")
        process.send_signal(signal.SIGINT)
        code, log = process.finish()
    lines += map(json.loads, log.splitlines())

    told = {line["event"]: line for line in lines}
    assert code == 0
    assert [line["event"] for line in lines] == [
        *("serving", "joined", "joined", "initialized", "worker_starved"),
        *("worker_recovered", "taken_over", "stopping", "stopped"),
    ]
    common = ["time", "server", "level", "logger", "event", "message"]
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    for line in lines:
        assert list(line)[:6] == common
        assert re.fullmatch(stamp, line["time"])
        assert line["server"] == "lab-1"
    assert told["serving"].items() >= {
        *(("address", address), ("rule", "sgd(learning_rate=0.5)"), ("limit", 0)),
        *(("level", "info"), ("logger", "psserver"), ("staleness_policy", "drop")),
    }
    assert told["initialized"].items() >= {
        *(("worker", "ann"), ("variables", 1), ("nbytes", 8)),
    }
    assert told["taken_over"]["session"] != told["joined"]["session"]
    assert told["worker_starved"].items() >= {("worker", "bo"), ("level", "warning")}
    assert told["worker_starved"]["consecutive_drops"] >= 10
    assert {k: v for k, v in told["stopped"].items() if k not in common} == {
        "step": 31,
        **Counts(31, 12).to_json(),
    }


def test_json_has_a_line_for_each_event_whatever_its_text() -> None:
    """A traceback is one string; libraries' lines have the same form."""
    first, second, third, fourth = map(json.loads, logged("json"))

    assert (first["message"], first["event"]) == ("one\ntwo \x1b[31m\u2028", "told")
    assert (second["logger"], second["level"]) == ("pswire", "error")
    assert second["traceback"].startswith("Traceback")
    assert second["traceback"].endswith("ValueError: three\nfour")
    assert "traceback" not in first
    assert (third["logger"], third["event"]) == ("library", "other")
    assert (third["level"], third["message"]) == ("warning", "5 bytes")
    assert "UserWarning: old" in fourth["message"]


def test_for_people_a_text_can_neither_end_a_line_nor_steer_the_terminal() -> None:
    """Only a traceback takes more than one."""
    first, second, traceback, *rest = logged("human")

    escaped = r"one\\ntwo \\x1b\[31m\\u2028"
    assert re.fullmatch(rf"{_STAMP} psserver: {escaped}", first)
    assert re.fullmatch(rf"{_STAMP} pswire: failed", second)
    assert traceback.startswith("Traceback")
    assert [line for line in rest if re.fullmatch(f"{_STAMP} library: 5 bytes", line)]


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_format_may_come_from_anywhere(
    place: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every setting may."""
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "psserver.logs.configure", lambda *settings: configured.append(settings)
    )
    (tmp_path / "ps.toml").write_text("log-format = 'json'\nport = -1")
    environment = {
        "environment": {"PSSERVER_LOG_FORMAT": "json", "PSSERVER_PORT": "-1"},
        "file": {"PSSERVER_CONFIG": str(tmp_path / "ps.toml")},
    }

    result = run("serve", "--rule", "sgd", **environment[place])

    assert "port: expected 0 to 65535, got -1" in result.output
    assert configured == [("json", "asyncps")]


def test_an_unknown_format_is_a_usage_error(run: Run) -> None:
    """It is said which ones there are."""
    result = run("serve", "--rule", "sgd", "--log-format", "xml")

    assert result.exit_code == 2
    assert "'xml' is not one of 'human', 'json'" in result.output


# What happens to workers


def sample(last_seen_s: float, drops: int = 0, rate: float = 0.0) -> dict[str, Any]:
    """Return what a recorder shows: one worker among others, at a drop rate of all."""
    counts = Counts(1, drops)
    worker = WorkerStatus("ann", counts, drops, last_seen_s, recent_drops=drops)
    total = Counts(round(1000 * (1 - rate)), round(1000 * rate))
    status = replace(QUIET, counts=total, workers=(worker,))
    return {"time": 0.0, **status.to_json()}


ACTIVE, SILENT = sample(1), sample(61)
STARVED, HOPELESS = sample(1, drops=12, rate=0.1), sample(1, drops=12, rate=0.9)
FORGOTTEN = {**SILENT, "workers": []}


@pytest.mark.parametrize(
    ("samples", "texts"),
    [
        ([ACTIVE, ACTIVE], []),
        ([STARVED, STARVED], ["is starved: of its last 20 pushes 12 were dropped"]),
        ([HOPELESS], []),
        ([ACTIVE, STARVED, HOPELESS], ["is starved: ", "is no longer starved"]),
        ([STARVED, ACTIVE, ACTIVE], ["is starved: ", "is no longer starved"]),
        (
            [ACTIVE, SILENT, SILENT, ACTIVE, SILENT],
            ["has gone silent: its last call was 61 s ago", "is back", "has gone"],
        ),
        ([SILENT, SILENT, STARVED], ["is starved: "]),
        ([SILENT, ACTIVE], ["is back"]),
        ([ACTIVE, SILENT, FORGOTTEN, ACTIVE], ["has gone silent"]),
        ([STARVED, SILENT, STARVED], ["is starved", "has gone silent", "is starved"]),
    ],
)
def test_a_worker_s_state_is_told_when_it_changes(
    samples: list[dict[str, Any]], texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Not again with every sample; whoever drops as all others do is not starved."""
    caplog.set_level(logging.INFO, "psserver")
    news = WorkerNews()

    for each in samples:
        news.write(each)

    assert len(caplog.messages) == len(texts)
    for message, text in zip(caplog.messages, texts, strict=True):
        assert message.startswith(f"worker ann {text}")


# What docs/logs.md says


def events() -> Iterator[str]:
    """Yield the event of every call that logs."""
    for package in ("psserver", "proto/pswire"):
        for path in (_ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"))):
                        source = ast.unparse(node)
                        name = re.search(r"extra=\{'event': '(\w+)'", source)
                        assert name, f"{path.name}: {source}"
                        yield name[1]


def test_every_call_that_logs_names_its_event_which_is_documented() -> None:
    """No two have the same name, and no other is documented."""
    found = [*events()]

    text = (_ROOT / "docs" / "logs.md").read_text().partition("\n| event |")[2]
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    at_debug = re.findall(r"`(\w+)`", text.rpartition("At the level `debug`")[2])
    assert sorted(found) == sorted([*rows, *at_debug])
