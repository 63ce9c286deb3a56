"""Tokens: who may do what, and that nobody sees them."""

import base64
import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

import psserver
import psworker
from kit.processes import Served
from psserver import admin
from psserver.cli import main
from psserver.security.roles import ROLES
from pswire._generated import parameter_server_pb2 as pb
from pswire.credentials import Role
from pswire.errors import (
    InvalidRequestError,
    ParameterServerError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from psworker import Credentials

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]

SERVE = (
    *("--rule", "sgd", "-a", "learning_rate=0.5"),
    *("--port", "0", "--http-port", "0"),
)
PATIENCE_S = 30.0
VIEWER, WORKER, ADMIN = (f"{role}-of-these-tests" for role in ("view", "work", "lead"))
OLD = "old-token-of-a-worker"
LINES = f"""
# Made for these tests.
viewer {VIEWER}
worker {WORKER}
admin {ADMIN}
worker {OLD} 2025-01-31
"""
PARAMS = {"w": np.zeros(3, np.float32)}
ONES = {"w": np.ones(3, np.float32)}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """Write the tokens where only this user reads them."""
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    path.write_text(LINES)
    return path


@pytest.fixture
def server(start_server: StartServer, token_file: Path) -> psserver.Server:
    """Start a server that asks for tokens, and has variables."""
    server = start_server(token_file=token_file, http_port=0)
    with psworker.connect(server.address, credentials=with_(WORKER)) as client:
        client.initialize(PARAMS)
    return server


def with_(token: str) -> Credentials:
    """Return credentials of a token alone."""
    return Credentials(token=token)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "token: expected one, got none; --token-file names a file with one"),
        ("nobody-ever-had-this", "token: expected one that the server knows"),
        (OLD, "expected one that is valid, got one that expired on 2025-01-31"),
    ],
)
def test_without_a_good_token_nobody_gets_in(
    token: str,
    said: str,
    server: psserver.Server,
    connect: Connect,
) -> None:
    """Not to push, to read or to command; no call reaches what would answer it."""
    before = server.status()

    with pytest.raises(UnauthenticatedError, match=said):
        connect(server.address, credentials=with_(token), outage_s=PATIENCE_S)
    for ask in (
        lambda: psworker.client.read(
            server.address, like=PARAMS, credentials=with_(token)
        ),
        lambda: admin.status(server.address, with_(token)),
        lambda: admin.inspect(server.address, credentials=with_(token)),
        lambda: admin.change(server.address, {"max_staleness": "0"}, with_(token)),
        lambda: admin.save_checkpoint(server.address, with_(token)),
        lambda: admin.stop(server.address, with_(token)),
    ):
        with pytest.raises(UnauthenticatedError, match=said):
            ask()

    names = [worker.name for worker in server.status().workers]
    assert names == [worker.name for worker in before.workers]
    assert server.status().limits == before.limits
    assert admin.is_healthy(server.address)
    counted = scrape_as(server, VIEWER)
    refused = [n for kind, n in counted.items() if "UNAUTHENTICATED" in kind]
    assert sum(refused) == 7


def scrape_as(server: psserver.Server, token: str) -> dict[str, float]:
    """Return how many calls there were of each kind, by what the metrics call it."""
    text = ask(f"{server.http_address}metrics", f"Bearer {token}")
    found = re.findall(r"^asyncps_rpc_seconds_count(\S+) (\S+)$", text, re.MULTILINE)
    return {labels: float(count) for labels, count in found}


def ask(address: str, authorization: str = "") -> str:
    """Return what an HTTP port answers."""
    headers = {"Authorization": authorization} if authorization else {}
    with urlopen(Request(address, headers=headers), timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def test_a_viewer_reads_and_changes_nothing(
    server: psserver.Server, connect: Connect
) -> None:
    """It sees variables and figures, and is told for which role a call is."""
    viewer = with_(VIEWER)

    with pytest.raises(PermissionDeniedError, match="role worker, got one for viewer"):
        connect(server.address, credentials=viewer, outage_s=PATIENCE_S)
    with pytest.raises(PermissionDeniedError, match="role admin, got one for viewer"):
        admin.stop(server.address, viewer)

    read = psworker.client.read(server.address, like=PARAMS, credentials=viewer)
    assert read.step == 0
    assert admin.status(server.address, viewer).step == 0
    assert admin.inspect(server.address, credentials=viewer).step == 0


def test_a_worker_trains_and_commands_nothing(
    server: psserver.Server, connect: Connect
) -> None:
    """Whichever path its gradients take."""
    client = connect(server.address, credentials=with_(WORKER))

    assert client.push(ONES, client.pull()).applied
    for command in (
        lambda: admin.change(server.address, {"max_staleness": "0"}, with_(WORKER)),
        lambda: admin.save_checkpoint(server.address, with_(WORKER)),
        lambda: admin.stop(server.address, with_(WORKER)),
    ):
        with pytest.raises(PermissionDeniedError, match="role admin, got one for wor"):
            command()


def test_an_admin_may_do_all(server: psserver.Server, connect: Connect) -> None:
    """It changes settings, and may even train."""
    client = connect(server.address, credentials=with_(ADMIN))

    limits = admin.change(server.address, {"max_staleness": "3"}, with_(ADMIN))

    assert limits.max_staleness == 3
    assert client.push(ONES, client.pull()).applied
    with pytest.raises(InvalidRequestError, match="durability"):
        admin.save_checkpoint(server.address, with_(ADMIN))


def test_past_grpc_a_token_is_asked_for_too(
    server: psserver.Server, token_file: Path
) -> None:
    """Who knows the socket and a session, but no token any more, is refused there."""
    credentials = with_(WORKER)
    with psworker.connect(server.address, credentials=credentials) as client:
        client.pull()
        token_file.write_text(f"worker another-{WORKER}")
        server.reload()

        with pytest.raises(UnauthenticatedError):
            client.push(ONES, client.pull())

    assert server.status().step == 0


def test_tokens_are_read_again_while_calls_go_on(
    server: psserver.Server, token_file: Path, connect: Connect
) -> None:
    """New ones are good at once, old ones are not; a broken file changes nothing."""
    client = connect(server.address, credentials=with_(WORKER))
    new = f"new-{WORKER}"
    token_file.write_text(f"{LINES}worker {new}")

    server.reload()

    connect(server.address, credentials=with_(new))
    assert client.push(ONES, client.pull()).applied
    token_file.write_text("worker short")
    with pytest.raises(ValueError, match="token_file: entry 1: token: expected 16 to"):
        server.reload()
    assert client.push(ONES, client.pull()).applied
    token_file.write_text(f"worker {new}")
    server.reload()
    with pytest.raises(UnauthenticatedError):
        client.pull()


def test_the_page_asks_for_a_token_too(server: psserver.Server) -> None:
    """A browser asks its user for a password, which the token is."""
    assert server.http_address is not None
    basic = base64.b64encode(f"anybody:{VIEWER}".encode()).decode()
    wrong = base64.b64encode(b"anybody:wrong").decode()

    assert ask(f"{server.http_address}healthz") == "alive\n"  # For a probe.
    for path in ("", "metrics", "status.json", "history.json"):
        for bad in ("", "Bearer wrong", f"Basic {wrong}", "Basic ?", VIEWER):
            with pytest.raises(HTTPError) as refused:
                ask(f"{server.http_address}{path}", bad)
            assert refused.value.code == 401
            assert refused.value.headers["WWW-Authenticate"].startswith("Basic realm")
            assert "token: expected one" in refused.value.read().decode()
            refused.value.close()
        for good in (f"Bearer {VIEWER}", f"Basic {basic}", f"bearer {ADMIN}"):
            assert ask(f"{server.http_address}{path}", good)


def test_every_method_says_what_its_callers_have_to_be() -> None:
    """What is not in the table is for admins; so none of theirs is there."""
    service = pb.DESCRIPTOR.services_by_name["ParameterServer"]
    named = {f"/{service.full_name}/{method.name}" for method in service.methods}

    assert {method for method in ROLES if method.startswith("/ps.v1.")} == named
    assert {ROLES[method] for method in named} == {Role.VIEWER, Role.WORKER}


@pytest.mark.parametrize("service", ["ps.v1.Admin/Stop", "a.Stranger/Method"])
def test_a_stranger_sends_no_body_before_it_is_refused(
    service: str, server: psserver.Server
) -> None:
    """However the call is made, nothing of it is read."""
    with grpc.insecure_channel(server.address) as channel:
        method: Any = channel.stream_stream(f"/{service}")
        call = method(iter(lambda: b"0" * 10**6, b""))

        with pytest.raises(grpc.RpcError) as refused:
            next(call)

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_no_token_is_ever_shown(
    start_server: StartServer,
    token_file: Path,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in a log of any level, nor in an error, nor where a value is printed."""
    caplog.set_level(logging.DEBUG)
    server = start_server(token_file=token_file, http_port=0)
    said = []
    connect(server.address, credentials=with_(WORKER)).initialize(PARAMS)
    for token in (VIEWER, OLD, f"wrong-{WORKER}"):
        with pytest.raises(ParameterServerError) as refused:
            connect(server.address, credentials=with_(token), outage_s=PATIENCE_S)
        said.append(repr(refused.value))
    token_file.write_text(f"{LINES}\n{WORKER} worker")
    with pytest.raises(ValueError, match="role: expected one of") as unread:
        server.reload()
    said += [repr(unread.value), repr(with_(WORKER)), caplog.text]
    said.append(str(admin.status(server.address, with_(VIEWER)).to_json()))

    assert not any(
        token in text for text in said for token in (VIEWER, WORKER, ADMIN, OLD)
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "expected 1 to 1000 lines of ROLE TOKEN"),
        ("# nothing", "expected 1 to 1000 lines of ROLE TOKEN"),
        (WORKER, "entry 1: expected ROLE TOKEN .EXPIRES., got 1 words"),
        (f"boss {WORKER}", "entry 1: role: expected one of viewer, worker, admin"),
        (f"worker {WORKER} soon", "expires: expected a date or a time"),
        ("worker short", "token: expected 16 to 256 printable ASCII letters"),
        (f"worker {WORKER}é", "token: expected 16 to 256 printable ASCII letters"),
        (f"worker {WORKER}\nadmin {WORKER}", "entry 2: token: expected each once"),
    ],
)
def test_a_file_of_tokens_is_read_with_care(
    lines: str, said: str, token_file: Path, start_server: StartServer
) -> None:
    """The error says in which line, and quotes no token."""
    token_file.write_text(lines)

    with pytest.raises(ValueError, match=f"token_file: {said}|token_file: .*{said}"):
        start_server(token_file=token_file)


def test_secrets_that_others_can_read_are_refused(start_server: StartServer) -> None:
    """As ssh does; in a folder that is closed to them, it does not matter."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "tokens")
        file.write_text(f"admin {ADMIN}")
        file.chmod(0o644)

        start_server(token_file=file)
        assert Credentials(token_file=file).authorization == f"Bearer {ADMIN}"
        Path(folder).chmod(0o755)
        for use in (lambda: start_server(token_file=file), lambda: reads(file)):
            with pytest.raises(ValueError, match=r"token_file: .* chmod 600 closes it"):
                use()
        file.chmod(0o640)
        start_server(token_file=file)


def reads(file: Path) -> Credentials:
    """Make credentials of a file of tokens."""
    return Credentials(token_file=file)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "without TLS .--tls-cert and --tls-key. and tokens .--token-file."),
        ({"tokens": LINES}, "without TLS .--tls-cert and --tls-key., anybody"),
        ({"tls_cert": "c", "tls_key": "k"}, "without tokens .--token-file., anybody"),
    ],
)
def test_beyond_loopback_a_server_wants_tls_and_tokens(
    settings: dict[str, Any], missing: str, start_server: StartServer
) -> None:
    """Or that somebody says aloud that it need not."""
    with pytest.raises(ValueError, match=missing):
        start_server(host="0.0.0.0", **settings)

    assert start_server(host="0.0.0.0", insecure=True).address


def test_the_commands_take_tokens_from_files_and_the_environment(
    token_file: Path,
    tmp_path: Path,
) -> None:
    """A server reads its file again on SIGHUP, and a line of the log says so."""
    mine = tmp_path / "mine"
    mine.write_text(f"{ADMIN}\n")
    run = CliRunner().invoke
    with Served(*SERVE, "--token-file", str(token_file)) as server:
        address = server.address()
        assert server.line().startswith("metrics on http://")
        assert server.line().endswith("--token-file FILE")

        nobody = run(main, ["status", address])
        viewer = run(main, ["status", address], env={"PSSERVER_CLIENT_TOKEN": VIEWER})
        file = run(main, ["set", address, "max_staleness=2", "--token-file", str(mine)])
        token_file.write_text("")
        server.send_signal(signal.SIGHUP)
        broken = server.until("what there was stays good: token_file")
        token_file.write_text(f"viewer {OLD}")
        server.send_signal(signal.SIGHUP)
        server.until("read tokens and certificates again")
        late = run(main, ["status", address], env={"PSSERVER_CLIENT_TOKEN": VIEWER})

    assert "token: expected one, got none" in nobody.output
    assert viewer.exit_code == file.exit_code == 0, viewer.output + file.output
    assert broken
    assert "token: expected one that the server knows" in late.output


def test_a_server_takes_tokens_from_the_environment() -> None:
    """As a container is given them."""
    with (
        Served(*SERVE, environment={"PSSERVER_TOKENS": LINES}) as server,
        psworker.connect(server.address(), credentials=with_(WORKER)) as client,
    ):
        assert client.initialize(PARAMS)
