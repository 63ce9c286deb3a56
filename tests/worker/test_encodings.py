"""What a client loses of arrays on their way, as its options say, and what never."""

import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psworker
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import MAX_UNARY_NBYTES, Body
from pswire.errors import (
    GenerationError,
    GradientNormError,
    NonFiniteError,
    ParameterServerError,
    VariableMismatchError,
)
from pswire.layout import Layout
from pswire.samehost import MAX_INLINE_NBYTES
from pswire.values import Reason, Snapshot, Verdict
from psworker import Client

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

WAIT_S = 20.0
SEED = 3
SIZE = 1000  # Elements, of which top-k sends ten.

WAYS = {
    None: (False, False),
    "bf16": (True, True),
    "bf16:pull": (True, False),
    "bf16:push": (False, True),
}
"""Whether pulls are rounded, and whether pushes are."""


def rounded(array: Array, narrow: bool = True) -> Array:
    """Return what is left of an array behind a narrow way."""
    return array.astype(ml_dtypes.bfloat16).astype(array.dtype) if narrow else array


def thirds(elements: int) -> Array:
    """Make numbers that no narrow type holds, the more of them positive."""
    rng = np.random.default_rng(SEED)
    return rng.integers(-10, 50, elements).astype(np.float32) / np.float32(3)


def assert_bits(got: Any, expected: Array) -> None:
    """Compare types, shapes and every bit."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes()


# Rounding


@pytest.mark.parametrize("wire_dtype", WAYS, ids=str)
@pytest.mark.parametrize("call", ["push", "exchange"])
@pytest.mark.parametrize(
    "elements",
    [
        7,
        *(MAX_INLINE_NBYTES // 4, MAX_INLINE_NBYTES // 4 + 1),
        *(MAX_INLINE_NBYTES // 2, MAX_INLINE_NBYTES // 2 + 1),
    ],
)
def test_what_comes_and_goes_is_rounded_and_what_the_server_keeps_is_not(
    start_server: Any, connect: Any, wire_dtype: str | None, call: str, elements: int
) -> None:
    """A client without the option sees every bit; sizes lie about the inline limit."""
    narrow_pull, narrow_push = WAYS[wire_dtype]
    address = start_server().address
    client, exact = connect(address, wire_dtype=wire_dtype), connect(address)
    values, gradient = thirds(elements), thirds(elements)[::-1].copy()
    client.initialize({"w": values})

    first = client.pull()
    if call == "push":
        verdict = client.push({"w": gradient}, first)
        second = client.pull()
    else:
        verdict, second = client.exchange({"w": gradient}, first)

    after = values - rounded(gradient, narrow_push)
    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert_bits(first.params["w"], rounded(values, narrow_pull))
    assert_bits(second.params["w"], rounded(after, narrow_pull))
    assert_bits(exact.pull().params["w"], after)
    assert second.step == 1


def test_variables_of_other_types_arrive_exactly(
    start_server: Any, connect: Any
) -> None:
    """Whatever they are called; their gradients too, and arrays of no elements."""
    params: Arrays = {
        "half": np.asarray([1 / 3], np.float16),
        "brain": np.asarray([1 / 3], ml_dtypes.bfloat16),
        "wé/a b": np.asarray([[1 / 3]], np.float32),
        "mask": np.asarray([True, False]),
        "n": np.arange(3),
        "none": np.empty((0, 2), np.float32),
        "scalar": np.asarray(1 / 3, np.float32),
    }
    gradients = {name: params[name] for name in params if name not in ("mask", "n")}
    client = connect(start_server().address, wire_dtype="bf16")
    client.initialize(params)

    snapshot = client.pull(like=params)
    _, after = client.exchange(gradients, snapshot)

    for name, array in params.items():
        narrow = array.dtype == np.float32
        assert_bits(snapshot.params[name], rounded(array, narrow))
        if name in gradients:
            left = array - rounded(array, narrow)
            assert_bits(after.params[name], rounded(left, narrow))


def test_a_rounded_snapshot_that_is_known_is_not_sent_again(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """The client keeps the arrays that it made of what came."""
    relay = start_relay(start_server().address)
    client = connect(relay.address, wire_dtype="bf16")
    client.initialize({"w": thirds(SIZE)})

    first, second = client.pull(), client.pull()

    replies = [pb.PullReply.FromString(b"".join(c.replies)) for c in relay.calls[-2:]]
    assert [len(reply.data) for reply in replies] == [2 * SIZE, 0]
    assert np.shares_memory(second.params["w"], first.params["w"])
    assert not second.params["w"].flags.writeable


def test_a_number_past_the_largest_is_pulled_as_an_infinity(
    start_server: Any, connect: Any
) -> None:
    """It stays a number on the server, whose copy is exact."""
    address = start_server().address
    client, exact = connect(address, wire_dtype="bf16:pull"), connect(address)
    large = np.asarray([3.4e38, -3.4e38, 3.3e38], np.float32)
    client.initialize({"w": large})

    assert_bits(client.pull().params["w"], rounded(large))
    assert np.isinf(client.pull().params["w"]).tolist() == [True, True, False]
    assert_bits(exact.pull().params["w"], large)


@pytest.mark.parametrize("compression", [None, "topk:0.01"])
@pytest.mark.parametrize("call", ["push", "exchange"])
def test_a_gradient_that_becomes_infinite_on_its_way_is_refused_by_name(
    start_server: Any, connect: Any, compression: str | None, call: str
) -> None:
    """It is what arrives that is judged; in float32 it would have been a number."""
    client = connect(start_server().address, wire_dtype="bf16", compression=compression)
    client.initialize({"w": np.zeros(SIZE), "a": np.zeros(SIZE, np.float32)})
    snapshot = client.pull()
    large = np.ones(SIZE, np.float32)
    large[7] = -3.4e38
    gradients = {"w": np.ones(SIZE), "a": large}

    with pytest.raises(NonFiniteError, match=r"^a: expected finite .* -inf at \(7,\)$"):
        getattr(client, call)(gradients, snapshot)

    assert client.pull().step == 0


@pytest.mark.parametrize(
    ("wire_dtype", "applied"), [(None, False), ("bf16:pull", False), ("bf16", True)]
)
def test_the_bound_on_the_norm_is_of_what_arrives(
    start_server: Any, connect: Any, wire_dtype: str | None, applied: bool
) -> None:
    """A little over 1, the gradient is rounded to just that."""
    client = connect(start_server(max_grad_norm=1.0).address, wire_dtype=wire_dtype)
    client.initialize({"w": np.zeros(1, np.float32)})
    gradient = {"w": np.asarray([1.001], np.float32)}

    if applied:
        assert client.push(gradient, client.pull()).applied
        assert_bits(client.pull().params["w"], np.asarray([-1], np.float32))
    else:
        with pytest.raises(GradientNormError, match=r"^gradients: .* norm"):
            client.push(gradient, client.pull())


# Sizes


def _suffix(*sizes: int) -> str:
    return "Stream" if max(sizes) > MAX_UNARY_NBYTES else ""


@pytest.mark.parametrize("wire_dtype", WAYS, ids=str)
@pytest.mark.parametrize(
    "elements",
    [
        MAX_UNARY_NBYTES // 4,
        MAX_UNARY_NBYTES // 4 + 1,
        MAX_UNARY_NBYTES // 2,
        MAX_UNARY_NBYTES // 2 + 1,
    ],
)
def test_what_travels_decides_whether_it_goes_in_pieces(
    start_server: Any,
    connect: Any,
    start_relay: Any,
    elements: int,
    wire_dtype: str | None,
) -> None:
    """The largest message, and one element more, of either type and either way."""
    narrow_pull, narrow_push = WAYS[wire_dtype]
    pulled_nbytes = elements * (2 if narrow_pull else 4)
    pushed_nbytes = elements * (2 if narrow_push else 4)
    relay = start_relay(start_server().address)
    client = connect(relay.address, wire_dtype=wire_dtype)
    values = thirds(elements)
    client.initialize({"w": values})
    calls = len(relay.calls)

    first = client.pull()
    client.push({"w": values}, first)
    _, second = client.exchange({"w": values}, first)

    after = values - rounded(values, narrow_push) - rounded(values, narrow_push)
    assert_bits(first.params["w"], rounded(values, narrow_pull))
    assert_bits(second.params["w"], rounded(after, narrow_pull))
    assert relay.methods()[calls:] == [
        "Pull" + _suffix(pulled_nbytes),
        "Push" + _suffix(pushed_nbytes),
        "Exchange" + _suffix(pulled_nbytes, pushed_nbytes),
    ]


@pytest.mark.parametrize(("sent", "suffix"), [(500_000, ""), (500_001, "Stream")])
def test_what_top_k_sends_decides_whether_it_goes_in_pieces(
    start_server: Any, connect: Any, start_relay: Any, sent: int, suffix: str
) -> None:
    """Eight bytes an element, of its index and itself: the largest message, or more."""
    relay = start_relay(start_server().address)
    client = connect(relay.address, compression=f"topk:{sent / 2_000_000}")
    gradient = np.arange(2_000_000, dtype=np.float32)
    client.initialize({"w": np.zeros_like(gradient)})

    client.push({"w": gradient}, step_read=0)

    expected = np.where(gradient >= 2_000_000 - sent, -gradient, 0)
    assert relay.methods()[-1] == f"Push{suffix}"
    np.testing.assert_array_equal(client.pull().params["w"], expected)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 1),
        ({"wire_dtype": "bf16"}, 1 / 2),
        ({"compression": "topk:0.01"}, 1 / 50),
        ({"compression": "topk:0.01", "wire_dtype": "bf16"}, 3 / 200),
    ],
    ids=["plain", "bf16", "topk", "both"],
)
def test_what_travels_is_as_much_less_as_was_said(
    start_server: Any,
    connect: Any,
    start_relay: Any,
    settings: dict[str, str],
    share: float,
) -> None:
    """Of the bytes that a relay sees, of which 200 are for the header."""
    relay = start_relay(start_server().address)
    client = connect(relay.address, **settings)
    gradient = thirds(100_000)
    client.initialize({"w": gradient})

    client.push({"w": gradient}, step_read=0)

    (message,) = relay.calls[-1].requests
    assert 0 <= len(message) - share * gradient.nbytes < 200


# The largest elements


def drained(client: Client, like: Arrays, pushes: int) -> Arrays:
    """Push zeros, which only make room for what is kept; return the variables."""
    for _ in range(pushes):
        client.push({name: np.zeros_like(a) for name, a in like.items()}, client.pull())
    return {name: np.asarray(array) for name, array in client.pull().params.items()}


@pytest.mark.parametrize("wire_dtype", [None, "bf16:push"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_that_is_not_sent_comes_later(
    start_server: Any, connect: Any, dtype: Any, wire_dtype: str | None
) -> None:
    """By pushes and exchanges, the largest first, in the end to the last bit."""
    rng = np.random.default_rng(SEED)
    client = connect(
        start_server().address, compression="topk:0.05", wire_dtype=wire_dtype
    )
    zeros = {"w": np.zeros((40, 30), dtype), "b": np.zeros(9, dtype)}
    total = {name: array.astype(np.float64) for name, array in zeros.items()}
    client.initialize(zeros)
    snapshot = client.pull()

    for number in range(6):
        gradients = {
            name: rng.integers(-50, 50, array.shape).astype(dtype)
            for name, array in zeros.items()
        }
        if number % 2:
            client.push(gradients, snapshot)
        else:
            _, snapshot = client.exchange(gradients, snapshot)
        total = {name: total[name] + gradients[name] for name in total}
        if number == 0:
            sent = np.flatnonzero(snapshot.params["w"])
            assert len(sent) == 60
            floor = np.sort(np.abs(gradients["w"]), axis=None)[-60]
            assert (np.abs(gradients["w"].reshape(-1)[sent]) >= floor).all()

    after = drained(client, zeros, 40)
    for name, array in total.items():
        np.testing.assert_array_equal(after[name], -array)


def _like_jax(gradient: Array) -> Any:
    return {"w": jnp.asarray(gradient)}


def _like_body(gradient: Array) -> Any:
    return Body.gather(Layout.of({"w": gradient}), {"w": gradient})


def _like_fortran(gradient: Array) -> Any:
    return {"w": np.asfortranarray(gradient)}


def _like_big_endian(gradient: Array) -> Any:
    return {"w": gradient.astype(">f4")}


@pytest.mark.parametrize(
    "make",
    [_like_jax, _like_body, _like_fortran, _like_big_endian],
    ids=["JAX", "body", "fortran", "big-endian"],
)
@pytest.mark.parametrize(
    "settings",
    [{"wire_dtype": "bf16"}, {"compression": "topk:0.02", "wire_dtype": "bf16"}],
    ids=["bf16", "topk"],
)
def test_gradients_may_come_in_any_form(
    start_server: Any,
    connect: Any,
    make: Callable[[Array], Any],
    settings: dict[str, str],
) -> None:
    """Twice, so that what is kept meets the form too."""
    client = connect(start_server().address, **settings)
    gradient = np.arange(SIZE, dtype=np.float32).reshape(40, 25)
    client.initialize({"w": np.zeros_like(gradient)})
    before = make(gradient)

    for _ in range(2):
        client.push(before, client.pull_body())

    after = np.asarray(client.pull().params["w"])
    np.testing.assert_array_equal(np.asarray(before["w"]), gradient)
    if "compression" in settings:
        expected = np.zeros(SIZE, np.float32)
        # At first its own last twenty, then the twenty before them, twice as large.
        expected[-20:] = -rounded(np.arange(SIZE - 20, SIZE, dtype=np.float32))
        expected[-40:-20] = -2 * np.arange(SIZE - 40, SIZE - 20, dtype=np.float32)
        np.testing.assert_array_equal(after.reshape(-1), rounded(expected))
    else:
        np.testing.assert_array_equal(after, rounded(-2 * rounded(gradient)))


GRADIENT = np.zeros(SIZE, np.float32)
GRADIENT[:30] = np.arange(30, 0, -1)


def _stale(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": 100 * GRADIENT[::-1]}, step_read=0)


def _stale_exchange(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    old = Snapshot(snapshot.params, 0, snapshot.generation)
    return client.exchange({"w": 100 * GRADIENT[::-1]}, old)[0]


def _stale_nan(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": np.full_like(GRADIENT, np.nan)}, step_read=0)


def _nan(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": np.full_like(GRADIENT, np.nan)}, snapshot)


def _longer(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": np.ones(SIZE + 1, np.float32)}, snapshot)


def _wider(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": np.ones(SIZE)}, snapshot)


def _integers(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": np.ones(SIZE, np.int32)}, snapshot)


def _misnamed(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"v": GRADIENT, "w": GRADIENT}, snapshot)


def _elsewhere(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": GRADIENT}, Snapshot(None, 1, "elsewhere"))


def _too_large(client: Client, snapshot: Snapshot[Any]) -> Verdict:
    return client.push({"w": 1000 * GRADIENT}, snapshot)


@pytest.mark.parametrize(
    ("fail", "outcome"),
    [
        (_stale, None),
        (_stale_exchange, None),
        (_stale_nan, None),
        (_nan, (NonFiniteError, r"^w: expected finite gradients, got nan")),
        (_longer, (VariableMismatchError, r"^w: expected \(1000,\) float32, got \(1")),
        (_wider, (VariableMismatchError, r"^w: expected .* got \(1000,\) float64")),
        (_integers, (VariableMismatchError, r"^w: expected .* got \(1000,\) int32")),
        (_misnamed, (VariableMismatchError, r"^v: expected one of w, got")),
        (_elsewhere, (GenerationError, r"^generation: expected .* got elsewhere")),
        (_too_large, (GradientNormError, r"^gradients: ")),
    ],
)
def test_a_push_that_is_not_applied_leaves_what_is_kept(
    start_server: Any,
    connect: Any,
    fail: Callable[[Client, Snapshot[Any]], Verdict],
    outcome: tuple[type[ParameterServerError], str] | None,
) -> None:
    """Neither is more lost than its own gradient, nor any of that added later.

    Ten of the thirty elements have been sent before; without a limit broken, the
    twenty others come as if nothing had been between.
    """
    address = start_server(max_staleness=0, max_grad_norm=2000.0).address
    client = connect(address, compression="topk:0.01")
    client.initialize({"w": np.zeros(SIZE, np.float32)})
    client.push({"w": GRADIENT}, client.pull())
    snapshot = client.pull()

    if outcome is None:
        assert fail(client, snapshot).reason == Reason.STALE
    else:
        with pytest.raises(outcome[0], match=outcome[1]):
            fail(client, snapshot)

    after = drained(client, {"w": GRADIENT}, 2)
    np.testing.assert_array_equal(after["w"], -GRADIENT)


def test_a_dropped_batch_that_is_tried_again_counts_once(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """The rival's push is of zeros, so the second try computes just the same."""
    address = start_server(max_staleness=0).address
    relay = start_relay(address)
    client = connect(relay.address, compression="topk:0.01")
    rival = connect(address)
    params = {"w": np.zeros(SIZE, np.float32)}
    client.initialize(params)
    relay.before["Push"] = lambda: rival.push(params, rival.pull())

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(params["w"] * batch)

    verdict, _ = client.minimize(loss, GRADIENT, like=params, on_drop="retry")

    assert verdict == Verdict(applied=True, staleness=0, step=2)
    after = drained(client, params, 2)
    np.testing.assert_array_equal(after["w"], -GRADIENT)


@pytest.mark.parametrize("method", ["Push", "Exchange"])
@pytest.mark.parametrize("what", ["before", "after"], ids=["request", "reply"])
@pytest.mark.parametrize("wire_dtype", [None, "bf16"])
def test_a_push_that_is_lost_on_the_way_is_repeated_as_it_was(
    start_server: Any,
    connect: Any,
    start_relay: Any,
    wire_dtype: str | None,
    what: str,
    method: str,
) -> None:
    """Byte for byte; it is applied once, and what it has not sent is kept once."""
    relay = start_relay(start_server(max_staleness=0).address)
    client = connect(relay.address, compression="topk:0.01", wire_dtype=wire_dtype)
    client.initialize({"w": np.zeros(SIZE, np.float32)})
    snapshot = client.pull()
    getattr(relay, what)[method] = relay.lose

    if method == "Push":
        verdict = client.push({"w": GRADIENT}, snapshot)
    else:
        verdict, _ = client.exchange({"w": GRADIENT}, snapshot)

    lost, again = relay.calls[-2:]
    assert verdict == Verdict(
        applied=True, staleness=0, step=1, duplicate=what == "after"
    )
    assert (lost.method, again.method) == (method, method)
    assert lost.requests in ([], again.requests)  # A lost request is never read.
    after = drained(client, {"w": GRADIENT}, 2)
    np.testing.assert_array_equal(after["w"], -GRADIENT)


def test_of_another_generation_nothing_that_is_kept_is_sent(
    start_server: Any, connect: Any
) -> None:
    """The server has restarted, with other variables: old gradients say nothing."""
    first = start_server()
    client = connect(first.address, compression="topk:0.01")
    client.initialize({"w": np.zeros(SIZE, np.float32)})
    client.push({"w": GRADIENT}, client.pull())
    first.stop()
    start_server(port=int(first.address.rpartition(":")[2]))
    client.initialize({"w": np.zeros(SIZE, np.float32)})

    client.push({"w": GRADIENT}, client.pull())

    expected = np.where(GRADIENT > 20, -GRADIENT, 0)
    np.testing.assert_array_equal(client.pull().params["w"], expected)


def test_threads_that_share_a_client_keep_what_all_of_them_leave(
    start_server: Any, connect: Any, in_thread: Any
) -> None:
    """One push at a time chooses, sends and keeps: no sum misses another's part."""
    client = connect(start_server().address, compression="topk:0.01")
    client.initialize({"w": np.zeros(SIZE, np.float32)})
    together = threading.Barrier(4)

    def push_five_times() -> list[Verdict]:
        together.wait(WAIT_S)
        return [client.push({"w": GRADIENT}, step_read=0) for _ in range(5)]

    pushing = [in_thread(push_five_times) for _ in range(4)]
    verdicts = [verdict for each in pushing for verdict in each.result(WAIT_S)]

    assert all(verdict.applied for verdict in verdicts)
    after = drained(client, {"w": GRADIENT}, 3)
    np.testing.assert_array_equal(after["w"], -20 * GRADIENT)


def test_the_bound_on_the_norm_is_of_the_largest_elements(
    start_server: Any, connect: Any
) -> None:
    """All of the gradient is over it; what travels is not, nor what comes later."""
    client = connect(start_server(max_grad_norm=90.0).address, compression="topk:0.01")
    client.initialize({"w": np.zeros(SIZE, np.float32)})
    assert np.linalg.norm(GRADIENT) > 90 > np.linalg.norm(GRADIENT[:10])

    client.push({"w": GRADIENT}, client.pull())

    after = drained(client, {"w": GRADIENT}, 2)
    np.testing.assert_array_equal(after["w"], -GRADIENT)


def test_a_rule_sees_zeros_in_place_of_what_is_not_sent(
    start_server: Any, connect: Any
) -> None:
    """Adam's step of an element that did not come is none at first."""
    server = start_server(optax.adam(0.5))
    client = connect(server.address, compression="topk:0.01")
    client.initialize({"w": np.zeros(SIZE, np.float32)})

    client.push({"w": GRADIENT}, client.pull())

    moved = np.flatnonzero(client.pull().params["w"])
    assert moved.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wire_dtype": "f16"}, "^wire_dtype: expected one of bf16, .* got 'f16'$"),
        ({"compression": "topk:2"}, "^compression: expected topk:FR.* got 'topk:2'$"),
    ],
    ids=["wire_dtype", "compression"],
)
def test_options_are_checked_before_anything_is_sent(
    start_server: Any, settings: dict[str, str], message: str
) -> None:
    """Nobody joins."""
    server = start_server()

    with pytest.raises(ValueError, match=message):
        psworker.connect(server.address, **settings)  # type: ignore[arg-type]

    assert server.status().workers == ()
