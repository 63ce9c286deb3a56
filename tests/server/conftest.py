"""What the server's tests share: raw channels, checkpoints, the command."""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

import psserver
import psworker
from kit.processes import Process, Served
from kit.statuses import QUIET
from psserver.checkpoint import Checkpoint, Slots
from psserver.cli import main
from psserver.counters import Counters
from psserver.decision import Session
from psserver.durability.arrayfile import DTYPES
from pswire.body import Body
from pswire.errors import NonFiniteError
from pswire.layout import Layout
from pswire.values import Reason, Verdict

StartServer = Callable[..., psserver.Server]

_SGD = ("--rule", "sgd", "-a", "learning_rate=0.5")
_PORTS = ("--port", "0", "--http-port", "0")


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

    def make(uptime_s: float, **fields: Any) -> dict[str, Any]:
        staleness = fields.get("staleness", {})
        known = {
            "step": fields.get("counts", QUIET.counts).applied,
            "staleness_sum": sum(age * n for age, n in staleness.items()),
        }
        time = fields.pop("time", 1e9 + uptime_s)
        status = replace(QUIET, uptime_s=uptime_s, **{**known, **fields})
        return {"time": time, **status.to_json()}

    return make


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """Make checkpoints of small models, of a seed and at a step, that have it all."""
    return _checkpoint


def _checkpoint(
    seed: int = 0, step: int = 7, dtypes: Iterable[np.dtype[Any]] = DTYPES.values()
) -> Checkpoint:
    draw = np.random.default_rng(seed)
    variables = {
        f"{dtype.name}/{shape}": _random_array(draw, dtype, shape)
        for dtype in dtypes
        for shape in ((), (0, 3), (3, 2))
    }
    slots = {
        f"slots[0].mu['{name}']": array[..., ::-1] if array.ndim else array
        for name, array in variables.items()
    }
    workers = ("ann", "bo", "Zoë \U0001f40c")
    part = Verdict(True, 3, step, factor=1 / 3, dropped_variables=2)
    dropped = Verdict(False, 9, step, Reason.STALE, consecutive_drops=4)
    sessions = {
        "s1": Session("ann", superseded=True),
        "s2": Session("ann", 2**64 - 1, part),
        "s3": Session("bo", 5, dropped),
        "s4": Session(workers[2]),
    }
    return Checkpoint(
        generation=f"generation-{seed}",
        step=step,
        variables=Body.gather(Layout.of(variables), variables),
        slots=Slots(slots, frozenset(list(slots)[:2])),
        initializer="s1",
        rule="adam(learning_rate=1e-3)",
        max_staleness=(None, 0, -1, 8)[seed % 4],
        max_grad_norm=(None, 0.1, 3)[seed % 3],
        sessions=sessions,
        counters=_random_counters(draw, workers),
        staleness_policy=("drop", "polynomial:0.5")[seed % 2],
        server="lab",
    )


def _random_array(
    draw: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Draw any bits at all, NaN and its payload too; bools are 0 or 1."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    most = 2 if dtype == np.bool_ else 256
    return draw.integers(0, most, nbytes, np.uint8).view(dtype).reshape(shape)


def _random_counters(draw: np.random.Generator, workers: Sequence[str]) -> Counters:
    counters = Counters()
    for worker in workers:
        counters.join(worker, now=0.0)
    for number in range(50):
        worker = workers[int(draw.integers(2))]  # The last one has no push at all.
        applied, staleness = bool(draw.integers(2)), int(draw.integers(200)) ** 3
        reason = None if applied else list(Reason)[number % 2]
        factor = float(draw.random()) if applied else 1.0
        verdict = Verdict(
            *(applied, staleness, number, reason, number % 9 == 0, factor),
            dropped_variables=number % 5 * applied,
        )
        loss = (None, float(draw.random()), math.nan, -1e300)[draw.integers(4)]
        counters.judge(worker, verdict, loss, now=float(number))
        counters.reject((worker, None)[number % 2], NonFiniteError("w: nan"))
    return counters
