"""The compose stack with TLS and tokens, of certificates that its script makes."""

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from kit.stack import Stack
from psserver import admin
from pswire.errors import PermissionDeniedError, TlsError, UnauthenticatedError
from psworker import Credentials

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def secrets(checkout: Path) -> Path:
    """Run the script, as the document says."""
    deploy = checkout / "deploy"
    subprocess.run(["./make-certificates.sh", "secrets"], cwd=deploy, check=True)
    return deploy / "secrets"


def credentials(secrets: Path, role: str) -> Credentials:
    """Return what the script has made for a role."""
    folder = secrets / role
    return Credentials(token_file=folder / "token", tls_ca=folder / "ca.pem")


@pytest.fixture(scope="module")
def secured(checkout: Path, secrets: Path) -> Iterator[Stack]:
    """Bring up a server, two workers and Prometheus; take all down in the end."""
    stack = Stack(
        checkout,
        f"asyncps-test-{os.getpid()}-tls",
        "docker-compose.tls.yml",
        credentials=credentials(secrets, "viewer"),
    )
    try:
        stack.up(workers=2)
        yield stack
    finally:
        stack.compose("down", "--volumes")


def test_workers_train_and_prometheus_looks_on(secured: Stack) -> None:
    """Over TLS, each with a token of its own role."""
    trained = secured.until(
        lambda status: sum(w.counts.applied > 10 for w in status.workers) == 2
    )

    assert {worker.name for worker in trained.workers} == secured.names()
    secured.until_query('up{job="asyncps"} == 1')
    log = secured.compose("logs", "--no-color")
    assert "unencrypted" not in log


def test_nobody_else_gets_in(secured: Stack, secrets: Path) -> None:
    """Without TLS, without a token, or with one for less."""
    address, ca = secured.address(), secrets / "ca.pem"

    with pytest.raises(TlsError):
        admin.status(address)
    with pytest.raises(UnauthenticatedError):
        admin.status(address, Credentials(tls_ca=ca))
    with pytest.raises(PermissionDeniedError):
        admin.stop(address, credentials(secrets, "worker"))
    page = f"https://{secured.address('server', 7071)}/"
    trusting = ssl.create_default_context(cafile=ca)
    with pytest.raises(HTTPError, match="401"):
        urlopen(page, context=trusting)
    token = (secrets / "viewer" / "token").read_text().strip()
    asked = Request(page, headers={"Authorization": f"Bearer {token}"})
    with urlopen(asked, context=trusting) as answer:
        assert answer.status == 200


def test_new_certificates_and_tokens_are_read_without_a_stop(
    secured: Stack, checkout: Path, secrets: Path
) -> None:
    """The script makes the certificates anew; workers go on meanwhile."""
    [server] = secured.containers("server")
    before = secured.status()
    deploy = checkout / "deploy"
    subprocess.run(["./make-certificates.sh", "secrets"], cwd=deploy, check=True)
    with (secrets / "server" / "tokens").open("a") as tokens:
        tokens.write("viewer a-viewer-of-this-test\n")

    secured.compose("kill", "--signal", "HUP", "server")

    late = Credentials(token="a-viewer-of-this-test", tls_ca=secrets / "ca.pem")
    secured.until(lambda status: admin.status(secured.address(), late).step > 0)
    after = secured.train(steps=20)
    assert after.incarnation == before.incarnation
    assert secured.inspect(server)["RestartCount"] == 0
    assert after.counts.rejected == {}
