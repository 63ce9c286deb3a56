"""What every test shares: a real server on loopback, and proof that nothing leaks."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import jax
import optax
import pytest

import psserver
import psworker

jax.config.update("jax_numpy_rank_promotion", "raise")

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]


def _threads() -> set[threading.Thread]:
    # gRPC's own daemons and JAX's pools live as long as the process.
    return {t for t in threading.enumerate() if t.name.startswith("psserver")}


def _children() -> set[str]:
    task = f"/proc/self/task/{threading.main_thread().native_id}/children"
    if not os.path.exists(task):
        pytest.skip("child processes are counted by /proc, which is not here")
    with open(task) as children:
        return set(children.read().split())


@pytest.fixture(autouse=True)
def nothing_outlives_a_test() -> Iterator[None]:
    """Fail a test that leaves a server's thread or a child process behind."""
    threads, children = _threads(), _children()

    yield

    assert _threads() <= threads
    assert _children() <= children


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers that stop with the test; by default plain SGD with no limit."""
    with ExitStack() as stack:

        def start(rule: Any = None, **settings: Any) -> psserver.Server:
            settings = {"max_staleness": None, "port": 0, **settings}
            rule = optax.sgd(1.0) if rule is None else rule
            return stack.enter_context(psserver.Server(rule, **settings))

        yield start


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connect clients that close with the test."""
    with ExitStack() as stack:

        def connect(address: str, **settings: Any) -> psworker.Client:
            return stack.enter_context(psworker.connect(address, **settings))

        yield connect
