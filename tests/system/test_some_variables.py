"""Pushes of some variables, from a worker's call to what everybody pulls."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event
from typing import Any

import jax
import numpy as np
import optax
import pytest

import psserver
import psworker
from pswire.errors import GradientNormError, NonFiniteError
from pswire.values import Reason, Snapshot, Verdict

StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]

TIMEOUT_S = 30.0
VARIABLES = {
    "b": np.ones((), np.float32),
    "count": np.arange(3),
    "w": np.ones((30, 5), np.float32),
}
W = {"w": np.full((30, 5), 2.0, np.float32)}
B = {"b": np.asarray(2.0, np.float32)}


@pytest.mark.parametrize(
    "form",
    [
        *({}, {"wire_dtype": "bf16"}, {"compression": "topk:0.01"}),
        {"wire_dtype": "bf16", "compression": "topk:0.01"},
    ],
    ids=["plain", "bf16", "top-k", "both"],
)
def test_a_push_of_some_variables_changes_them_alone(
    start_server: StartServer, connect: Connect, form: dict[str, str]
) -> None:
    """By the rules for any push: each is a step, and the limit is the same."""
    client = connect(start_server(optax.sgd(0.5), max_staleness=1).address, **form)
    client.initialize(VARIABLES)
    first = client.pull()

    verdicts = [client.push(gradients, first) for gradients in (W, B, W)]

    assert verdicts == [
        Verdict(applied=True, staleness=0, step=1),
        Verdict(applied=True, staleness=1, step=2),
        Verdict(applied=False, staleness=2, step=2, reason=Reason.STALE),
    ]
    variables = client.pull().params
    sent = 2 if "compression" in form else 150  # A hundredth of them, rounded up.
    assert np.count_nonzero(variables["w"] == 0) == sent
    assert np.count_nonzero(variables["w"] == 1) == 150 - sent
    assert variables["b"] == 0
    assert variables["count"].tolist() == [0, 1, 2]


def _push_b(client: psworker.Client, how: str, first: Snapshot[Any]) -> Verdict | None:
    """Push gradients of ones for `b` alone, in one of the ways that there are."""
    ones = np.ones((), np.float32)
    match how:
        case "pairs":
            return client.push(iter([(None, "w"), (ones, "b")]), first)
        case "exchange":
            return client.exchange({"b": ones}, first)[0]
        case "minimize":
            return client.minimize(_sum, 1.0, like=VARIABLES, variables="b")[0]
        case "mask":
            mask = {"b": True, "count": False, "w": False}
            gradients = client.compute_gradients(
                _sum, 1.0, like=VARIABLES, variables=mask
            )
            return client.push(gradients)
    with client.accumulate(2) as sums:
        sums.add({"b": ones}, first)
        return sums.add({"b": ones}, first)


def _sum(params: Any, batch: float) -> Any:
    return batch * (params["b"] + params["w"].sum())


@pytest.mark.parametrize("how", ["pairs", "exchange", "minimize", "mask", "accumulate"])
def test_every_way_to_push_can_leave_variables_out(
    start_server: StartServer, connect: Connect, how: str
) -> None:
    """They keep their value, though the rule would decay them, and their momentum."""
    rule = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0, momentum=0.5))
    client = connect(start_server(rule).address)
    client.initialize(VARIABLES)
    client.push(W | B, client.pull())
    before, slots = client.pull(), client.variables()

    verdict = _push_b(client, how, before)

    assert verdict
    assert verdict.applied
    after = client.pull()
    assert (after.params["w"] == before.params["w"]).all()
    assert after.params["b"] != before.params["b"]
    kept = client.variables().params
    names = [name for name in kept if name.endswith("['w']")]
    assert names
    for name in names:
        assert (kept[name] == slots.params[name]).all()


def test_only_what_came_is_judged(start_server: StartServer, connect: Connect) -> None:
    """By its norm, and by its numbers, which are told by name; nothing changes."""
    client = connect(start_server(max_grad_norm=10.0).address)
    client.initialize(VARIABLES)
    first = client.pull()

    with pytest.raises(GradientNormError, match="of at most 10, got 24"):
        client.push(W, first)
    with pytest.raises(NonFiniteError, match=r"^w: expected finite gradients, got nan"):
        client.push({"w": np.full((30, 5), np.nan, np.float32)}, first)
    assert client.push(B, first).applied

    variables = client.pull().params
    assert (variables["w"] == 1).all()
    assert variables["b"] == -1


def test_a_rule_s_norm_over_all_variables_is_that_of_what_came(
    start_server: StartServer, connect: Connect
) -> None:
    """A gradient of 2 is clipped to 1, whatever the others last were."""
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    client = connect(start_server(rule).address)
    client.initialize(VARIABLES)

    for gradients in (W | B, B):
        before = client.pull()
        client.push(gradients, before)

    assert before.params["b"] - client.pull().params["b"] == 1


@pytest.mark.parametrize("policy", ["drop", "inverse", "groups:w=9"])
def test_nobody_waits_while_the_first_push_of_some_is_compiled_for(
    start_server: StartServer, connect: Connect, policy: str
) -> None:
    """Another worker pushes and pulls meanwhile, as it always does."""
    begun, done = Event(), Event()
    is_watched = False

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if is_watched:  # By a test that runs this only to compile it.
            begun.set()
            assert done.wait(TIMEOUT_S)
        return jax.tree.map(lambda g: -g, updates), state

    rule = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    server = start_server(rule, staleness_policy=policy)
    some, other = connect(server.address), connect(server.address)
    some.initialize(VARIABLES)
    first = some.pull()
    is_watched = True
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(some.push, W, first)
        assert begun.wait(TIMEOUT_S)

        verdict = other.push(W | B, first)
        step = other.pull().step
        done.set()

        assert (verdict.step, step) == (1, 1)
        assert pushed.result(TIMEOUT_S).step == 2


@pytest.mark.parametrize("form", [{}, {"wire_dtype": "bf16"}], ids=["plain", "bf16"])
def test_a_push_changes_what_it_is_not_too_stale_for(
    start_server: StartServer, connect: Connect, form: dict[str, str]
) -> None:
    """A limit for each group, and one for all; status counts what was left out."""
    server = start_server(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        staleness_policy="groups:w=0,?=1",
        max_staleness=4,
    )
    client = connect(server.address, **form)
    client.initialize(VARIABLES | {"other": np.ones(2, np.float32)})
    gradients = W | B | {"other": np.full(2, 2.0, np.float32)}
    first, states = client.pull(), [client.variables().params]

    verdicts = []
    for _ in range(6):
        verdicts.append(client.push(gradients, first))
        states.append(client.variables().params)

    applied = [
        Verdict(applied=True, staleness=age, step=age + 1, dropped_variables=left)
        for age, left in enumerate([0, 1, 2, 2, 2])
    ]
    stale = Verdict(applied=False, staleness=5, step=5, reason=Reason.STALE)
    assert verdicts == [*applied, stale]
    # Of each variable and its slots, how many pushes have changed it.
    for name, pushes in {"w": 1, "b": 2, "other": 5}.items():
        for array in (f"variables/{name}", f"slots[1][0].mu['{name}']"):
            changes = [
                old[array].tobytes() != new[array].tobytes()
                for old, new in pairwise(states)
            ]
            assert sum(changes) == pushes, array
    assert [int(state["slots[1][0].count"]) for state in states] == [*range(6), 5]
    assert server.status().dropped_variables == 7


def test_a_push_of_nothing_but_what_it_is_too_stale_for_is_dropped(
    start_server: StartServer, connect: Connect
) -> None:
    """As if the group's limit were the server's."""
    server = start_server(staleness_policy="groups:w=0")
    client = connect(server.address)
    client.initialize(VARIABLES)
    first = client.pull()

    verdicts = [client.push(gradients, first) for gradients in (B, W, W | B)]

    assert verdicts == [
        Verdict(applied=True, staleness=0, step=1),
        Verdict(applied=False, staleness=1, step=1, reason=Reason.STALE),
        Verdict(applied=True, staleness=1, step=2, dropped_variables=1),
    ]
    assert (client.pull().params["w"] == 1).all()


def test_top_k_sends_later_what_was_not_sent_of_a_variable_that_was_absent(
    start_server: StartServer, connect: Connect
) -> None:
    """Of one that was left out too: but what came with that push is dropped."""
    server = start_server(optax.sgd(1.0), staleness_policy="groups:w=0")
    client = connect(server.address, compression="topk:0.01")
    client.initialize({name: np.zeros_like(array) for name, array in VARIABLES.items()})
    first = client.pull()
    ramp = {"w": np.arange(150, dtype=np.float32).reshape(30, 5)}

    verdicts = [client.push(gradients, first) for gradients in (ramp, B, ramp | B)]
    sent = np.count_nonzero(client.pull().params["w"])
    for _ in range(74):  # Two of 150 come at a time.
        client.push({"w": np.zeros((30, 5), np.float32)}, client.pull())

    assert [verdict.left_out for verdict in verdicts] == [(), (), ("w",)]
    assert sent == 2
    variables = client.pull().params
    np.testing.assert_array_equal(variables["w"], -ramp["w"])
    assert variables["b"] == -4
