"""One stack for all tests of this folder, brought up with a Docker engine."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.stack import Stack, missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip all of this where no stack can be brought up."""
    if why := missing():
        assert not os.environ.get("REQUIRE_CONTAINERS"), why
        pytest.skip(why)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack what is committed: nothing that lies about here gets in."""
    folder = tmp_path_factory.mktemp("checkout")
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
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
