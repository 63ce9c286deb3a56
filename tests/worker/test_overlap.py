"""Training whose calls overlap with its computing, round a client that can be held."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psworker
from pswire.body import Body
from pswire.errors import (
    GenerationError,
    NonFiniteError,
    NotInitializedError,
    ParameterServerError,
    ServerUnavailableError,
)
from pswire.layout import Layout
from pswire.values import Reason, Snapshot, Verdict
from psworker import Shard, Task
from psworker.loop import Progress, train

WAIT_S = 20.0

W = np.asarray([1.0, 2.0], np.float32)
LAYOUT = Layout.of({"w": W})

Ways = dict[str, Any]

PREFETCH: Ways = {"prefetch": True}
BACKGROUND: Ways = {"background_push": True}
BOTH = PREFETCH | BACKGROUND
each_way = pytest.mark.parametrize(
    "ways", [PREFETCH, BACKGROUND, BOTH], ids=["prefetch", "background", "both"]
)


def wait(event: threading.Event) -> bool:
    """Wait for what another thread has to do first."""
    assert event.wait(WAIT_S)
    return True


class Events(dict[int, threading.Event]):
    """One event a number, made when it is first asked for."""

    def __missing__(self, number: int) -> threading.Event:
        return self.setdefault(number, threading.Event())


@dataclass
class FakeClient:
    """Applies pushes; tells when a call has come, and may be held or made to fail.

    Attributes:
        on_pull: Called with each pull's number, before its answer.
        on_push: The same for pushes, before they are judged.
        failures: What pushes fail with, by their number.
        dropped: The numbers of pushes that are dropped.
        pulls: Set once that pull has seen the variables.
        pushes: Set once that push has come.
        read: The generation and the step that each push was computed from.
        values: The losses beside them.
        initialized: How often variables were offered.
        in_flight: How many pushes were, when each came.
    """

    on_pull: Callable[[int], object] = lambda number: None
    on_push: Callable[[int], object] = lambda number: None
    failures: dict[int, ParameterServerError] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    pulls: Events = field(default_factory=Events)
    pushes: Events = field(default_factory=Events)
    read: list[tuple[str, int]] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    initialized: int = 0
    step: int = 0
    generation: str = "first"

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._pull_count = self._pushing = 0

    def initialize(self, params: Any, *, tables: Sequence[str] = ()) -> bool:
        self.initialized += 1
        return True

    def pull_body(self, *, rows: Mapping[str, Any] | None = None) -> Snapshot[Body]:
        with self._lock:
            number, self._pull_count = self._pull_count, self._pull_count + 1
            body = Body.gather(LAYOUT, {"w": W + self.step})
            snapshot = Snapshot(body, self.step, self.generation)
        self.pulls[number].set()
        self.on_pull(number)
        return snapshot

    def push(
        self, gradients: Body, snapshot: Snapshot[Body], *, value: float | None
    ) -> Verdict:
        with self._lock:
            number = len(self.read)
            self.read.append((snapshot.generation, snapshot.step))
            self.values.append(value)
            self.in_flight.append(self._pushing)
            self._pushing += 1
        self.pushes[number].set()
        self.on_push(number)
        with self._lock:
            self._pushing -= 1
            return self._judge(number, snapshot)

    def exchange(
        self, gradients: Body, snapshot: Snapshot[Body], *, value: float | None
    ) -> tuple[Verdict, Snapshot[Body]]:
        raise AssertionError("expected a push")

    def _judge(self, number: int, snapshot: Snapshot[Body]) -> Verdict:
        if number in self.failures:
            self.step, self.generation = 0, "second"
            raise self.failures[number]
        staleness = self.step - snapshot.step
        if number in self.dropped:
            return Verdict(False, staleness, self.step, Reason.STALE)
        self.step += 1
        return Verdict(applied=True, staleness=staleness, step=self.step)


def times(params: Any, batch: Any) -> Any:
    """A loss that tells the variables and the batch: 3 batch + 2 batch step."""
    return jnp.sum(params["w"] * batch)


def make_task(batches: Callable[[], Iterator[int]], loss: Any = times) -> Task:
    """Make a task of these batches, each of which is a number."""
    return Task(
        init=lambda: {"w": jnp.asarray(W)},
        loss=loss,
        batches=lambda shard: map(np.float32, batches()),
    )


def numbers(count: int) -> Callable[[], Iterator[int]]:
    """Make batches 1, 2 and so on."""
    return lambda: iter(range(1, count + 1))


def test_the_next_variables_are_pulled_while_a_gradient_is_computed() -> None:
    """Each pull but the first begins before a batch is taken, and ends after its push.

    So the variables lack just the push of the batch before.
    """
    client = FakeClient()
    client.on_pull = lambda number: 0 < number < 5 and wait(client.pushes[number - 1])

    def batches() -> Iterator[int]:
        for number in range(4):
            wait(client.pulls[number + 1])
            yield number

    progress = train(client, make_task(batches), Shard(), **PREFETCH)

    assert client.read == [("first", step) for step in (0, 0, 1, 2)]
    assert (progress.step, progress.applied) == (4, 4)


def test_a_gradient_is_computed_while_a_push_is_on_its_way() -> None:
    """No push but the last is answered before the next gradient is there."""
    computed = Events()
    client = FakeClient()
    client.on_push = lambda number: number < 3 and wait(computed[number + 1])

    def loss(params: Any, batch: Any) -> Any:
        jax.debug.callback(lambda number: computed[int(number)].set(), batch)
        return times(params, batch)

    progress = train(
        client, make_task(lambda: iter(range(4)), loss), Shard(), **BACKGROUND
    )

    assert client.in_flight == [0] * 4
    assert (progress.step, progress.applied) == (4, 4)


def test_variables_are_pulled_while_a_push_is_on_its_way() -> None:
    """The next batch is taken, so they are there, before the push is answered."""
    taken = Events()
    client = FakeClient(on_push=lambda number: wait(taken[number + 1]))

    def batches() -> Iterator[int]:
        for number in range(4):
            taken[number].set()
            yield number
        taken[4].set()

    train(client, make_task(batches), Shard(), **BACKGROUND)

    assert client.read == [("first", step) for step in (0, 0, 1, 2)]
    assert client.in_flight == [0] * 4


@each_way
def test_every_push_is_counted_with_its_own_loss(ways: Ways) -> None:
    """The last one's verdict too, which comes when there is no batch any more."""
    client = FakeClient()
    reports: list[Progress] = []

    last = train(client, make_task(numbers(5)), Shard(), report=reports.append, **ways)

    assert reports == [
        Progress(step=number + 1, applied=number + 1, dropped=0, loss=loss)
        for number, loss in enumerate(client.values)
    ]
    assert client.values == [
        batch * (3 + 2 * step)
        for batch, (_, step) in zip(range(1, 6), client.read, strict=True)
    ]
    assert last == reports[-1]


@each_way
@pytest.mark.parametrize("failing", [1, 4])
def test_an_error_of_a_push_reaches_the_caller(ways: Ways, failing: int) -> None:
    """One cycle later at most, and also if it is the last push."""
    client = FakeClient(failures={failing: NonFiniteError("w: expected finite")})
    taken = []

    def batches() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    with pytest.raises(NonFiniteError, match=r"^w: expected finite$"):
        train(client, make_task(batches), Shard(), **ways)

    assert len(client.read) == failing + 1
    assert len(taken) <= failing + 2


def test_an_error_of_a_pull_reaches_the_caller() -> None:
    """It was in the air while a gradient was computed, which is still pushed."""

    def fail(number: int) -> None:
        if number == 2:
            raise ServerUnavailableError("no answer")

    client = FakeClient(on_pull=fail)

    with pytest.raises(ServerUnavailableError, match=r"^no answer$"):
        train(client, make_task(numbers(5)), Shard(), **PREFETCH)

    assert len(client.read) == 2


@each_way
@pytest.mark.parametrize("failing", [2, 5], ids=["midway", "at the end"])
@pytest.mark.parametrize(
    "failure", [GenerationError("cut"), NotInitializedError("empty")]
)
def test_a_server_that_has_restarted_is_given_the_variables_again(
    ways: Ways, failing: int, failure: ParameterServerError
) -> None:
    """What was pulled, or computed, of the old history is never pushed after it."""
    client = FakeClient(failures={failing: failure})

    progress = train(client, make_task(numbers(6)), Shard(), **ways)

    before, after = client.read[: failing + 1], client.read[failing + 1 :]
    assert {generation for generation, _ in before} == {"first"}
    assert {generation for generation, _ in after} <= {"second"}
    assert client.initialized == 2
    lost = 2 if "background_push" in ways and failing == 2 else 1
    assert progress.applied == 6 - lost
    assert progress.step == client.step == len(after)


@pytest.mark.parametrize("applied", [True, False])
def test_a_push_in_flight_at_a_restart_is_waited_for(applied: bool) -> None:
    """It counts if the old server has judged it; else it is no second restart.

    The pull finds a server without variables while the push is on its way.
    """
    failures = {} if applied else {0: GenerationError("cut")}
    client = FakeClient(failures=dict(failures))
    client.on_push = lambda number: number or wait(client.pulls[1])

    def restart(number: int) -> None:
        if number == 1:
            wait(client.pushes[0])
            raise NotInitializedError("empty")

    client.on_pull = restart

    progress = train(client, make_task(numbers(3)), Shard(), **BACKGROUND)

    assert client.initialized == 2
    assert len(client.read) == 3
    assert progress.applied == 2 + applied


@pytest.mark.parametrize("ways", [PREFETCH, BACKGROUND], ids=["pull", "push"])
def test_an_interruption_does_not_wait_for_a_call(ways: Ways) -> None:
    """The call ends with the client, which the caller closes."""
    freed, ended = threading.Event(), threading.Event()
    client = FakeClient()
    held = client.pulls[2] if ways == PREFETCH else client.pushes[0]

    def hold(number: int) -> None:
        if held.is_set():
            freed.wait(WAIT_S)
            ended.set()

    if ways == PREFETCH:
        client.on_pull = hold
    else:
        client.on_push = hold

    def batches() -> Iterator[int]:
        yield 1
        wait(held)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(client, make_task(batches), Shard(), **ways)
    waited = ended.is_set()
    freed.set()

    assert not waited
    wait(ended)


@pytest.mark.parametrize("ways", [PREFETCH, BOTH], ids=["prefetch", "both"])
def test_the_end_does_not_wait_for_a_pull(ways: Ways) -> None:
    """Nobody computes from it any more; a server that has gone would be waited for."""
    freed, ended = threading.Event(), threading.Event()
    client = FakeClient()

    def hold(number: int) -> None:
        if number == 4:
            freed.wait(WAIT_S)
            ended.set()

    def batches() -> Iterator[int]:
        yield from (1, 2, 3)
        wait(client.pulls[4])

    client.on_pull = hold

    progress = train(client, make_task(batches), Shard(), **ways)
    waited = ended.is_set()
    freed.set()

    assert progress.applied == 3
    assert not waited
    wait(ended)


def test_a_restart_found_at_the_last_step_is_trained_on() -> None:
    """The new server has to reach that step as well."""
    client = FakeClient(failures={3: GenerationError("cut")})

    progress = train(client, make_task(numbers(20)), Shard(), steps=3, **BACKGROUND)

    assert client.initialized == 2
    assert client.generation == "second"
    assert progress.step == client.step >= 3


@each_way
@pytest.mark.parametrize(
    ("on_drop", "got"), [("retry", '"retry"'), (lambda verdict: False, "a function")]
)
def test_a_retry_is_refused(ways: Ways, on_drop: Any, got: str) -> None:
    """It would be computed from variables that are as old; nothing has been called."""
    client = FakeClient()

    with pytest.raises(ValueError, match=rf'^on_drop: expected "skip" or .* got {got}'):
        train(client, make_task(numbers(1)), Shard(), on_drop=on_drop, **ways)

    assert client.initialized == 0


@each_way
@pytest.mark.parametrize(
    "dropped", [{0}, {2}, {1, 2, 3, 4}], ids=["the first", "the last", "many"]
)
def test_a_requeued_batch_is_the_one_that_was_dropped(
    ways: Ways, dropped: set[int]
) -> None:
    """Though its verdict may come when the next one has been pushed already.

    The losses tell the batches apart: 3 batch + 2 batch step.
    """
    client = FakeClient(dropped=dropped)
    pushed = []

    progress = train(client, make_task(numbers(3)), Shard(), on_drop="requeue", **ways)

    for loss, (_, step) in zip(client.values, client.read, strict=True):
        assert loss is not None
        pushed.append(loss / (3 + 2 * step))
    learned = [batch for n, batch in enumerate(pushed) if n not in dropped]
    assert sorted(learned) == [1, 2, 3]
    assert len(pushed) == 3 + len(dropped)
    assert (progress.applied, progress.unlearned) == (3, 0)


@each_way
def test_a_real_server_counts_the_same(
    start_server: Any, connect: Any, ways: Ways
) -> None:
    """Every push has its verdict, and is older by a step a setting at most."""
    server = start_server()
    client = connect(server.address)

    progress = train(client, make_task(numbers(50)), Shard(), **ways)

    status = server.status()
    assert (progress.step, progress.applied, progress.dropped) == (50, 50, 0)
    assert (status.step, status.counts.received) == (50, 50)
    assert max(status.staleness) <= len(ways)
    np.testing.assert_array_equal(client.pull().params["w"], W - sum(range(1, 51)))


@each_way
def test_training_rides_through_a_restart(start_server: Any, ways: Ways) -> None:
    """A real server, whose calls in flight are lost with it; the new one starts anew.

    What it holds at the end is just what the worker says it has pushed since.
    """
    server = start_server()
    port = int(server.address.rpartition(":")[2])
    servers = [server]
    since: list[Progress] = []

    def batches() -> Iterator[int]:
        yield from range(1, 6)
        servers[-1].stop()
        servers.append(start_server(port=port))
        yield from range(6, 16)

    with psworker.connect(server.address) as client:
        progress = train(
            client, make_task(batches), Shard(), report=since.append, **ways
        )

    status = servers[-1].status()
    assert progress.step == status.step == status.counts.applied
    assert 10 - 3 <= status.step <= 10
    assert progress.applied >= 4 + status.step
    assert [report.step for report in since[-status.step :]] == [
        *range(1, status.step + 1)
    ]
