"""The training loop, round a client that does as it is told."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psworker
from pswire.body import Body
from pswire.errors import (
    GenerationError,
    InvalidRequestError,
    NonFiniteError,
    NotInitializedError,
    ParameterServerError,
)
from pswire.layout import Layout
from pswire.values import Reason, Snapshot, Verdict
from psworker import Shard, Task
from psworker.loop import Progress, train

Answer = Literal["apply", "drop"] | ParameterServerError

W = np.asarray([1.0, 2.0], np.float32)
LAYOUT = Layout.of({"w": W})


@dataclass
class FakeClient:
    """Answers exchanges as its script says, then applies everything.

    Attributes:
        answers: What becomes of each exchange, in order.
        pushed: The gradients that came, in order.
        values: The losses beside them.
        calls: The methods that were called, in order.
        others: Steps that other workers make before each exchange.
    """

    answers: Iterable[Answer] = ()
    others: int = 0
    step: int = 0
    generation: str = "first"
    pushed: list[Any] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    read: list[tuple[str, int]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers = iter(self.answers)

    def initialize(self, params: Any, *, tables: Sequence[str] = ()) -> bool:
        self.calls.append("initialize")
        return True

    def pull_body(self, *, rows: Mapping[str, Any] | None = None) -> Snapshot[Body]:
        self.calls.append("pull")
        return self._snapshot()

    def exchange(
        self, gradients: Body, snapshot: Snapshot[Body], *, value: float | None
    ) -> tuple[Verdict, Snapshot[Body]]:
        self.calls.append("exchange")
        return self._judge(gradients, snapshot, value), self._snapshot()

    def push(
        self, gradients: Body, snapshot: Snapshot[Body], *, value: float | None
    ) -> Verdict:
        self.calls.append("push")
        return self._judge(gradients, snapshot, value)

    def _judge(
        self, gradients: Body, snapshot: Snapshot[Body], value: float | None
    ) -> Verdict:
        self.pushed.append(gradients["w"].tolist())
        self.values.append(value)
        self.read.append((snapshot.generation, snapshot.step))
        answer = next(self._answers, "apply")
        if isinstance(answer, ParameterServerError):
            self.step, self.generation = 0, "second"
            raise answer
        self.step += self.others + (answer == "apply")
        reason = None if answer == "apply" else Reason.STALE
        return Verdict(answer == "apply", self.others, self.step, reason)

    def _snapshot(self) -> Snapshot[Body]:
        body = Body.gather(LAYOUT, {"w": W + self.step})
        return Snapshot(body, self.step, self.generation)


def times(params: Any, batch: Any) -> Any:
    """A loss whose gradient is the batch, twice."""
    return jnp.sum(params["w"] * batch)


def make_task(batches: Iterable[Any] = (), loss: Any = times, **settings: Any) -> Task:
    """Make a task of these batches, whatever the shard."""
    return Task(
        init=lambda: {"w": jnp.asarray(W)},
        loss=loss,
        batches=lambda shard: batches,
        **settings,
    )


def floats(*numbers: int) -> list[np.float32]:
    """Make batches that are told apart by their gradients."""
    return [np.float32(number) for number in numbers]


def leased(count: int) -> Iterator[Shard]:
    """Yield the parts that a worker on its own is leased, without end."""
    for number in itertools.count():
        yield Shard(number % count, count, epoch=number // count)


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the next part at once."""
    monkeypatch.setattr("psworker.batches._PAUSE_S", 0.0)


def test_training_ends_with_the_batches() -> None:
    """Every batch is pushed once, from the variables that the last exchange brought."""
    client = FakeClient()

    progress = train(client, make_task(floats(1, 2, 3)), Shard())

    assert client.calls == ["initialize", "pull", *["exchange"] * 3]
    assert client.pushed == [[1, 1], [2, 2], [3, 3]]
    assert client.read == [("first", 0), ("first", 1), ("first", 2)]
    assert client.values == [3.0, 10.0, 21.0]
    assert progress == Progress(step=3, applied=3, dropped=0, loss=21.0)


def test_the_batches_are_those_of_the_shard() -> None:
    """The task is told which part of the data this worker reads."""
    shards = []

    def batches(shard: Shard) -> list[Any]:
        shards.append(shard)
        return floats(shard.index)

    client = FakeClient()
    task = Task(init=lambda: {"w": W}, loss=times, batches=batches)

    train(client, task, Shard(2, 5))

    assert shards == [Shard(2, 5)]
    assert client.pushed == [[2, 2]]


def test_parts_are_gone_through_one_after_another() -> None:
    """Each part is asked for when the one before has no batch left, and not earlier."""
    client, asked = FakeClient(), list[int]()

    def parts() -> Iterator[Shard]:
        for index in range(3):
            asked.append(len(client.pushed))
            yield Shard(index, 3, epoch=0)

    def batches(shard: Shard) -> list[Any]:
        return floats(*[shard.index] * shard.index)

    task = Task(init=lambda: {"w": W}, loss=times, batches=batches)

    train(client, task, parts())

    assert client.pushed == [[1, 1], [2, 2], [2, 2]]
    assert asked == [0, 0, 1]


def test_a_part_has_other_keys_every_time_that_it_is_leased() -> None:
    """Two workers that share one do not compute the same."""
    client = FakeClient()

    def noisy(params: Any, batch: Any, rng: Any) -> Any:
        return jnp.sum(params["w"] * jax.random.uniform(rng))

    train(
        client,
        make_task(floats(1, 1), noisy),
        [Shard(0, 3, epoch) for epoch in (0, 1, 0)] + [Shard(1, 3, 0), Shard(0, 3)],
    )

    drawn = [tuple(gradient) for gradient in client.pushed]
    assert drawn[:2] == drawn[4:6]
    assert len(set(drawn)) == 8


@pytest.mark.usefixtures("without_pauses")
def test_parts_that_are_leased_and_all_empty_are_no_training() -> None:
    """It would ask for one after another for ever."""
    with pytest.raises(
        InvalidRequestError, match="expected some in one of 3 parts, got none"
    ):
        train(FakeClient(), make_task([]), leased(3))


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("given", [[0, 1, 2], [0, 0, 0, 1, 1, 0, 0, 2]])
def test_a_part_may_be_empty(given: list[int]) -> None:
    """As long as another one is not, be it that others go through that for long."""
    client = FakeClient()
    parts = (Shard(index, 3, epoch=0) for index in itertools.cycle(given))

    def batches(shard: Shard) -> list[Any]:
        return floats(1) if shard.index == 2 else []

    task = Task(init=lambda: {"w": W}, loss=times, batches=batches)

    assert train(client, task, parts, steps=5).step == 5


def test_no_batch_means_no_push() -> None:
    """The progress is then that of the first pull, without a loss."""
    client = FakeClient(step=7)

    progress = train(client, make_task([]), Shard())

    assert client.calls == ["initialize", "pull"]
    assert progress == Progress(step=7, applied=0, dropped=0, loss=None)


@pytest.mark.parametrize(
    ("others", "steps", "exchanges", "step"),
    [(0, 3, 3, 3), (0, 0, 0, 0), (4, 10, 2, 10), (4, 11, 3, 15)],
    ids=["alone", "none to do", "with others", "others overshoot"],
)
def test_training_ends_at_the_global_step(
    others: int, steps: int, exchanges: int, step: int
) -> None:
    """All workers' pushes count, so the batches may well be endless."""
    client = FakeClient(others=others)
    endless = (np.float32(1) for _ in itertools.count())

    progress = train(client, make_task(endless), Shard(), steps=steps)

    assert client.calls.count("exchange") == exchanges
    assert progress.step == step


@pytest.mark.parametrize(
    ("settings", "pushed", "progress"),
    [
        ({}, [1, 2, 3], Progress(2, applied=2, dropped=1, loss=15.0, unlearned=1)),
        (
            {"on_drop": "skip", "max_retries": 9},
            [1, 2, 3],
            Progress(2, applied=2, dropped=1, loss=15.0, unlearned=1),
        ),
        (
            {"on_drop": "retry"},
            [1, 1, 2, 3],
            Progress(step=3, applied=3, dropped=1, loss=21.0),
        ),
    ],
    ids=["default", "skip", "retry"],
)
def test_a_dropped_batch_is_skipped_or_retried(
    settings: dict[str, Any], pushed: list[int], progress: Progress
) -> None:
    """The first push is dropped; skipping is the default."""
    client = FakeClient(answers=["drop"])

    got = train(client, make_task(floats(1, 2, 3)), Shard(), **settings)

    assert [gradient[0] for gradient in client.pushed] == pushed
    assert got == progress


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_the_retries_of_a_batch_are_bounded(max_retries: int) -> None:
    """After the last one the next batch has its turn, with retries of its own."""
    client = FakeClient(answers=itertools.repeat("drop"))

    progress = train(
        client,
        make_task(floats(1, 2)),
        Shard(),
        on_drop="retry",
        max_retries=max_retries,
    )

    tries = 1 + max_retries
    assert client.pushed == [[1, 1]] * tries + [[2, 2]] * tries
    assert (progress.applied, progress.dropped) == (0, 2 * tries)


def test_a_function_says_whether_a_dropped_batch_is_retried() -> None:
    """It is told each verdict; what it says once there is no try left is let be."""
    seen: list[Verdict] = []

    def on_drop(verdict: Verdict) -> bool:
        seen.append(verdict)
        return len(seen) != 2

    client = FakeClient(answers=itertools.repeat("drop"))
    task = make_task(floats(1, 2), on_drop=on_drop)

    progress = train(client, task, Shard(), max_retries=2)

    assert client.pushed == [[1, 1]] * 2 + [[2, 2]] * 3
    assert len(seen) == 5
    assert not any(verdict.applied for verdict in seen)
    assert (progress.dropped, progress.unlearned) == (5, 2)


@pytest.mark.parametrize(("on_drop", "pushes"), [(None, 2), ("skip", 1)])
def test_who_trains_has_precedence_over_the_task(on_drop: Any, pushes: int) -> None:
    """The task says what is done unless somebody says otherwise."""
    client = FakeClient(answers=["drop"])

    train(client, make_task(floats(1), on_drop="retry"), Shard(), on_drop=on_drop)

    assert len(client.pushed) == pushes


@pytest.mark.parametrize("on_drop", ["requeu", "", None, 3])
def test_a_task_that_knows_another_way_with_drops_is_none(on_drop: Any) -> None:
    """Told where it is made, not in the middle of the training."""
    with pytest.raises(ValueError, match=r'^on_drop: expected "skip", "retry", "req'):
        make_task(on_drop=on_drop)


def test_a_requeued_batch_comes_after_the_others_of_its_part() -> None:
    """Before the next part, with its own key, and is learned from in the end."""

    def noise(params: Any, batch: Any, rng: Any) -> Any:
        return jnp.sum(params["w"] * (batch + jax.random.uniform(rng)))

    def batches(shard: Shard) -> list[Any]:
        return floats(*(10 * shard.index + number for number in (1, 2, 3)))

    runs = []
    scripts: list[list[Answer]] = [["drop", "apply", "drop", "drop"], []]
    for answers in scripts:
        client = FakeClient(answers=answers)
        task = Task(init=lambda: {"w": W}, loss=noise, batches=batches)
        parts = (Shard(index, 2) for index in range(2))
        progress = train(client, task, parts, on_drop="requeue")
        runs.append([gradient[0] for gradient in client.pushed])
        assert (progress.applied, progress.unlearned) == (6, 0)

    dropping, plain = runs
    assert dropping == [*plain[:3], plain[0], plain[2], plain[0], *plain[3:]]


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_batch_is_requeued_so_many_times(max_retries: int) -> None:
    """Then it is one that was never learned from, and is counted once."""
    client = FakeClient(answers=itertools.repeat("drop"))
    task = make_task(floats(1, 2), on_drop="requeue")
    reports: list[Progress] = []

    train(client, task, Shard(), max_retries=max_retries, report=reports.append)

    assert client.pushed == [[1, 1], [2, 2]] * (1 + max_retries)
    assert reports[-1].dropped == 2 * (1 + max_retries)
    assert [report.unlearned for report in reports] == [1, *[2] * (len(reports) - 1)]


def test_of_an_endless_part_a_batch_comes_again_once_sixteen_wait() -> None:
    """It has no end to wait for, and memory has."""
    client = FakeClient(answers=["drop"] * 17)
    endless = map(np.float32, itertools.count(1))

    progress = train(client, make_task(endless), Shard(), on_drop="requeue", steps=3)

    order = [gradient[0] for gradient in client.pushed]
    assert order == [*range(1, 17), 1, 2, 17, 18]
    assert progress.unlearned == 15


def test_a_requeued_batch_that_a_restart_has_lost_comes_again() -> None:
    """It is as little learned from as a dropped one."""
    client = FakeClient(answers=["apply", GenerationError("cut")])

    progress = train(client, make_task(floats(1, 2, 3)), Shard(), on_drop="requeue")

    assert [gradient[0] for gradient in client.pushed] == [1, 2, 3, 2]
    assert (progress.applied, progress.unlearned) == (3, 0)


def test_a_retry_computes_from_the_variables_of_the_exchange() -> None:
    """Four steps of others were in the way: the loss is that of the new variables."""
    client = FakeClient(answers=["drop"], others=4)

    train(client, make_task(floats(1)), Shard(), on_drop="retry")

    assert client.read == [("first", 0), ("first", 4)]
    assert client.values == [3.0, 11.0]


@pytest.mark.parametrize(
    "failure", [GenerationError("cut"), NotInitializedError("empty")]
)
@pytest.mark.parametrize("on_drop", ["skip", lambda verdict: True])
def test_a_server_that_has_restarted_is_given_the_variables_again(
    failure: ParameterServerError, on_drop: Any
) -> None:
    """The batch is lost with its history, and the numbers go on from the new step.

    There is no verdict that a function could be asked about.
    """
    client = FakeClient(answers=["apply", "apply", failure])

    progress = train(client, make_task(floats(1, 2, 3, 4)), Shard(), on_drop=on_drop)

    start = ["initialize", "pull"]
    assert client.calls == [*start, *["exchange"] * 3, *start, "exchange"]
    assert client.read[-2:] == [("first", 2), ("second", 0)]
    assert client.pushed[-1] == [4, 4]
    assert progress == Progress(1, applied=3, dropped=0, loss=12.0, unlearned=1)


@pytest.mark.parametrize(
    "failure", [GenerationError("cut"), NotInitializedError("empty")]
)
@pytest.mark.parametrize(
    ("answers", "pushed", "unlearned"),
    [
        (["apply", "lose"], [1, 2, 2, 3], 0),
        (["apply", "drop", "lose"], [1, 2, 2, 2, 3], 0),
        (["apply", "lose", "lose", "lose"], [1, 2, 2, 2, 3], 1),
        (["apply", "drop", "drop", "lose"], [1, 2, 2, 2, 3], 1),
    ],
)
def test_a_batch_that_is_lost_at_a_restart_is_retried_at_once(
    failure: ParameterServerError, answers: list[Any], pushed: list[int], unlearned: int
) -> None:
    """From the new variables, and as often as after a drop, of which it is one."""
    script = [failure if answer == "lose" else answer for answer in answers]
    client = FakeClient(answers=script)

    progress = train(
        client,
        make_task(floats(1, 2, 3)),
        Shard(),
        on_drop="retry",
        max_retries=2,
    )

    assert [number for number, _ in client.pushed] == pushed
    assert client.read[-1][0] == "second"
    assert progress.unlearned == unlearned


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            GenerationError("cut"),
            [
                "starting again from the newest variables: cut",
                "the server went back from step 2 to step 0",
            ],
        ),
        (
            NotInitializedError("empty"),
            [
                "the server has lost its variables: training begins anew",
                "initialized the variables",
                "the server went back from step 2 to step 0",
            ],
        ),
    ],
    ids=["cut", "lost"],
)
def test_what_a_restart_has_cost_is_told(
    failure: ParameterServerError, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody initializes what a server still has, though it says who once did."""
    caplog.set_level(logging.INFO, "psworker")
    client = FakeClient(answers=["apply", "apply", failure])

    train(client, make_task(floats(1, 2, 3, 4)), Shard())

    assert caplog.messages == ["initialized the variables", *told]


def test_a_restart_at_the_last_batch_is_in_the_progress() -> None:
    """The step is that of the new history, though no push belongs to it."""
    client = FakeClient(answers=["apply", "apply", GenerationError("cut")])

    progress = train(client, make_task(floats(1, 2, 3)), Shard())

    assert progress == Progress(0, applied=2, dropped=0, loss=10.0, unlearned=1)


def test_an_error_that_repeating_cannot_help_ends_the_training() -> None:
    """It reaches the caller as it is, and no further batch is taken."""
    client = FakeClient(answers=["apply", NonFiniteError("w: expected finite")])
    taken = []

    def batches() -> Iterator[Any]:
        for batch in floats(1, 2, 3):
            taken.append(batch)
            yield batch

    with pytest.raises(NonFiniteError, match=r"^w: expected finite$"):
        train(client, make_task(batches()), Shard())

    assert taken == [1, 2]


def test_a_report_comes_after_every_push() -> None:
    """Dropped or applied, with the numbers so far."""
    client = FakeClient(answers=["apply", "drop"])
    reports: list[Progress] = []

    last = train(client, make_task(floats(1, 2, 3)), Shard(), report=reports.append)

    assert reports == [
        Progress(step=1, applied=1, dropped=0, loss=3.0),
        Progress(step=1, applied=1, dropped=1, loss=10.0, unlearned=1),
        Progress(step=2, applied=2, dropped=1, loss=15.0, unlearned=1),
    ]
    assert last == reports[-1]


def test_an_auxiliary_result_is_left_aside() -> None:
    """The loss that is pushed and reported is the scalar."""

    def loss(params: Any, batch: Any) -> Any:
        return times(params, batch), jnp.zeros(3)

    client = FakeClient()

    progress = train(client, make_task(floats(2), loss, has_aux=True), Shard())

    assert client.values == [6.0]
    assert progress.loss == 6.0


def test_keys_differ_by_batch_and_shard_and_come_again() -> None:
    """The gradient is the noise drawn: all differ, and the same run repeats them.

    A retry of a batch has the batch's own key, and another seed other keys.
    """

    def loss(params: Any, batch: Any, rng: Any) -> Any:
        return jnp.sum(params["w"] * jax.random.normal(rng, (2,)))

    def drawn(shard: int, seed: int, answers: Iterable[Answer] = ()) -> list[Any]:
        client = FakeClient(answers=answers)
        task = make_task(floats(1, 1, 1), loss, seed=seed)
        train(client, task, Shard(shard, 2), on_drop="retry")
        return client.pushed

    runs = [drawn(shard=0, seed=0), drawn(shard=1, seed=0), drawn(shard=0, seed=1)]
    again = drawn(shard=1, seed=0)
    retried = drawn(shard=0, seed=0, answers=["drop"])

    assert len({tuple(noise) for run in runs for noise in run}) == 9
    assert again == runs[1]
    assert retried == [runs[0][0], *runs[0]]


def test_a_loss_without_rng_gets_no_key() -> None:
    """It takes two arguments, and would fail with a third."""
    client = FakeClient()

    train(
        client, make_task(floats(5), lambda params, x: params["w"].sum() * x), Shard()
    )

    assert client.pushed == [[5, 5]]


def test_a_worker_outlives_its_server(start_server: Any) -> None:
    """A real one, which is replaced before the third batch; the new one starts anew.

    The third push is judged by a server that does not know its history, so it is lost.
    """
    server = start_server()
    port = int(server.address.rpartition(":")[2])
    servers = [server]

    def batches() -> Iterator[Any]:
        yield from floats(1, 2)
        servers[-1].stop()
        servers.append(start_server(port=port))
        yield from floats(3, 4, 5)

    with psworker.connect(server.address) as client:
        progress = train(client, make_task(batches()), Shard())
        trained = client.pull().params["w"]

    assert (progress.step, progress.applied, progress.dropped) == (2, 4, 0)
    np.testing.assert_array_equal(trained, W - 4 - 5)
