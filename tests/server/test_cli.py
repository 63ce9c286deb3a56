"""The `psserver` command: as a process where signals matter, in this one elsewhere."""

import errno
import json
import re
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
import grpc
import numpy as np
import optax
import pytest
from click.testing import Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import psserver
import psworker
from pswire.counts import Counts
from pswire.errors import ParameterServerError
from pswire.status import Durability, Limits, Status

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
Run = Callable[..., Result]
Serve = Callable[..., AbstractContextManager[Any]]

_TIMEOUT_S = 60.0
_RULE = ("--rule", "sgd", "-a", "learning_rate=0.5")
_SGD = (*_RULE, "--port", "0", "--http-port", "0")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Status]:
    """Make servers stop as soon as they wait, and note what they were."""
    statuses: list[Status] = []

    class Brief(psserver.Server):
        def wait(self) -> None:
            statuses.append(self.status())

    monkeypatch.setattr("psserver.server.Server", Brief)
    return statuses


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Refuse to make a server, and note what was asked of it."""
    asked: dict[str, Any] = {}

    def refuse(rule: optax.GradientTransformation, **settings: Any) -> None:
        asked.update(settings)
        raise ValueError("host: not in a test")

    monkeypatch.setattr("psserver.server.Server", refuse)
    return asked


def _limits(served: list[Status]) -> Limits:
    (status,) = served
    return status.limits


# A process of its own


def test_the_first_lines_say_where_it_listens_and_what_to_type_next(
    serve: Serve,
) -> None:
    """With the port really bound; Ctrl-C then ends it, with grace and exit code 0."""
    with serve("--max-staleness", "3") as process:
        first, second, third = process.line(), process.line(), process.line()
        address = first.removeprefix("listening on ")
        with urlopen(second.removeprefix("metrics on "), timeout=_TIMEOUT_S) as page:
            html = page.read()
        with psworker.connect(address, outage_s=0.0) as client:
            status = client.status()
            process.send_signal(signal.SIGINT)

            code, log = process.finish()

    assert re.fullmatch(r"listening on 127\.0\.0\.1:[1-9]\d*", first)
    assert re.fullmatch(r"metrics on http://127\.0\.0\.1:[1-9]\d*/", second)
    assert b"<title>asyncps</title>" in html
    assert third == f"next: psworker run MODULE:TASK --server {address}"
    assert (status.rule, status.step) == ("sgd(learning_rate=0.5)", 0)
    assert status.limits.max_staleness == 3
    assert code == 0
    assert re.search(
        r"psserver: stopping, .*\n.*psserver: stopped at step 0: 0 applied", log
    )
    assert "Traceback" not in log


def test_under_load_a_sigterm_ends_it_with_grace(serve: Serve) -> None:
    """No push fails for another reason than that the server is gone."""
    busy = threading.Barrier(5, timeout=_TIMEOUT_S)
    ends: list[ParameterServerError] = []

    def push(client: psworker.Client) -> None:
        snapshot = client.pull()
        try:
            for number in range(10**6):
                if number == 20:
                    busy.wait()
                client.push({"w": np.zeros(1000, np.float32)}, snapshot)
        except ParameterServerError as error:
            ends.append(error)

    with serve("--max-staleness", "off") as process:
        address = process.line().removeprefix("listening on ")
        clients = [psworker.connect(address, outage_s=0.0) for _ in range(4)]
        clients[0].initialize({"w": np.ones(1000, np.float32)})
        threads = [threading.Thread(target=push, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        busy.wait()
        process.send_signal(signal.SIGTERM)

        code, log = process.finish()
        for thread in threads:
            thread.join(_TIMEOUT_S)
        for client in clients:
            client.close()

    assert code == 0
    assert "Traceback" not in log
    assert [type(end).__name__ for end in ends] == ["ServerUnavailableError"] * 4


def test_a_signal_after_a_pause_is_heard(serve: Serve) -> None:
    """It may reach another thread than the one that waits."""
    with serve() as process:
        process.line()
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
            process.send_signal(number)

        code, log = process.finish()

    assert code == 0, log


def test_psserver_stop_ends_it(run: Run, serve: Serve) -> None:
    """The server says who asked; the exit code of both is 0."""
    with serve() as process:
        address = process.line().removeprefix("listening on ")

        stopped = run("stop", address)
        code, log = process.finish()

    assert (stopped.exit_code, stopped.output) == (0, f"{address} is stopping\n")
    assert code == 0
    assert "asked to stop by ipv4:127.0.0.1" in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", ["listening on", "metrics on", "next: "])
def test_a_signal_right_after_a_line_ends_it_with_grace(
    number: signal.Signals,
    line: str,
    run: Run,
    served: list[Status],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scripts that wait for the address may well stop the server at once."""
    echo = click.echo

    def echo_and_signal(message: str, **settings: Any) -> None:
        echo(message, **settings)
        if message.startswith(line):
            signal.raise_signal(number)

    monkeypatch.setattr(click, "echo", echo_and_signal)

    result = run("serve", *_SGD)

    assert result.exit_code == 0, result.output
    assert "listening on 127.0.0.1:" in result.output


def test_calls_that_are_cut_off_at_the_end_make_it_a_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says that they were; what it says is stood in for here."""

    def stop(server: psserver.Server) -> bool:
        real_stop(server)
        return False

    real_stop = psserver.Server.stop
    monkeypatch.setattr(psserver.Server, "stop", stop)
    monkeypatch.setattr(psserver.Server, "wait", lambda server: None)

    result = run("serve", *_SGD)

    assert result.exit_code == 1
    assert result.output.endswith(
        "Error: stop: expected calls in flight to finish in time, some were cut off\n"
    )


# Asking a server


def test_the_status_for_scripts_has_every_number(
    run: Run, known: psserver.Server
) -> None:
    """The names are fixed: scripts and tables rely on them."""
    result = run("status", known.address, "--json")

    table = json.loads(result.output)
    (worker,) = table.pop("workers")
    now = known.status()
    assert result.exit_code == 0
    assert table.pop("uptime_s") > 0
    assert table.pop("pushes_per_s") > table.pop("steps_per_s") > 0
    assert worker.pop("pushes_per_s") > 0
    assert worker.pop("last_seen_s") >= 0
    assert table == {
        "name": "asyncps",
        "generation": now.generation,
        "incarnation": now.incarnation,
        "step": 2,
        "limit": 1,
        "limit_now": 1,
        "staleness_policy": "drop",
        "recent_drop_rate": 1 / 3,
        "loss": None,
        "max_grad_norm": None,
        "rule": "sgd",
        "initialized": True,
        "received": 4,
        "applied": 2,
        "dropped": 1,
        "snapshot_gone": 0,
        "duplicate": 0,
        "rejected": {"NON_FINITE": 1},
        "drop_rate": 1 / 3,
        "withheld": 0.0,
        "dropped_variables": 0,
        "waited_s": 0.0,
        "mean_staleness": 1.0,
        "staleness": {"0": 1, "1": 1, "2": 1},
        "unjoined": Counts().to_json(),
        "durability": Durability().to_json(),
    }
    assert list(worker["staleness"].items())[:4] == [
        *(("0", 1), ("1", 1), ("2", 1)),
        ("3", 0),
    ]
    assert sum(worker.pop("staleness").values()) == 3
    assert worker == {
        "name": "ann",
        "shard": None,
        "received": 4,
        "applied": 2,
        "dropped": 1,
        "snapshot_gone": 0,
        "duplicate": 0,
        "rejected": {"NON_FINITE": 1},
        "drop_rate": 1 / 3,
        "consecutive_drops": 1,
        "longest_drops": 1,
        "recent_drops": 1,
        "waiting": False,
        "waited_s": 0.0,
        "mean_staleness": 1.0,
        "loss": None,
        "state": "active",
    }


def test_the_status_for_people_says_what_matters(
    run: Run, known: psserver.Server
) -> None:
    """The address may come from the environment; colours are for terminals."""
    result = run("status", PSSERVER_ADDRESS=known.address)

    assert result.exit_code == 0
    assert "step 2, rule sgd, limit 1 steps" in result.output
    assert "2 applied, 1 dropped, 0 duplicate, 1 rejected (1 NON_FINITE)" in (
        result.output
    )
    assert "drop rate 33.3% of 3 judged pushes" in result.output
    assert "last 10 s: drop rate 33.3%, " in result.output
    assert re.search(r"ann +active +\d\.\d +2 +1 +33\.3% +1 +1 +\d s", result.output)
    assert "\x1b" not in result.output


def test_health_is_an_exit_code(run: Run, known: psserver.Server) -> None:
    """0 while it serves, 1 once nobody answers."""
    healthy = run("health", known.address)
    known.stop()
    gone = run("health", known.address)

    assert (healthy.exit_code, healthy.output) == (0, "serving\n")
    assert gone.exit_code == 1
    assert known.address in gone.output


def test_a_server_that_is_not_serving_is_not_healthy(run: Run) -> None:
    """It answers, but says that it is starting or on its way out."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            result = run("health", f"127.0.0.1:{port}")
        finally:
            server.stop(None).wait(_TIMEOUT_S)

    assert (result.exit_code, result.output) == (1, "not serving\n")


@pytest.mark.parametrize("command", ["status", "metrics", "health", "stop"])
def test_an_absent_server_is_said_in_one_line(command: str, run: Run) -> None:
    """Exit code 1, and the address, which may be the wrong one."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"

    result = run(command, address)

    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert address in result.output
    assert len(result.output.splitlines()) == 1


# Options


def test_a_port_that_is_taken_is_said_in_one_line(
    run: Run, start_server: StartServer, served: list[Status]
) -> None:
    """A second server beside it would take half of the workers."""
    port = start_server().address.rpartition(":")[2]

    result = run("serve", *_SGD, "--port", port)

    assert result.exit_code == 1
    assert result.output == (
        f"Error: port: expected 127.0.0.1:{port} to be free, got an error; "
        "does another server listen there?\n"
    )
    assert not served


def test_an_http_port_that_is_taken_is_said_in_one_line(
    run: Run, start_server: StartServer, served: list[Status]
) -> None:
    """With what to do, since it is the second server on a machine that meets it."""
    port = start_server().address.rpartition(":")[2]

    result = run("serve", *_SGD, "--http-port", port)

    assert result.exit_code == 1
    assert result.output == (
        f"Error: http_port: expected 127.0.0.1:{port} to be free, got [Errno "
        f"{errno.EADDRINUSE}] Address already in use; --http-port 0 picks another "
        "port, off opens none\n"
    )
    assert not served


@pytest.mark.parametrize(
    ("options", "variable", "text", "port"),
    [
        ([], "", "", 7071),
        ([], "", "http-port = 'off'", None),
        ([], "", "http_port = 0", 0),
        ([], "off", "http-port = 0", None),
        (["--http-port", "0"], "off", "", 0),
    ],
)
def test_the_http_port_is_set_as_all_else(
    options: list[str],
    variable: str,
    text: str,
    port: int | None,
    run: Run,
    asked: dict[str, Any],
    tmp_path: Path,
) -> None:
    """By default it is one that scripts know; `off` opens none, wherever it stands."""
    (tmp_path / "ps.toml").write_text(text)
    environment = {"PSSERVER_HTTP_PORT": variable} if variable else {}

    run("serve", *_RULE, "--config", str(tmp_path / "ps.toml"), *options, **environment)

    assert asked["http_port"] == port


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_where_it_listens_everywhere_the_host_s_name_is_what_to_type(
    host: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever that name is. Nothing listens everywhere here: it says that it does."""

    class Everywhere(psserver.Server):
        def wait(self) -> None:
            pass

        def __enter__(self) -> "Everywhere":
            self.address, self.http_address = f"{host}:7", f"http://{host}:8/"
            return self

    monkeypatch.setattr("psserver.server.Server", Everywhere)
    monkeypatch.setattr(socket, "gethostname", lambda: "90ab")

    result = run("serve", *_SGD)

    assert result.output.splitlines() == [
        f"listening on {host}:7",
        "metrics on http://90ab:8/",
        "next: psworker run MODULE:TASK --server 90ab:7",
    ], result.exception


def test_without_an_http_port_its_line_is_left_out(
    run: Run, served: list[Status]
) -> None:
    """What to type next is the second line then."""
    result = run("serve", *_SGD, "--http-port", "off")

    listening, following = result.output.splitlines()
    assert listening.startswith("listening on ")
    assert following.startswith("next: ")


@pytest.mark.parametrize(
    ("flag", "variable", "line", "limit"),
    [
        (None, None, None, 8),
        (None, None, "max-staleness = 2", 2),
        (None, None, "max_staleness = 'off'", None),
        (None, "3", "max-staleness = 2", 3),
        (None, "off", None, None),
        ("4", "3", "max-staleness = 2", 4),
        ("4", None, "max-staleness = 2", 4),
        ("-1", None, None, -1),
        ("off", "3", None, None),
        ("0", "off", "max_staleness = 'off'", 0),
    ],
)
def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    flag: str | None,
    variable: str | None,
    line: str | None,
    limit: int | None,
    run: Run,
    served: list[Status],
    tmp_path: Path,
) -> None:
    """The default comes last; `off` means no limit wherever it stands."""
    (tmp_path / "ps.toml").write_text(line or "")
    options = ["--config", str(tmp_path / "ps.toml")] if line else []
    options += ["--max-staleness", flag] if flag else []
    environment = {"PSSERVER_MAX_STALENESS": variable} if variable else {}

    result = run("serve", *_SGD, *options, **environment)

    assert result.exit_code == 0, result.output
    assert _limits(served).max_staleness == limit


@pytest.mark.parametrize(
    ("flags", "environment", "line", "limit", "policy"),
    [
        ([], {}, "staleness-policy = 'inverse'", 8, "inverse"),
        ([], {"PSSERVER_STALENESS_POLICY": "drop:3"}, "", 3, "drop"),
        (
            ["--staleness-policy", "exponential:2", "--max-staleness", "off"],
            {"PSSERVER_STALENESS_POLICY": "drop:3"},
            "staleness-policy = 'inverse'",
            *(None, "exponential:2"),
        ),
        (
            ["--staleness-policy", "drop:3"],
            {"PSSERVER_MAX_STALENESS": "3"},
            *("", 3, "drop"),
        ),
    ],
    ids=["file", "environment", "flag", "twice the same"],
)
def test_a_policy_may_come_from_anywhere(
    flags: list[str],
    environment: dict[str, str],
    line: str,
    limit: int | None,
    policy: str,
    run: Run,
    served: list[Status],
    tmp_path: Path,
) -> None:
    """And, with drop, the limit with it; the status tells both apart."""
    (tmp_path / "ps.toml").write_text(line)

    run("serve", *_SGD, "--config", str(tmp_path / "ps.toml"), *flags, **environment)

    limits = _limits(served)
    assert (limits.max_staleness, limits.staleness_policy) == (limit, policy)


def test_a_server_has_the_name_that_it_was_given(
    run: Run, served: list[Status]
) -> None:
    """It labels what is told of it."""
    run("serve", *_SGD, "--name", "lab.run-1_b")

    assert served[0].name == "lab.run-1_b"


def test_a_file_may_set_everything(
    run: Run, served: list[Status], tmp_path: Path
) -> None:
    """The rule and its arguments too, and the file itself by the environment."""
    (tmp_path / "my_file_rules.py").write_text(
        "import optax\n\n\ndef make(rate):\n    return optax.sgd(rate)\n"
    )
    (tmp_path / "ps.toml").write_text(
        f"""
        rule = "my_file_rules:make"
        argument = ["rate=0.5"]
        max-grad-norm = 2.5
        host = "localhost"
        port = 0
        http-port = 0
        reflection = true
        app-dir = "{tmp_path}"
        """
    )

    result = run("serve", PSSERVER_CONFIG=str(tmp_path / "ps.toml"))

    assert result.exit_code == 0, result.output
    assert result.output.startswith("listening on localhost:")
    assert _limits(served).max_grad_norm == 2.5
    assert served[0].rule == "my_file_rules:make(rate=0.5)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-staleness", "2.5"], r"expected a whole number of steps or off, got"),
        (["--max-staleness", "many"], r"expected a whole number .*, got 'many'"),
        (["--max-staleness", str(2**63)], r"max_staleness: expected None or a whole"),
        (["--staleness-policy", "dorp"], r"staleness_policy: expected one of .*'dorp'"),
        (["--staleness-policy", "hinge:1"], r"hinge: expected hinge:a,b, got 1 argum"),
        (
            ["--staleness-policy", "drop:4", "--max-staleness", "8"],
            r"staleness_policy: expected drop beside max_staleness, got 'drop:4', ",
        ),
        (["--name", "a b"], r"name: expected 1 to 64 letters of .*, got 'a b'"),
        (["--max-grad-norm", "0"], r"max_grad_norm: expected more than 0, got 0\.0"),
        (["--max-grad-norm", "nan"], r"max_grad_norm: expected more than 0, got nan"),
        (["--max-grad-norm", "much"], r"'much' is not a valid float"),
        (["--port", "65536"], r"port: expected 0 to 65535, got 65536"),
        (["--port", "http"], r"'http' is not a valid integer"),
        (["--http-port", "65536"], r"http_port: expected 0 to 65535, got 65536"),
        (["--http-port", "on"], r"expected a port or off, got 'on'"),
        (["--host", "0.0.0.0"], r"host: expected a loopback address, .* --insecure"),
        (["--rule", "adm"], r"optax:adm: expected 'adm' in optax, got only .*adam"),
        (["--rule", "nowhere:rule"], r"nowhere: expected a module in .*, got none"),
        (["--rule", "lbfgs"], r"lbfgs: expected a rule that needs gradients alone"),
        (["-a", "momentum"], r"argument: expected name=value, got 'momentum'"),
        (["-a", "learning_rate=2"], r"learning_rate: expected once, got twice"),
        (["-a", "rate=2"], r"sgd: expected arguments among learning_rate, "),
        (["--rule", "identity"], r"identity: expected arguments among "),
        (["--sink", "no such"], r"sink: expected one of .*, got 'no such'"),
        (["--app-dir", "/no/such/folder"], r"'/no/such/folder' does not exist"),
        (["--config", "/no/such/file"], r"'/no/such/file' does not exist"),
        (["--quick"], r"No such option:? '?--quick"),
        (["now"], r"Got unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_a_usage_error(
    options: list[str], message: str, run: Run, served: list[Status]
) -> None:
    """Exit code 2, which a launcher takes for something that no retry mends."""
    result = run("serve", *_SGD, *options)

    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert "Traceback" not in result.output
    assert not served


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_stalenes = 2", r"max_stalenes: expected one of app_dir, argument, .*"),
        ("config = 'other.toml'", r"config: expected one of app_dir, argument, .*"),
        ("max_staleness =", r"Invalid value"),
        ("max_staleness = 2.5", r"expected a whole number of steps or off, got '2\.5'"),
        ("port = 'http'", r"'http' is not a valid integer"),
        ("\udcff", r"codec can't decode byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(
    text: str, message: str, run: Run, served: list[Status], tmp_path: Path
) -> None:
    """A slip in a name is found, not passed over."""
    (tmp_path / "ps.toml").write_bytes(text.encode(errors="surrogateescape"))

    result = run("serve", *_RULE, "--config", str(tmp_path / "ps.toml"))

    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert not served


def test_a_metrics_file_holds_what_was_counted(
    run: Run, served: list[Status], tmp_path: Path
) -> None:
    """The last line, at least, is written when the server stops."""
    path = tmp_path / "run.jsonl"

    result = run("serve", *_SGD, "--metrics-file", str(path))

    assert result.exit_code == 0, result.output
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["incarnation"] == served[0].incarnation
    assert last["received"] == 0


def test_a_metrics_file_that_cannot_be_written_is_an_error_before_it_listens(
    run: Run, served: list[Status], tmp_path: Path
) -> None:
    """It names the setting and the path."""
    path = tmp_path / "missing" / "run.jsonl"

    result = run("serve", *_SGD, "--metrics-file", str(path))

    assert result.exit_code == 1
    text = f"metrics_file: expected a file that can be written, got .*{path}"
    assert re.search(text, result.output)
    assert not served


def test_a_command_that_is_wrong_opens_no_sink(run: Run, tmp_path: Path) -> None:
    """A mistyped rule leaves no file behind."""
    path = tmp_path / "run.jsonl"

    result = run("serve", "--rule", "adamm", "--metrics-file", str(path))

    assert result.exit_code == 2
    assert not path.exists()


def test_a_rule_is_needed(run: Run) -> None:
    """No rule is everybody's."""
    result = run("serve", "--port", "0")

    assert result.exit_code == 2
    assert "Missing option '--rule'" in result.output


def test_beyond_loopback_is_listened_on_where_it_is_said_aloud(
    run: Run, asked: dict[str, Any]
) -> None:
    """Shown by what the server is asked for: nothing listens there here."""
    result = run("serve", *_SGD, "--host", "0.0.0.0", "--insecure")

    assert "host: not in a test" in result.output
    assert (asked["host"], asked["insecure"]) == ("0.0.0.0", True)
