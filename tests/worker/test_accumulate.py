"""Gradients that are added up, and pushed as their mean."""

import logging
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pswire.errors import NonFiniteError, VariableMismatchError
from pswire.values import Snapshot, Verdict

PARAMS = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}


def of(*numbers: float) -> dict[str, Any]:
    """Make gradients of both variables, each of whose elements is one number."""
    a, b = numbers
    return {"a": np.full(2, a, np.float32), "b": np.full(1, b, np.float32)}


def at(step: int, generation: str = "first") -> Snapshot[None]:
    """Make a snapshot that is asked for its step alone."""
    return Snapshot(None, step, generation)


def test_the_last_of_so_many_pushes_their_mean(offline: Any) -> None:
    """Those before it say nothing; the next ones begin anew."""
    client, recorder = offline(PARAMS)
    accumulator = client.accumulate(3)

    verdicts = [accumulator.add(of(n, 10 * n), at(0)) for n in (1, 2, 6, 4, 4, 4)]

    applied = [Verdict(applied=True, staleness=n, step=n + 1) for n in (0, 1)]
    assert verdicts == [None, None, applied[0], None, None, applied[1]]
    assert [sent["a"].tolist() for sent in recorder.sent] == [[3, 3], [4, 4]]
    assert [sent["b"].tolist() for sent in recorder.sent] == [[30], [40]]
    assert [header.layout for header in recorder.headers] == [None, None]


def test_the_mean_is_judged_by_the_oldest_step(offline: Any) -> None:
    """Wherever among them it comes; the loss is the mean of theirs."""
    client, recorder = offline(PARAMS)
    recorder.step = 9
    accumulator = client.accumulate(3)

    accumulator.add(of(1, 1), at(5), value=1.0)
    accumulator.add(of(1, 1), step_read=3, value=2.0)
    verdict = accumulator.add(of(1, 1), at(8), value=6.0)

    assert verdict is not None
    assert verdict.staleness == 6
    (header,) = recorder.headers
    assert (header.generation, header.step_read, header.value) == ("first", 3, 3.0)


def test_gradients_bring_their_own_step_and_loss(offline: Any) -> None:
    """With one loss unknown, so is the mean."""
    client, recorder = offline(PARAMS)

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(params["a"] * batch) + 4

    with client.accumulate(2) as accumulator:
        accumulator.add(client.compute_gradients(loss, 1.0, like=PARAMS))
        recorder.step = 2
        accumulator.add(client.compute_gradients(loss, 3.0, like=PARAMS))
        accumulator.add(client.compute_gradients(loss, 1.0, like=PARAMS))
        accumulator.add(of(1, 1), at(1))

    steps = [(header.step_read, header.value) for header in recorder.headers]
    assert steps == [(0, 4.0), (1, None)]
    assert recorder.sent[0]["a"].tolist() == [2, 2]


def test_what_is_left_is_pushed_at_the_end(offline: Any) -> None:
    """Divided by how many there are, and once only."""
    client, recorder = offline(PARAMS)

    with client.accumulate(3) as accumulator:
        accumulator.add(of(1, 1), at(0))
        accumulator.add(of(3, 3), at(0))
        assert recorder.sent == []
        assert accumulator.verdict is None
    again = accumulator.flush()

    assert [sent["a"].tolist() for sent in recorder.sent] == [[2, 2]]
    assert accumulator.verdict == Verdict(applied=True, staleness=0, step=1)
    assert again is None


def test_what_a_failing_block_has_added_is_not_pushed(offline: Any) -> None:
    """Nobody knows whether it was right."""
    client, recorder = offline(PARAMS)

    def fail() -> None:
        with client.accumulate(3) as accumulator:
            accumulator.add(of(1, 1), at(0))
            raise RuntimeError("the data are gone")

    with pytest.raises(RuntimeError, match="the data are gone"):
        fail()

    assert recorder.sent == []


def test_an_absent_gradient_counts_as_zero_beside_others(offline: Any) -> None:
    """Every variable's is its sum by the number of all; one that none has is absent."""
    client, recorder = offline(PARAMS)
    a = {"a": np.full(2, 8, np.float32)}

    with client.accumulate(4) as accumulator:
        for gradients in (a, of(4, 4), a, a, a, a):
            accumulator.add(gradients, at(0))

    both, a_alone = recorder.sent
    assert (both["a"].tolist(), both["b"].tolist()) == ([7, 7], [1])
    assert list(a_alone) == ["a"]
    assert a_alone["a"].tolist() == [8, 8]


def test_small_types_are_added_up_exactly(offline: Any) -> None:
    """1 + 2^-8 is 1 in bfloat16, so that eight of those small ones would be lost."""
    small = np.asarray([2.0**-8], ml_dtypes.bfloat16)
    client, recorder = offline({"w": np.ones(1, ml_dtypes.bfloat16)})

    with client.accumulate(9) as accumulator:
        for number in (np.ones(1, ml_dtypes.bfloat16), *[small] * 8):
            accumulator.add({"w": number}, at(0))

    (sent,) = recorder.sent
    assert sent["w"].dtype == ml_dtypes.bfloat16
    assert sent["w"] == np.asarray((1 + 2.0**-5) / 9, ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("generations", "mean", "lost"),
    [
        (["first", "first", "second", "second", "second"], 3.0, [2]),
        (["second", "first", "second", "second"], 5 / 3, [1]),
    ],
    ids=["the older come first", "an older one comes late"],
)
def test_gradients_of_a_history_that_is_gone_are_let_go(
    offline: Any,
    caplog: pytest.LogCaptureFixture,
    generations: list[str],
    mean: float,
    lost: list[int],
) -> None:
    """And that is told; those of the newest history are as many as always."""
    client, recorder = offline(PARAMS)
    recorder.generation = "second"
    client.pull()
    accumulator = client.accumulate(3)

    for number, generation in enumerate(generations):
        accumulator.add(of(number, number), at(0, generation))

    assert [header.generation for header in recorder.headers] == ["second"]
    np.testing.assert_allclose(recorder.sent[0]["b"], [mean], rtol=1e-6)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.args for record in told] == [(number,) for number in lost]


def test_what_fits_no_variable_adds_nothing(offline: Any) -> None:
    """An array of one element would fit any other, to numpy."""
    client, recorder = offline(PARAMS)
    accumulator = client.accumulate(2)
    accumulator.add(of(1, 1), at(0))

    with pytest.raises(VariableMismatchError, match=r"^a: expected \(2,\) float32, "):
        accumulator.add({"a": np.ones(1, np.float32)}, at(0))
    with pytest.raises(ValueError, match="there is nothing to push"):
        accumulator.add({}, at(0))
    accumulator.add(of(3, 3), at(0))

    assert [sent["a"].tolist() for sent in recorder.sent] == [[2, 2]]


def test_what_a_server_refuses_does_not_come_back(
    start_server: Any, connect: Any
) -> None:
    """One NaN would else be in every mean from then on."""
    client = connect(start_server().address)
    client.initialize(PARAMS)
    accumulator = client.accumulate(2)
    accumulator.add(of(np.nan, 1), step_read=0)

    with pytest.raises(NonFiniteError, match=r"^a: expected finite"):
        accumulator.add(of(1, 1), step_read=0)
    accumulator.add(of(1, 1), step_read=0)
    verdict = accumulator.add(of(3, 3), step_read=0)

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert client.pull().params["a"].tolist() == [-2, -2]


@pytest.mark.parametrize("count", [0, -1])
def test_so_many_are_one_or_more(offline: Any, count: int) -> None:
    """With none, nothing would ever be pushed."""
    client, _ = offline(PARAMS)

    with pytest.raises(ValueError, match=rf"^accumulate: expected 1 .*, got {count}$"):
        client.accumulate(count)
