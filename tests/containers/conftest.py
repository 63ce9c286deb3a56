"""One stack for all tests of this folder, brought up with a Docker engine."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.stack import Stack, missing

ROOT = Path(__file__).parents[2]
# What would break the stack if it did not keep it to itself, and a rule of one's own.
SETTINGS = """\
PSSERVER_HOST=127.0.0.1
PSSERVER_PORT=1
PSSERVER_HTTP_PORT=off
PSSERVER_DATA_DIR=/tmp/elsewhere
PSSERVER_APP_DIR=/elsewhere
PSSERVER_RULE=mine:make
PSWORKER_SERVER=elsewhere:1
PSWORKER_NAME=one
PSWORKER_APP_DIR=/elsewhere
"""
RULE = """\
import optax


def make(learning_rate):
    return optax.adam(learning_rate)
"""


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip all of this where no stack can be brought up."""
    if why := missing():
        assert not os.environ.get("REQUIRE_CONTAINERS"), why
        pytest.skip(why)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack what is committed, with an .env: nothing that lies about here gets in."""
    folder = tmp_path_factory.mktemp("checkout")
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    (folder / "deploy" / ".env").write_text(SETTINGS)
    (folder / "examples" / "mine.py").write_text(RULE)
    return folder


@pytest.fixture(scope="session")
def stack(checkout: Path) -> Iterator[Stack]:
    """Bring up a server, three workers and Prometheus; take all down in the end.

    An image that ASYNCPS_IMAGE names is used as it is, else one is built.
    """
    stack = Stack(checkout, f"asyncps-test-{os.getpid()}")
    if "ASYNCPS_IMAGE" not in os.environ:
        stack.compose("build", "server")
    try:
        stack.up(workers=3)
        yield stack
    finally:
        stack.compose("down", "--volumes")
