"""Delay compensation from its option to the variables, and what it leaves behind."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from psserver import admin
from pswire.errors import InvalidRequestError, NonFiniteError
from pswire.values import Reason, Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]
ConnectNear = Callable[..., psworker.Client]
NewestArrays = Callable[[Path], bytes]
Metrics = Callable[[psserver.Server], Mapping[tuple[str, ...], float]]
Floats = npt.NDArray[np.float64]

LIMIT = 4
RATE = 0.5
VARIABLES: dict[str, npt.NDArray[Any]] = {
    "b": np.full(3, 2.0, np.float32),
    "count": np.arange(3),
    "half": np.ones(5, ml_dtypes.bfloat16),
    "w": np.linspace(1.0, 2.0, 8, dtype=np.float32).reshape(2, 4),
}
TRAINED = ("b", "half", "w")


class Oracle:
    """SGD with compensated gradients in plain numpy, in double precision."""

    def __init__(self, strength: float, *, adaptive: bool) -> None:
        self._strength = strength
        self._adaptive = adaptive
        first = {name: VARIABLES[name].astype(np.float64) for name in TRAINED}
        self.past = [first]
        self._squares: dict[str, Any] = dict.fromkeys(TRAINED, 0.0)

    def push(self, gradients: Mapping[str, Floats], step_read: int) -> None:
        now, read = self.past[-1], self.past[step_read]
        after = dict(now)
        for name, gradient in gradients.items():
            square = 0.95 * self._squares[name] + 0.05 * gradient**2
            self._squares[name] = square
            root = np.sqrt(square + 1e-7) if self._adaptive else 1.0
            change = self._strength / root * gradient**2 * (now[name] - read[name])
            after[name] = now[name] - RATE * (gradient + change)
        self.past.append(after)


def draw(generator: np.random.Generator, names: Sequence[str]) -> dict[str, Any]:
    """Draw gradients that each variable's type can tell."""
    return {
        name: generator.normal(size=VARIABLES[name].shape).astype(VARIABLES[name].dtype)
        for name in names
    }


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rule", ["flat", "apart"])
def test_every_push_is_compensated_as_the_formula_says(
    adaptive: bool, rule: str, start_server: StartServer, connect: Connect
) -> None:
    """Of all variables and of some, of any staleness, over gRPC and past it.

    A rule that is not elementwise has its variables apart from one another.
    """
    sgd = optax.sgd(RATE)
    if rule == "apart":  # Never clips, but looks at all of them together.
        sgd = optax.chain(optax.clip_by_global_norm(1e9), sgd)
    spec = "delay-compensation:0.3" + ",adaptive" * adaptive
    server = start_server(sgd, max_staleness=LIMIT, staleness_policy=spec)
    client = connect(server.address)
    client.initialize(VARIABLES)
    oracle = Oracle(0.3, adaptive=adaptive)
    generator = np.random.default_rng(0)

    for step in range(30):
        chosen = [name for name in TRAINED if generator.random() < 0.7] or ["w"]
        gradients = draw(generator, chosen)
        step_read = max(0, step - int(generator.integers(LIMIT + 1)))
        verdict = client.push(gradients, step_read=step_read)
        assert verdict == Verdict(True, step - step_read, step + 1)
        wide = {name: g.astype(np.float64) for name, g in gradients.items()}
        oracle.push(wide, step_read)
        found = client.pull().params
        for name in ("b", "w"):
            np.testing.assert_allclose(
                found[name], oracle.past[-1][name], rtol=1e-4, atol=1e-4
            )
        # It is kept in eight bits; the oracle goes on from what it is.
        half = found["half"].astype(np.float64)
        np.testing.assert_allclose(half, oracle.past[-1]["half"], rtol=0.02, atol=0.02)
        oracle.past[-1]["half"] = half


@pytest.mark.parametrize(
    "spec", ["delay-compensation:9", "delay-compensation:9,adaptive"]
)
def test_a_fresh_gradient_keeps_every_bit(
    spec: str, start_server: StartServer, connect_near: ConnectNear
) -> None:
    """Negative zeros, and numbers whose squares would overflow float32, as well."""
    gradients = {"w": np.array([-0.0, 0.0, 1e-40, 3.0], np.float32)}
    if "adaptive" not in spec:
        gradients["w"][3] = 1e30
    found = []
    for policy in ("drop", spec):
        server = start_server(max_staleness=2, staleness_policy=policy)
        client = connect_near(server.address)
        client.initialize({"w": np.array([-0.0, -0.0, 0.0, 1.0], np.float32)})
        client.push(gradients, client.pull())
        client.push(gradients, client.pull())
        found.append(client.pull().params["w"].tobytes())

    assert found[0] == found[1]


def test_infinite_variables_compensate_nothing(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """They are masks, say, and have no difference; their neighbours do."""
    server = start_server(max_staleness=1, staleness_policy="delay-compensation:1")
    client = connect_near(server.address)
    client.initialize({"w": np.array([-np.inf, 1.0], np.float32)})
    first = client.pull()
    gradient = {"w": np.array([0.0, 1.0], np.float32)}

    verdicts = [client.push(gradient, first) for _ in range(2)]

    assert [verdict.applied for verdict in verdicts] == [True, True]
    # 1, then 0, then 0 - (1 + 1 * (0 - 1)).
    assert client.pull().params["w"].tolist() == [-np.inf, 0.0]


def test_on_a_quadratic_it_lands_nearer_to_the_sequential_result(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """All gradients three steps old, but for the first ones, as in the paper."""
    curvature = np.array([1.0, 0.5, 0.25], np.float32)
    target = np.array([1.0, -2.0, 3.0], np.float32)

    def train(policy: str, staleness: int) -> list[Floats]:
        rule = optax.sgd(0.1)
        server = start_server(rule, max_staleness=staleness, staleness_policy=policy)
        client = connect_near(server.address)
        client.initialize({"w": np.zeros(3, np.float32)})
        path = [client.pull()]
        for _ in range(30):
            read = path[max(0, len(path) - 1 - staleness)]
            gradient = curvature * (read.params["w"] - target)
            assert client.push({"w": gradient}, read).applied
            path.append(client.pull())
        return [snapshot.params["w"] for snapshot in path]

    sequential = train("drop", 0)
    plain, compensated, adaptive = (
        np.linalg.norm(np.subtract(train(policy, 3), sequential))
        for policy in (
            *("drop", "delay-compensation:0.3", "delay-compensation:0.3,adaptive"),
        )
    )

    assert compensated < 0.8 * plain
    assert adaptive < 0.8 * plain


def test_what_was_read_before_the_policy_came_is_dropped_and_counted(
    start_server: StartServer, connect: Connect, scrape: Metrics
) -> None:
    """Apart from what was too stale; fresh pushes are applied from the first one on."""
    server = start_server(max_staleness=3, http_port=0)
    client = connect(server.address, name="ann")
    client.initialize({"w": np.zeros(2, np.float32)})
    ones = {"w": np.ones(2, np.float32)}
    first = client.pull()
    for _ in range(3):
        client.push(ones, client.pull())
    admin.change(server.address, {"staleness_policy": "delay-compensation:1"})

    gone = client.push(ones, first)
    fresh = client.push(ones, client.pull())
    stale = client.push(ones, first)

    assert gone == Verdict(False, 3, 3, Reason.SNAPSHOT_GONE)
    assert fresh == Verdict(True, 0, 4)
    assert stale == Verdict(False, 4, 4, Reason.STALE)
    status = client.status()
    assert (status.counts.dropped, status.counts.snapshot_gone) == (2, 1)
    assert status.workers[0].counts == status.counts
    metrics = scrape(server)
    assert metrics["asyncps_pushes_total", "dropped", "SNAPSHOT_GONE"] == 1
    assert metrics["asyncps_pushes_total", "dropped", "STALE"] == 1


def test_another_limit_keeps_what_it_can_and_another_policy_nothing(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """As many snapshots as steps that a push may be stale, and the newest."""
    server = start_server(max_staleness=2, staleness_policy="delay-compensation:1")
    client = connect_near(server.address)
    client.initialize({"w": np.zeros(2, np.float32)})
    zeros = {"w": np.zeros(2, np.float32)}

    def verdicts(**settings: str) -> list[Reason | None]:
        """Push once of every step, the oldest first, after a change."""
        if settings:
            admin.change(server.address, settings)
        step = client.pull().step
        return [client.push(zeros, step_read=n).reason for n in range(step + 1)][-4:]

    for _ in range(5):
        client.push(zeros, client.pull())
    stale, gone = Reason.STALE, Reason.SNAPSHOT_GONE

    # Each applied push makes those after it a step staler.
    assert verdicts() == [stale, None, None, None]
    assert verdicts(max_staleness="4") == [gone, None, None, None]
    assert verdicts(staleness_policy="delay-compensation:2") == [None] * 4
    assert verdicts(staleness_policy="drop") == [None] * 4
    assert verdicts(staleness_policy="delay-compensation:1")[-2:] == [gone, None]


def test_an_overflow_is_an_error_and_changes_nothing(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """Of the formula or of the mean squares: to the next push it has not been."""
    server = start_server(max_staleness=2, staleness_policy="delay-compensation:1")
    client = connect_near(server.address)
    client.initialize({"b": np.zeros(1, np.float32), "w": np.zeros(2, np.float32)})
    client.push({"w": np.ones(2, np.float32)}, client.pull())
    huge = {"w": np.array([0, 1e30], np.float32)}

    message = "^w: expected a finite compensated gradient, got an overflow"
    with pytest.raises(NonFiniteError, match=message):
        client.push(huge, step_read=0)
    admin.change(server.address, {"staleness_policy": "delay-compensation:1,adaptive"})
    message = "^w: expected a finite mean square of gradients, got an overflow"
    with pytest.raises(NonFiniteError, match=message):
        client.push(huge, client.pull())

    assert client.pull().params["w"].tolist() == [-1, -1]
    assert client.push({"w": np.full(2, -1.0, np.float32)}, step_read=0).applied
    # The mean square is that of this push alone: -1 + (1 / sqrt(0.05)) * (-1 - 0).
    expected = -1.0 + 1.0 + 1.0 / np.sqrt(0.05 + 1e-7)
    np.testing.assert_allclose(client.pull().params["w"], expected, rtol=1e-6)
    assert server.status().counts.rejected == {"NON_FINITE": 2}


@pytest.mark.parametrize("durability", ["checkpoint", "log"])
def test_a_restart_forgets_what_is_not_replayed(
    durability: str,
    start_server: StartServer,
    connect_near: ConnectNear,
    tmp_path: Path,
) -> None:
    """Of a log the steps since the checkpoint are made again, and so kept again."""
    settings: dict[str, Any] = {
        "max_staleness": 3,
        "durability": durability,
        "staleness_policy": "delay-compensation:1",
        "checkpoint_every": 10**9,
    }
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    server = start_server(data_dir=stopped, **settings)
    client = connect_near(server.address)
    client.initialize({"w": np.zeros(2, np.float32)})
    ones = {"w": np.ones(2, np.float32)}
    for step in range(3):
        client.push(ones, step_read=max(0, step - 1))
        if not step:
            admin.save_checkpoint(server.address)
    shutil.copytree(stopped, killed)
    server.stop()

    found = []
    for folder in (stopped, killed):
        later = start_server(data_dir=folder, **settings)
        with psworker.connect(later.address) as other:
            newest = other.pull()
            found += [
                other.push(ones, step_read=max(0, newest.step - age)).reason
                for age in (0, 2)
            ]

    gone = Reason.SNAPSHOT_GONE
    replayed = None if durability == "log" else gone
    assert found == [None, gone, None, replayed]


def test_compensated_pushes_are_replayed_bit_for_bit(
    start_server: StartServer,
    connect_near: ConnectNear,
    newest_arrays: NewestArrays,
    tmp_path: Path,
) -> None:
    """However they have travelled, and by another policy than they were judged by."""
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    settings: dict[str, Any] = {
        "max_staleness": LIMIT,
        "durability": "log",
        "checkpoint_every": 10**9,
    }
    rule = optax.adam(0.1)
    spec = "delay-compensation:0.3,adaptive"
    server = start_server(rule, data_dir=stopped, staleness_policy=spec, **settings)
    forms: tuple[dict[str, str], ...]
    forms = ({}, {"wire_dtype": "bf16"}, {"compression": "topk:0.1"})
    clients = [connect_near(server.address, **form) for form in forms]
    clients[0].initialize(VARIABLES)
    generator = np.random.default_rng(1)
    names = (TRAINED, TRAINED[1:], TRAINED[::-1])
    for step in range(36):
        gradients = draw(generator, names[step // 3 % 3])
        step_read = max(0, step - int(generator.integers(LIMIT + 1)))
        assert clients[step % 3].push(gradients, step_read=step_read).applied
        if step == 20:
            admin.change(server.address, {"staleness_policy": "delay-compensation:2"})
        if step == 30:
            admin.change(server.address, {"staleness_policy": "inverse"})
    shutil.copytree(stopped, killed)
    server.stop()

    for policy in ("drop", "delay-compensation:7,adaptive"):
        folder = tmp_path / policy[:4]
        shutil.copytree(killed, folder)
        start_server(rule, data_dir=folder, staleness_policy=policy, **settings).stop()
        assert newest_arrays(folder) == newest_arrays(stopped)


def test_it_is_not_set_without_a_limit(
    start_server: StartServer, connect_near: ConnectNear
) -> None:
    """Nor is the limit then taken off; all stays as it was."""
    server = start_server(max_staleness=None)

    message = "^max_staleness: expected a whole number of steps beside delay-comp"
    with pytest.raises(InvalidRequestError, match=message):
        admin.change(server.address, {"staleness_policy": "delay-compensation:1"})
    with pytest.raises(ValueError, match=message):
        start_server(max_staleness=None, staleness_policy="delay-compensation:1")

    assert server.status().limits.staleness_policy == "drop"
