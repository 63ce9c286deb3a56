"""TLS: who is trusted, and what is said of who is not."""

import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

import psserver
import psworker
from kit.papers import Papers
from psserver import admin
from pswire.errors import TlsError
from psworker import Credentials

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]

PARAMS = {"w": np.zeros(3, np.float32)}
PATIENCE_S = 30.0  # An error that TLS explains comes long before.
REFUSED = {
    "another authority": ("stranger", False, None, "expected one that an authority in"),
    "another name": ("elsewhere", False, None, "expected one for 127.0.0.1"),
    "an old certificate": ("expired", False, None, "got one that has expired"),
    "no certificate of its own": ("server", True, None, "vouches for, got none"),
    "one of another authority": ("server", True, "spy", "got another one"),
}
"""What the server shows, whether it asks, what the client shows; what is said then."""


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Issue certificates, once for all tests here."""
    return Papers(tmp_path_factory.mktemp("papers"))


def test_a_worker_trains_over_tls(
    papers: Papers, start_server: StartServer, connect: Connect
) -> None:
    """The server is known by its certificate, whichever path the bodies take."""
    server = start_server(**papers.server())
    client = connect(server.address, credentials=papers.client())

    client.initialize(PARAMS)
    verdict = client.push({"w": np.ones(3, np.float32)}, client.pull())

    assert verdict.applied
    assert admin.status(server.address, papers.client()).step == 1


def test_with_a_client_authority_both_ends_show_a_certificate(
    papers: Papers, start_server: StartServer, connect: Connect
) -> None:
    """Who is vouched for gets in."""
    server = start_server(**papers.server(), tls_client_ca=papers.ca)

    client = connect(server.address, credentials=papers.client("worker"))

    assert client.initialize(PARAMS)


@pytest.mark.parametrize("case", REFUSED)
def test_whoever_is_not_trusted_is_told_why(
    case: str, papers: Papers, start_server: StartServer
) -> None:
    """At once, in a worker and in a command: another attempt would end alike."""
    shown, asks, own, said = REFUSED[case]
    client_ca = papers.ca if asks else None
    server = start_server(**papers.server(shown), tls_client_ca=client_ca)
    credentials = papers.client(own)

    with pytest.raises(TlsError, match=said):
        psworker.connect(server.address, credentials=credentials, outage_s=PATIENCE_S)
    with pytest.raises(TlsError, match=said):
        admin.status(server.address, credentials)

    assert server.status().workers == ()


def test_who_speaks_no_tls_is_told_that_the_server_does(
    papers: Papers, start_server: StartServer
) -> None:
    """And with which option it would."""
    server = start_server(**papers.server())

    with pytest.raises(TlsError, match="--tls-ca FILE names one"):
        psworker.connect(server.address, outage_s=PATIENCE_S)


def test_who_speaks_tls_is_told_that_the_server_does_not(
    papers: Papers, start_server: StartServer
) -> None:
    """And how it could."""
    server = start_server()

    with pytest.raises(TlsError, match="start it with --tls-cert and --tls-key"):
        psworker.connect(
            server.address, credentials=papers.client(), outage_s=PATIENCE_S
        )


def test_a_new_certificate_is_shown_to_who_comes_next(
    papers: Papers, start_server: StartServer, connect: Connect, tmp_path: Path
) -> None:
    """Whoever is connected stays so, and a file that is broken changes nothing."""
    files = {name: tmp_path / name for name in ("tls_cert", "tls_key")}

    def show(holder: str) -> None:
        for name, path in papers.server(holder).items():
            shutil.copy(path, files[name])

    show("server")
    server = start_server(**files, http_port=0)
    before = connect(server.address, credentials=papers.client())
    before.initialize(PARAMS)

    show("stranger")
    server.reload()
    other = Credentials(tls_ca=papers.other_ca)
    after = connect(server.address, credentials=other)
    files["tls_key"].write_text("no key")
    with pytest.raises(ValueError, match="tls_cert: expected a PEM certificate"):
        server.reload()

    assert before.pull().step == after.pull().step == 0
    assert connect(server.address, credentials=other).pull().step == 0
    with pytest.raises(TlsError):
        connect(server.address, credentials=papers.client(), outage_s=PATIENCE_S)
    assert server.http_address is not None
    trusting = ssl.create_default_context(cafile=papers.other_ca)
    with urlopen(server.http_address, context=trusting) as page:
        assert page.status == 200


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tls_cert": "server"}, "tls_key: expected beside the other one"),
        ({"tls_client_ca": "ca"}, "tls_cert: expected beside tls_client_ca"),
        (
            {"tls_cert": "server", "tls_key": "worker-key"},
            "tls_cert: expected a PEM certificate and in tls_key its key",
        ),
        (
            {"tls_cert": "missing", "tls_key": "server-key"},
            "tls_cert: expected a file that can be read",
        ),
        (
            {"tls_cert": "server", "tls_key": "server-key", "tls_client_ca": "empty"},
            "tls_client_ca: expected PEM certificates",
        ),
    ],
)
def test_a_server_says_which_of_its_files_is_wrong(
    files: dict[str, str], said: str, papers: Papers, start_server: StartServer
) -> None:
    """Before it listens."""
    folder = papers.ca.parent
    (folder / "empty.pem").touch()

    with pytest.raises(ValueError, match=said):
        start_server(**{k: folder / f"{name}.pem" for k, name in files.items()})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tls_cert": "worker", "tls_ca": "ca"}, "tls_key: expected beside the other"),
        ({"tls_cert": "worker", "tls_key": "worker-key"}, "tls_ca: expected beside"),
        ({"tls_ca": "missing"}, "tls_ca: expected a file that can be read"),
        ({"tls_ca": "worker-key"}, "tls_ca: expected PEM certificates"),
    ],
)
def test_a_client_says_which_of_its_files_is_wrong(
    files: dict[str, Any], said: str, papers: Papers
) -> None:
    """Before it connects."""
    folder = papers.ca.parent

    with pytest.raises(ValueError, match=said):
        Credentials(**{k: str(folder / f"{name}.pem") for k, name in files.items()})
