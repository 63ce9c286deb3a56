"""Sinks that fail or hang: the others, and the server, go on."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

import psserver
import psworker
from kit.statuses import QUIET
from psserver.metrics.recorder import Recorder, Sample, Sink
from pswire.status import Status

StartServer = Callable[..., psserver.Server]

_TIMEOUT_S = 20.0


@dataclass
class Kept:
    """A sink that keeps what it is shown; like most dataclasses it has no hash."""

    samples: list[Sample] = field(default_factory=list)
    closed: int = 0
    has_three: threading.Event = field(default_factory=threading.Event)

    def write(self, sample: Sample) -> None:
        """Keep it, and say when there are three."""
        self.samples.append(sample)
        if len(self.samples) == 3:
            self.has_three.set()

    def close(self) -> None:
        """Count it."""
        self.closed += 1


class Failing(Kept):
    """A sink that can neither write nor close."""

    def write(self, sample: Sample) -> None:
        raise RuntimeError("the disk is full")

    def close(self) -> None:
        raise RuntimeError("the disk is full")


class Leaving(Kept):
    """A sink that ends its thread."""

    def write(self, sample: Sample) -> None:
        raise SystemExit


class Stuck(Kept):
    """A sink that returns only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_return = threading.Event()

    def write(self, sample: Sample) -> None:
        self.may_return.wait(_TIMEOUT_S)


def record(read: Callable[[], Status], sinks: Sequence[Sink]) -> Recorder:
    """Record a thousand times a second."""
    return Recorder(read, sinks, first=QUIET, every_s=0.001)


def lost(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """Return the sink and the error of each warning."""
    told = [vars(record) for record in caplog.records]
    return [(t["sink"], t["error"]) for t in told if t["event"] == "metrics_lost"]


def test_a_sink_that_fails_is_named_once_and_harms_no_other(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever kind of object it is, and also while it is closed."""
    kept = Kept()
    recorder = record(start_server().status, [Failing(), kept])

    assert kept.has_three.wait(_TIMEOUT_S)
    recorder.stop(_TIMEOUT_S)

    assert kept.closed == 1
    assert lost(caplog) == [("Failing", "the disk is full")]


def test_the_first_sample_is_what_the_server_began_with(
    start_server: StartServer, tmp_path: Path
) -> None:
    """All that later ones have more was counted by this start of the server."""
    gradient = {"w": np.ones(2, np.float32)}
    settings = {"durability": "checkpoint", "data_dir": tmp_path / "data"}
    before, after = Kept(), Kept()
    first = start_server(sinks=[before], **settings)
    with psworker.connect(first.address, name="ann") as client:
        client.initialize(gradient)
        client.push(gradient, client.pull())
    first.stop()

    second = start_server(sinks=[after], **settings)
    with psworker.connect(second.address, name="bob") as client:
        client.push(gradient, client.pull())
    second.stop()

    sinks = (before, after)
    assert [sink.samples[0]["applied"] for sink in sinks] == [0, 1]
    assert [sink.samples[-1]["applied"] for sink in sinks] == [1, 2]
    (ann,) = after.samples[0]["workers"]
    assert (ann["applied"], ann["state"]) == (1, "silent")


def test_figures_that_cannot_be_read_are_read_again(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, until they can be."""
    status = start_server().status
    faults = [RuntimeError("no memory"), RuntimeError("no memory")]
    kept = Kept()

    def read() -> Status:
        if faults:
            raise faults.pop()
        return status()

    recorder = record(read, [kept])
    assert kept.has_three.wait(_TIMEOUT_S)
    recorder.stop(_TIMEOUT_S)

    assert lost(caplog) == [("Recorder", "no memory")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_sinks_are_closed_however_the_recorder_ends(start_server: StartServer) -> None:
    """A sink may call for its end."""
    leaving, kept = Leaving(), Kept()

    record(start_server().status, [leaving, kept]).stop(_TIMEOUT_S)

    assert (leaving.closed, kept.closed) == (1, 1)


def test_a_sink_that_hangs_does_not_keep_a_server_from_stopping(
    start_server: StartServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is named, when the grace is over."""
    monkeypatch.setattr("psserver.metrics.recorder._LAST_S", 0.0)
    server = start_server(sinks=[Kept(), stuck := Stuck()], http_port=0)

    server.stop(grace_s=0.1)

    try:
        assert lost(caplog) == [("Stuck", "not done in time; the server does not wait")]
    finally:
        stuck.may_return.set()


def test_sinks_of_a_server_that_does_not_come_up_are_closed(
    start_server: StartServer,
) -> None:
    """Nothing is shown to them, whether a setting is wrong or a port is taken."""
    taken = int(start_server().address.rpartition(":")[2])
    sinks = Kept(), Kept()

    for sink, port in zip(sinks, (-1, taken), strict=True):
        with pytest.raises((ValueError, OSError), match=r"^port: expected"):
            psserver.Server(optax.sgd(1.0), port=port, sinks=[sink])

    assert [(sink.samples, sink.closed) for sink in sinks] == [([], 1), ([], 1)]
