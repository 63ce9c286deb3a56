"""The worker's front door, against a real server."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import psserver
import psworker
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import MAX_UNARY_NBYTES
from pswire.errors import (
    GenerationError,
    NonFiniteError,
    NotInitializedError,
    ParameterServerError,
    SessionSupersededError,
    TooLargeError,
    VariableMismatchError,
)
from pswire.values import Reason, Snapshot, Verdict
from psworker import Client

WAIT_S = 20.0

PARAMS = {"w": np.asarray([1.0, 2.0], np.float32), "b": np.float32(0.5)}
ONES = {"w": np.ones(2, np.float32), "b": np.float32(1.0)}


def squares(params: Any, batch: Any) -> Any:
    """A loss whose gradient at `w` is `w - batch`."""
    return jnp.sum((params["w"] - batch) ** 2) / 2


def test_the_example_of_the_surface_runs() -> None:
    """Initialize, pull, differentiate, push; then the same in one call."""
    params, batch = {"w": jnp.asarray([2.0, 4.0])}, jnp.zeros(2)

    with (
        psserver.Server(rule=optax.sgd(0.5), max_staleness=8, port=0) as server,
        psworker.connect(server.address) as client,
    ):
        client.initialize(params)
        snapshot = client.pull(like=params)
        loss, grads = jax.value_and_grad(squares)(snapshot.params, batch)
        first = client.push(grads, snapshot)
        second, loss_then = client.minimize(squares, batch, like=params)
        trained = client.pull(like=params)

    assert (first, loss) == (Verdict(applied=True, staleness=0, step=1), 10.0)
    assert (second, loss_then) == (Verdict(applied=True, staleness=0, step=2), 2.5)
    assert trained.step == 2
    np.testing.assert_array_equal(trained.params["w"], [0.5, 1.0])


def test_the_first_workers_variables_are_taken(start_server: Any, connect: Any) -> None:
    """Later ones learn that they were late, and pull the same as everybody."""
    address = start_server().address
    first, second = connect(address), connect(address)

    taken = [first.initialize(PARAMS), second.initialize(ONES)]
    repeated = first.initialize(ONES)

    assert taken == [True, False]
    assert repeated is True
    for client in (first, second):
        np.testing.assert_array_equal(client.pull().params["w"], PARAMS["w"])


def test_a_pull_takes_the_form_of_its_template(start_server: Any, connect: Any) -> None:
    """JAX arrays, numpy arrays, bare structs, or just names if there is none."""
    client = connect(start_server().address)
    like = {"layers": [{"w": jnp.ones((2, 3))}, (jnp.zeros(2), None)]}
    client.initialize(like)

    forms = [
        client.pull(like=like),
        client.pull(like=jax.eval_shape(lambda: like)),
        client.pull(like=jax.tree.map(np.asarray, like)),
    ]
    named = client.pull()

    assert {jax.tree.structure(each.params) for each in forms} == {
        jax.tree.structure(like)
    }
    kinds = [type(jax.tree.leaves(each.params)[0]) for each in forms]
    assert kinds == [type(jnp.ones(1)), type(jnp.ones(1)), np.ndarray]
    assert {name: leaf.shape for name, leaf in named.params.items()} == {
        "layers/0/w": (2, 3),
        "layers/1/0": (2,),
    }


def test_a_pull_before_anybody_has_initialized_says_so(
    start_server: Any, connect: Any
) -> None:
    """It does not wait: who has variables to offer knows what to do."""
    client = connect(start_server().address)

    with pytest.raises(NotInitializedError, match=r"^variables: expected to be init"):
        client.pull(like=PARAMS)


def test_a_snapshot_that_is_known_is_not_sent_again(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """The reply has no body, and the client returns the very arrays it holds."""
    relay = start_relay(start_server().address)
    client = connect(relay.address)
    client.initialize(PARAMS)

    first, second = client.pull(), client.pull()

    replies = [pb.PullReply.FromString(b"".join(c.replies)) for c in relay.calls[-2:]]
    assert [reply.header.not_modified for reply in replies] == [False, True]
    assert [len(reply.data) for reply in replies] == [72, 0]
    assert np.shares_memory(second.params["w"], first.params["w"])
    assert (second.step, second.generation) == (first.step, first.generation)


def test_a_snapshot_that_a_push_has_replaced_is_sent(
    start_server: Any, connect: Any
) -> None:
    """Also if the push was another worker's."""
    address = start_server().address
    client, other = connect(address), connect(address)
    client.initialize(PARAMS)
    before = client.pull(like=PARAMS)

    other.push(ONES, other.pull())
    after = client.pull(like=PARAMS)

    assert (before.step, after.step) == (0, 1)
    np.testing.assert_array_equal(after.params["w"], [0.0, 1.0])


def test_a_pull_never_returns_less_than_the_server_answered(
    start_server: Any, connect: Any, start_relay: Any, in_thread: Any
) -> None:
    """A slow answer to one thread must not take another thread's step back.

    The first pull's answer, of step 0, is held up. The third is told that the
    snapshot of step 1, which the second has brought, is still the newest.
    """
    relay = start_relay(start_server().address)
    client, other = connect(relay.address), connect(relay.address)
    other.initialize(PARAMS)
    client.initialize(PARAMS)
    held = [threading.Event(), threading.Event()]
    free = [threading.Event(), threading.Event()]

    def hold(index: int) -> Callable[[], None]:
        def until_free() -> None:
            held[index].set()
            assert free[index].wait(WAIT_S)

        return until_free

    relay.after["Pull"] = hold(0)
    first = in_thread(client.pull)
    assert held[0].wait(WAIT_S)
    other.push(ONES, step_read=0)
    second = client.pull()
    relay.after["Pull"] = hold(1)
    third = in_thread(client.pull)
    assert held[1].wait(WAIT_S)
    free[0].set()
    first.result(WAIT_S)
    free[1].set()

    assert second.step == 1
    assert third.result(WAIT_S).step == 1


def test_a_slow_answer_does_not_make_the_client_forget_a_later_one(
    start_server: Any, connect: Any, start_relay: Any, in_thread: Any
) -> None:
    """The snapshot of step 1 is known, so it is not sent again."""
    relay = start_relay(start_server().address)
    client, other = connect(relay.address), connect(relay.address)
    other.initialize(PARAMS)
    client.initialize(PARAMS)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert free.wait(WAIT_S)

    relay.after["Pull"] = hold
    slow = in_thread(client.pull)
    assert held.wait(WAIT_S)
    other.push(ONES, step_read=0)
    client.pull()
    free.set()
    slow.result(WAIT_S)
    again = client.pull()

    reply = pb.PullReply.FromString(b"".join(relay.calls[-1].replies))
    assert reply.header.not_modified
    assert (slow.result().step, again.step) == (0, 1)


def test_threads_that_find_a_new_server_join_it_once(
    start_server: Any, connect: Any, start_relay: Any, in_thread: Any
) -> None:
    """The second waits for the first: a join between would undo what that has learnt.

    The push is told that the session is unknown while the pull is about to join.
    """
    server = start_server()
    relay = start_relay(server.address)
    client = connect(relay.address)
    client.initialize(PARAMS)
    snapshot = client.pull()
    server.stop()
    start_server(port=int(server.address.rpartition(":")[2]))
    calls_before = len(relay.calls)
    joining, pushing, free = (threading.Event() for _ in range(3))

    def hold() -> None:
        joining.set()
        assert free.wait(WAIT_S)

    relay.before |= {"Join": hold, "Push": pushing.set}
    pull = in_thread(client.pull)
    assert joining.wait(WAIT_S)
    push = in_thread(client.push, ONES, snapshot)
    assert pushing.wait(WAIT_S)
    assert relay.calls[-1].ended.wait(WAIT_S)
    free.set()

    assert isinstance(pull.exception(WAIT_S), NotInitializedError)
    assert isinstance(push.exception(WAIT_S), NotInitializedError | GenerationError)
    assert relay.methods()[calls_before:].count("Join") == 1


def test_a_push_may_name_the_step_by_itself(start_server: Any, connect: Any) -> None:
    """The generation is then that of the last pull, or of one made for the purpose."""
    client = connect(start_server(max_staleness=1).address)
    client.initialize(PARAMS)

    verdicts = [client.push(ONES, step_read=0) for _ in range(3)]

    assert verdicts == [
        Verdict(applied=True, staleness=0, step=1),
        Verdict(applied=True, staleness=1, step=2),
        Verdict(applied=False, staleness=2, step=2, reason=Reason.STALE),
    ]


def test_the_snapshot_says_which_history_the_step_belongs_to(
    start_server: Any, connect: Any
) -> None:
    """The step alone would do, but the generation beside it is another server's."""
    client = connect(start_server().address)
    client.initialize(PARAMS)
    elsewhere = Snapshot(PARAMS, step=0, generation="elsewhere")

    with pytest.raises(GenerationError, match=r"^generation: .* got elsewhere"):
        client.push(ONES, elsewhere)

    assert client.push(ONES, client.pull()).applied


@pytest.mark.parametrize("both", [True, False], ids=["both", "neither"])
def test_a_push_takes_a_snapshot_or_a_step(
    start_server: Any, connect: Any, both: bool
) -> None:
    """Two would have to agree, and none would leave the staleness to be guessed."""
    client = connect(start_server().address)
    client.initialize(PARAMS)
    origin = {"snapshot": client.pull(), "step_read": 0} if both else {}

    with pytest.raises(
        ValueError, match=r"^push: expected either a snapshot or step_r"
    ):
        client.push(ONES, **origin)

    assert client.status().counts.received == 0


def test_gradients_may_come_by_name_in_any_order(
    start_server: Any, connect: Any
) -> None:
    """The names tell which is which, even where the shapes would not."""
    client = connect(start_server().address)
    client.initialize({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})

    client.push(
        {"b": np.full(2, 2, np.float32), "a": np.full(2, 1, np.float32)},
        client.pull(),
    )

    arrays = client.pull().params
    np.testing.assert_array_equal(arrays["a"], [-1.0, -1.0])
    np.testing.assert_array_equal(arrays["b"], [-2.0, -2.0])


def test_who_came_before_the_variables_learns_their_order(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """A full push tells no layout, though the gradients come in another order."""
    address = start_server().address
    relay = start_relay(address)
    early, other = connect(relay.address), connect(address)
    other.initialize(PARAMS)

    verdict = early.push(dict(reversed(ONES.items())), step_read=0)

    assert verdict.applied
    assert relay.methods() == ["Join", "Join", "Push"]
    push = pb.PushRequest.FromString(b"".join(relay.calls[-1].requests))
    assert not push.header.HasField("layout")
    assert early.pull().params["w"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_numpy_scalar_keeps_its_type(
    start_server: Any, connect: Any, dtype: Any
) -> None:
    """`np.float64` is also a Python float, which JAX would make a float32."""
    client = connect(start_server().address)
    third = dtype(1) / dtype(3)

    client.initialize({"w": third})

    pulled = client.pull().params["w"]
    assert (pulled.dtype, pulled) == (dtype, third)


def test_without_a_template_the_loss_takes_arrays_by_name(
    start_server: Any, connect: Any
) -> None:
    """As a pull does that has none."""
    client = connect(start_server().address)
    client.initialize({"layers": [{"w": jnp.asarray([3.0, 5.0])}]})

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(params["layers/0/w"] * batch)

    _, value = client.minimize(loss, jnp.float32(2), like=None)

    assert value == 16.0
    np.testing.assert_array_equal(client.pull().params["layers/0/w"], [1.0, 3.0])


def test_integers_are_kept_and_never_pushed(start_server: Any, connect: Any) -> None:
    """Their gradients are float0, which is left out on the way."""
    client = connect(start_server().address)
    params = {"w": jnp.asarray([3.0, 5.0]), "scale": jnp.int32(2)}
    client.initialize(params)

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(params["w"] * params["scale"]) + batch

    verdict, _ = client.minimize(loss, jnp.float32(0), like=params)

    after = client.pull(like=params).params
    assert verdict.applied
    np.testing.assert_array_equal(after["w"], [1.0, 3.0])
    assert (after["scale"], after["scale"].dtype) == (2, jnp.int32)


def test_an_exchange_pushes_then_pulls(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """One call brings the verdict, and the variables after it in the same form."""
    relay = start_relay(start_server().address)
    client = connect(relay.address)
    client.initialize(PARAMS)
    snapshot = client.pull(like=PARAMS)
    calls_before = len(relay.calls)

    verdict, new = client.exchange(ONES, snapshot, value=1.0)

    assert verdict == Verdict(applied=True, staleness=0, step=1)
    assert (new.step, new.generation) == (1, snapshot.generation)
    np.testing.assert_array_equal(new.params["w"], [0.0, 1.0])
    assert relay.methods()[calls_before:] == ["Exchange"]


def test_an_exchange_that_changes_nothing_moves_no_body(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """A limit below 0 drops all, so the snapshot that went in comes back."""
    relay = start_relay(start_server(max_staleness=-1).address)
    client = connect(relay.address)
    client.initialize(PARAMS)
    snapshot = client.pull(like=PARAMS)

    verdict, new = client.exchange(ONES, snapshot)

    reply = pb.ExchangeReply.FromString(b"".join(relay.calls[-1].replies))
    assert (verdict.applied, verdict.reason) == (False, Reason.STALE)
    assert new is snapshot
    assert reply.pull.header.not_modified
    assert reply.pull.data == b""


def test_an_exchange_brings_what_others_have_done_meanwhile(
    start_server: Any, connect: Any
) -> None:
    """A dropped push too: the worker goes on from fresh variables."""
    address = start_server(max_staleness=0).address
    client, other = connect(address), connect(address)
    client.initialize(PARAMS)
    snapshot = client.pull(like=PARAMS)
    other.push(ONES, step_read=0)

    verdict, new = client.exchange(ONES, snapshot)

    assert verdict == Verdict(applied=False, staleness=1, step=1, reason=Reason.STALE)
    assert new.step == 1
    np.testing.assert_array_equal(new.params["w"], [0.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "pushes"),
    [
        ({}, 1),
        ({"on_drop": "skip", "max_retries": 9}, 1),
        ({"on_drop": "retry"}, 4),
        ({"on_drop": "retry", "max_retries": 1}, 2),
        ({"on_drop": "retry", "max_retries": 0}, 1),
    ],
    ids=["default", "skip", "retry", "retry once", "retry never"],
)
def test_what_minimize_does_about_drops_is_bounded(
    start_server: Any, connect: Any, settings: dict[str, Any], pushes: int
) -> None:
    """This server drops all, so every try is used; the last verdict is returned."""
    client = connect(start_server(max_staleness=-1).address)
    client.initialize(PARAMS)

    verdict, loss = client.minimize(squares, PARAMS["w"], like=PARAMS, **settings)

    assert verdict == Verdict(applied=False, staleness=0, step=0, reason=Reason.STALE)
    assert loss == 0.0
    assert client.status().counts.dropped == pushes


def test_a_retry_starts_from_fresh_variables(
    start_server: Any, connect: Any, start_relay: Any
) -> None:
    """A rival's push, slipped in before the first try, is in what the second reads."""
    address = start_server(max_staleness=0).address
    relay = start_relay(address)
    client, rival = connect(relay.address), connect(address)
    client.initialize(PARAMS)
    relay.before["Push"] = lambda: rival.push(ONES, step_read=0)

    verdict, loss = client.minimize(
        squares, np.zeros(2, np.float32), like=PARAMS, on_drop="retry"
    )

    assert verdict == Verdict(applied=True, staleness=0, step=2)
    assert loss == 0.5  # Of (0, 1), which the rival has made of (1, 2).
    assert client.status().counts.dropped == 1


def test_minimize_passes_the_key_and_the_auxiliary_result(
    start_server: Any, connect: Any
) -> None:
    """The loss is linear in w with random factors, which are then in the update."""
    client = connect(start_server().address)
    params = {"w": jnp.zeros(3)}
    client.initialize(params)
    key = jax.random.key(3)

    def loss(params: Any, batch: Any, rng: Any) -> Any:
        noise = jax.random.normal(rng, (3,))
        return jnp.sum(params["w"] * noise), {"noise": noise, "batch": batch}

    verdict, (value, aux) = client.minimize(loss, 7, like=params, rng=key, has_aux=True)

    noise = np.asarray(jax.random.normal(key, (3,)))
    assert (verdict.applied, value, aux["batch"]) == (True, 0.0, 7)
    np.testing.assert_array_equal(aux["noise"], noise)
    np.testing.assert_array_equal(client.pull().params["w"], -noise)


def test_the_loss_goes_with_the_push(start_server: Any, connect: Any) -> None:
    """A rule that needs it gets it from `push`, `exchange` and `minimize` alike."""
    rule = optax.chain(
        optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)
    )
    client = connect(start_server(rule).address)
    client.initialize(PARAMS)
    snapshot = client.pull(like=PARAMS)

    pushed = client.push(ONES, snapshot, value=3.0)
    exchanged, _ = client.exchange(ONES, snapshot, value=2.0)
    minimized, _ = client.minimize(squares, PARAMS["w"], like=PARAMS)

    assert [v.step for v in (pushed, exchanged, minimized)] == [1, 2, 3]
    with pytest.raises(ParameterServerError, match=r"^value: expected the loss"):
        client.push(ONES, snapshot)


@pytest.mark.parametrize("what", ["before", "after"], ids=["request", "reply"])
@pytest.mark.parametrize("method", ["Push", "Exchange"])
def test_a_push_that_is_lost_on_the_way_is_applied_once(
    start_server: Any, connect: Any, start_relay: Any, what: str, method: str
) -> None:
    """The client repeats it under the same number; limit 0 shows the order of checks.

    If only the reply was lost, the push has been applied: it is its own first
    verdict that comes back, not that of a push one step too old.
    """
    relay = start_relay(start_server(max_staleness=0).address)
    client = connect(relay.address)
    client.initialize(PARAMS)
    snapshot = client.pull(like=PARAMS)
    getattr(relay, what)[method] = relay.lose

    if method == "Push":
        verdict = client.push(ONES, snapshot)
    else:
        verdict, _ = client.exchange(ONES, snapshot)

    assert relay.methods()[-2:] == [method, method]
    assert verdict == Verdict(
        applied=True, staleness=0, step=1, duplicate=what == "after"
    )
    np.testing.assert_array_equal(client.pull().params["w"], [0.0, 1.0])


@pytest.mark.parametrize("lost", ["before", "after"], ids=["request", "reply"])
def test_an_initialize_whose_reply_is_lost_is_still_the_first(
    start_server: Any, connect: Any, start_relay: Any, lost: str
) -> None:
    """Its repetition must not tell this worker that another one was faster."""
    relay = start_relay(start_server().address)
    client = connect(relay.address)
    getattr(relay, lost)["Initialize"] = relay.lose

    initialized = client.initialize(PARAMS)

    assert initialized is True
    assert relay.methods().count("Initialize") == 2


@pytest.mark.parametrize(
    ("elements", "suffix"),
    [(MAX_UNARY_NBYTES // 4, ""), (MAX_UNARY_NBYTES // 4 + 1, "Stream")],
    ids=["the largest message", "one element more"],
)
def test_a_model_over_one_message_goes_in_pieces(
    start_server: Any, connect: Any, start_relay: Any, elements: int, suffix: str
) -> None:
    """Every bit arrives either way, in every direction."""
    relay = start_relay(start_server().address)
    client = connect(relay.address)
    rng = np.random.default_rng(0)
    values, gradient = rng.standard_normal((2, elements), np.float32)

    client.initialize({"w": values})
    pulled = client.pull()
    client.push({"w": gradient}, pulled)
    _, exchanged = client.exchange({"w": gradient}, client.pull())

    np.testing.assert_array_equal(pulled.params["w"], values)
    np.testing.assert_array_equal(exchanged.params["w"], values - gradient - gradient)
    moved = [name for name in relay.methods() if name != "Join"]
    assert moved == [
        f"{name}{suffix}" for name in ("Initialize", "Pull", "Push", "Pull", "Exchange")
    ]


def test_a_model_that_is_too_large_is_refused_before_it_is_sent(
    start_server: Any,
    connect: Any,
    start_relay: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server said its limit, here 71 bytes, when the client joined."""
    monkeypatch.setattr("psserver.server._memory_nbytes", lambda: 71)
    relay = start_relay(start_server().address)
    client = connect(relay.address)

    with pytest.raises(TooLargeError, match=r"^variables: .* 71 bytes, .* got 72$"):
        client.initialize(PARAMS)

    assert relay.methods() == ["Join"]


def test_names_made_for_clients_are_all_different(
    start_server: Any, connect: Any
) -> None:
    """So two clients of one process are two workers, and neither ends the other."""
    address = start_server().address
    first, second = connect(address), connect(address)
    first.initialize(PARAMS)

    verdicts = [client.push(ONES, step_read=0) for client in (first, second, first)]

    assert [verdict.step for verdict in verdicts] == [1, 2, 3]
    rows = {row.name: row.counts.applied for row in first.status().workers}
    assert rows == {first.name: 2, second.name: 1}


def test_a_client_whose_name_is_taken_over_is_told_to_stop(
    start_server: Any, connect: Any
) -> None:
    """The newer process goes on, and the two share one row of counters."""
    address = start_server().address
    old = connect(address, name="left")
    old.initialize(PARAMS)
    old.push(ONES, step_read=0)

    new = connect(address, name="left")

    with pytest.raises(SessionSupersededError, match=r"^session: .* worker left"):
        old.push(ONES, step_read=0)
    with pytest.raises(SessionSupersededError, match=r"^session: .* worker left"):
        old.exchange(ONES, new.pull())
    assert new.push(ONES, step_read=1).applied
    rows = {row.name: row.counts.applied for row in new.status().workers}
    assert rows == {"left": 2}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": {"w": "text"}}, "a/w: expected an array, got str"),
        ({"a": [np.ones(1, np.complex64)]}, "a/0: expected one of float16, .*complex"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "a/b: expected one leaf, got t"),
        ({"w": np.ones(1), "key": jax.random.key(0)}, "key: expected an array, got P"),
        ({"n": np.ones(2, np.int32)}, "variables: .* a floating-point type, got none"),
    ],
    ids=["text", "complex", "two of one name", "random key", "nothing to train"],
)
def test_variables_that_cannot_travel_are_named(
    start_server: Any, connect: Any, params: Any, message: str
) -> None:
    """Nothing is set, so good ones may come afterwards."""
    client = connect(start_server().address)

    with pytest.raises(VariableMismatchError, match=f"^{message}"):
        client.initialize(params)

    assert client.initialize(PARAMS)


@pytest.mark.parametrize(
    ("gradients", "kind", "message"),
    [
        (
            {**ONES, "w": np.ones(3, np.float32)},
            VariableMismatchError,
            r"w: expected \(2,\) float32, got \(3,\) float32",
        ),
        (
            {**ONES, "b": np.asarray(1.0)},
            VariableMismatchError,
            r"b: expected \(\) float32, got \(\) float64",
        ),
        ({**ONES, "v": ONES["w"]}, VariableMismatchError, "v: expected one of"),
        (
            {**ONES, "w": np.asarray([0, np.nan], np.float32)},
            NonFiniteError,
            r"w: expected finite gradients, got nan at \(1,\)",
        ),
        (
            {**ONES, "b": np.float32(-np.inf)},
            NonFiniteError,
            r"b: expected finite gradients, got -inf at \(\)",
        ),
    ],
    ids=["shape", "dtype", "one more", "NaN", "infinity"],
)
def test_gradients_that_do_not_fit_are_named_and_change_nothing(
    start_server: Any,
    connect: Any,
    gradients: Any,
    kind: type[ParameterServerError],
    message: str,
) -> None:
    """In a push or in an exchange; the client can push again at once."""
    client = connect(start_server().address)
    client.initialize(PARAMS)
    snapshot = client.pull()

    with pytest.raises(kind, match=f"^{message}"):
        client.push(gradients, snapshot)
    with pytest.raises(kind, match=f"^{message}"):
        client.exchange(gradients, snapshot)

    after = client.pull()
    assert after.step == 0
    assert np.shares_memory(after.params["w"], snapshot.params["w"])
    assert client.push(ONES, snapshot).applied


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": PARAMS["w"]}, "b: expected one of w, got"),
        ({**PARAMS, "v": ONES["w"]}, r"v: expected \(2,\) float32, got none"),
        ({**PARAMS, "w": np.ones(3, np.float32)}, r"w: expected \(3,\) float32, got"),
    ],
    ids=["one less", "one more", "shape"],
)
def test_a_template_that_does_not_fit_is_named(
    start_server: Any, connect: Any, like: Any, message: str
) -> None:
    """A pull of the right form works afterwards, though nothing new is sent."""
    client = connect(start_server().address)
    client.initialize(PARAMS)

    with pytest.raises(VariableMismatchError, match=f"^{message}"):
        client.pull(like=like)

    np.testing.assert_array_equal(client.pull(like=PARAMS).params["w"], PARAMS["w"])


def test_nan_gradients_of_a_loss_reach_the_caller_by_name(
    start_server: Any, connect: Any
) -> None:
    """The square root's slope at 0 is infinite, times 0 is NaN; the model is safe."""
    client = connect(start_server().address)
    params = {"a": jnp.ones(1), "w": jnp.zeros(2)}
    client.initialize(params)

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(jnp.sqrt(params["w"] * 0)) + params["a"][0] * batch

    with pytest.raises(NonFiniteError, match=r"^w: expected finite gradients, got nan"):
        client.minimize(loss, 1.0, like=params)

    assert client.pull().step == 0


def test_threads_that_share_a_client_push_one_after_another(
    start_server: Any, connect: Any, in_thread: Any
) -> None:
    """Every push has a number of its own, so none is taken for another's retry."""
    client: Client = connect(start_server().address)
    client.initialize(PARAMS)
    together = threading.Barrier(8)

    def push_five_times() -> list[Verdict]:
        together.wait(WAIT_S)
        return [client.push(ONES, step_read=0) for _ in range(5)]

    pushing = [in_thread(push_five_times) for _ in range(8)]
    verdicts = [verdict for each in pushing for verdict in each.result(WAIT_S)]

    assert sorted(verdict.step for verdict in verdicts) == list(range(1, 41))
    assert not any(verdict.duplicate for verdict in verdicts)


def test_the_status_is_the_servers_own(start_server: Any, connect: Any) -> None:
    """The worker sees what the operator sees."""
    server = start_server(max_staleness=0)
    client = connect(server.address, name="me")
    client.initialize(PARAMS)
    client.push(ONES, step_read=0)
    client.push(ONES, step_read=0)

    status = client.status()

    assert (status.step, status.generation) == (1, client.pull().generation)
    assert status.counts == server.status().counts
    assert (status.counts.applied, status.counts.dropped) == (1, 1)
    assert [row.name for row in status.workers] == ["me"]
