"""What the server's tests share: rules that call back, raw channels, the command."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import grpc
import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner, Result

import psserver
import psworker
from kit.processes import Process, Served
from psserver.cli import main
from pswire.counts import Counts
from pswire.errors import NonFiniteError
from pswire.status import Limits, Status

StartServer = Callable[..., psserver.Server]

_SGD = ("--rule", "sgd", "-a", "learning_rate=0.5")
_PORTS = ("--port", "0", "--http-port", "0")


class Hook:
    """A rule that runs a function of the test's in the middle of an update."""

    def __init__(self) -> None:
        self.run: Callable[[], None] = lambda: None
        self.rule = optax.chain(
            optax.sgd(1.0),
            optax.GradientTransformation(lambda params: optax.EmptyState(), self._pass),
        )

    def _pass(self, updates: Any, state: Any, params: Any = None) -> Any:
        def call(numbers: Any) -> Any:
            self.run()
            return jax.tree.map(np.asarray, numbers)

        return jax.pure_callback(call, updates, updates), state


@pytest.fixture
def hook() -> Hook:
    """Make a rule that runs what the test sets as `run`."""
    return Hook()


@pytest.fixture
def dial() -> Iterator[Callable[[str], grpc.Channel]]:
    """Open channels with gRPC's own options, which close with the test."""
    with ExitStack() as stack:

        def open_channel(address: str) -> grpc.Channel:
            return stack.enter_context(grpc.insecure_channel(address))

        yield open_channel


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[Served]]:
    """Start servers; whatever becomes of the test, they do not outlive it."""
    return partial(Served, *_SGD, *_PORTS)


@pytest.fixture
def follow() -> Callable[..., AbstractContextManager[Process]]:
    """Start `psserver metrics --follow` likewise."""
    return partial(Process, "-m", "psserver", "metrics", "--follow")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in this process, which afterwards is as it was."""
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")
    monkeypatch.setattr(sys, "path", list(sys.path))
    level = logging.getLogger("psserver").level

    def invoke(*arguments: str, **env: str) -> Result:
        return CliRunner().invoke(main, arguments, env=env)

    yield invoke
    logging.getLogger("psserver").setLevel(level)


@pytest.fixture
def known(start_server: StartServer) -> psserver.Server:
    """Start a server of which there is something to tell."""
    server = start_server(rule_name="sgd", max_staleness=1)
    with psworker.connect(server.address, name="ann") as client:
        client.initialize({"w": np.ones(2, np.float32)})
        snapshot = client.pull()
        for _ in range(3):
            client.push({"w": np.ones(2, np.float32)}, snapshot)
        with pytest.raises(NonFiniteError, match=r"^w: expected finite gradients"):
            client.push({"w": np.full(2, np.nan, np.float32)}, client.pull())
    return server


@pytest.fixture
def make_sample() -> Callable[..., dict[str, Any]]:
    """Make samples as a recorder shows them; what is not said is that of a new server.

    Yields a function of the uptime in seconds and of a `Status`'s fields.
    """
    limits = Limits(
        max_staleness=8, max_grad_norm=None, max_model_nbytes=0, max_unary_nbytes=0
    )

    def make(uptime_s: float, **fields: Any) -> dict[str, Any]:
        counts = fields.pop("counts", Counts())
        staleness = fields.get("staleness", {})
        known: dict[str, Any] = {
            "generation": "history",
            "incarnation": "start",
            "step": counts.applied,
            "limits": limits,
            "rule": "sgd",
            "initialized": True,
            "pushes_per_s": 0.0,
            "staleness": {},
            "staleness_sum": sum(age * n for age, n in staleness.items()),
            "workers": (),
        }
        time = fields.pop("time", 1e9 + uptime_s)
        status = Status(uptime_s=uptime_s, counts=counts, **{**known, **fields})
        return {"time": time, **status.to_json()}

    return make
