"""A model far over one message: in, out and updated, in bounded memory."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytestmark = pytest.mark.timeout(240)

# 112 MB in all, and one array that leaves the others on no round offset.
SHAPES = {"a": (3000, 3000), "b": (7,), "c": (9_000_000,), "d": (40, 500, 500)}
MODEL_NBYTES = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())

# What the server may hold at once, in models. In an exchange: the old variables, which
# others may be pulling; the gradients' body; the new variables; of the last push, what
# JAX gives back only when Python next collects garbage. In an initialization: the
# variables; and, for the rehearsal of the rule, zeros as gradients, JAX's copy of its
# arguments, and a result. That is 4 in both; 1 more is for JAX itself and for chunks.
MODELS_AT_ONCE = 5
# Seen by the server too: the memory that a worker on its host sends gradients from, and
# three more where snapshots lie for as long as the worker holds them.
MODELS_NEARBY = 4


class ServerProcess:
    """`psserver serve` in a process of its own."""

    def __init__(self) -> None:
        command = ("serve", "--rule", "sgd", "-a", "learning_rate=0.5")
        ports = ("--port", "0", "--http-port", "0")
        self.process = subprocess.Popen(
            (sys.executable, "-m", "psserver", *command, *ports),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout
        self.address = self._out.readline().removeprefix("listening on ").strip()

    def peak_nbytes(self) -> int:
        """Return the most memory that it has had so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
        assert peak is not None
        return int(peak[1]) * 1024

    def stop(self) -> int:
        """Stop it, and return its exit code."""
        self.process.terminate()
        self._out.read()
        return self.process.wait(60)

    def close(self) -> None:
        """End it at once, if it runs still."""
        self.process.kill()
        self.process.wait()
        self._out.close()


@pytest.fixture
def server_process() -> Iterator[ServerProcess]:
    """Start a server that ends with the test."""
    server = ServerProcess()

    yield server

    server.close()


def make(number: int) -> dict[str, npt.NDArray[np.float32]]:
    """Make arrays of small whole numbers, halves of which are exact."""
    return {
        name: np.resize(np.arange(97 + number + place, dtype=np.float32), shape)
        for place, (name, shape) in enumerate(SHAPES.items())
    }


def require_equal(got: Any, expected: Any) -> None:
    """Compare every bit, without printing 112 MB of them."""
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert np.array_equal(got[name], array), name


def test_a_large_model_goes_in_and_out_and_is_updated(
    server_process: ServerProcess, connect: Any, same_host: bool
) -> None:
    """Every bit is right, and the server never holds more than it has to."""
    before = server_process.peak_nbytes()
    params, gradients = make(0), make(1)
    client = connect(server_process.address)

    assert client.initialize(params)
    snapshot = client.pull()
    require_equal(snapshot.params, params)
    pushed = client.push(gradients, snapshot)
    exchanged, after = client.exchange(gradients, client.pull())
    peak = server_process.peak_nbytes()

    assert (pushed.step, exchanged.step) == (1, 2)
    # Half of the gradients, twice.
    require_equal(after.params, {k: params[k] - gradients[k] for k in SHAPES})
    allowed = MODELS_AT_ONCE + MODELS_NEARBY * same_host
    assert (peak - before) / MODEL_NBYTES <= allowed
    assert server_process.stop() == 0
