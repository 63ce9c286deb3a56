"""Gradients on their way from a loss to a push, in every form that they may have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pswire.body import Body
from pswire.errors import VariableMismatchError
from pswire.layout import Layout
from pswire.values import Snapshot
from psworker import Gradients
from psworker.wire import Wire

# In another order than JAX gives names, as a server may have them.
PARAMS = {
    "head": {"w": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([3.0])},
    "body": [jnp.asarray([4.0, 5.0])],
    "steps": jnp.int32(7),
}
NAMES = ["body/0", "head/b", "head/w"]


def loss(params: Any, batch: Any) -> Any:
    """A loss whose gradient at every variable is the variable times the batch."""
    leaves = (params["head"]["w"], params["head"]["b"], params["body"][0])
    return batch * sum(jnp.sum(leaf**2) for leaf in leaves) / 2


def numbers(tree: Any) -> Any:
    """Return a pytree of lists, for `==`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), tree)


# What is computed


def test_gradients_have_the_form_of_the_params_and_know_their_snapshot(
    offline: Any,
) -> None:
    """What is not trained has none, which is no leaf to JAX."""
    client, recorder = offline(PARAMS)
    recorder.step = 5

    gradients = client.compute_gradients(loss, jnp.float32(2), like=PARAMS)

    assert numbers(gradients.tree) == {
        "head": {"w": [2.0, 4.0], "b": [6.0]},
        "body": [[8.0, 10.0]],
        "steps": None,
    }
    assert (gradients.step_read, gradients.generation) == (5, "first")
    assert gradients.value == gradients.result == 55.0
    assert gradients.aux is None
    assert recorder.headers == []


def test_what_a_loss_returns_beside_its_value_is_there(offline: Any) -> None:
    """Until the gradients are mapped: it is no gradient."""
    client, _ = offline(PARAMS)

    gradients = client.compute_gradients(
        lambda params, batch: (loss(params, batch), {"seen": batch}),
        jnp.float32(2),
        like=PARAMS,
        has_aux=True,
    )

    assert gradients.value == 55.0
    assert gradients.aux == {"seen": 2.0}
    assert gradients.result == (55.0, {"seen": 2.0})
    mapped = jax.tree.map(jnp.negative, gradients)
    assert (mapped.value, mapped.aux, mapped.result) == (55.0, None, None)


def test_without_a_template_gradients_come_by_name(offline: Any) -> None:
    """As the variables do, which the loss takes so."""
    client, _ = offline({"w": PARAMS["head"]["w"], "b": PARAMS["head"]["b"]})

    gradients = client.compute_gradients(
        lambda params, batch: jnp.sum(params["w"]) + jnp.sum(params["b"]), None
    )

    assert numbers(gradients.tree) == {"w": [1.0, 1.0], "b": [1.0]}


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        (None, NAMES),
        ("head/w", ["head/w"]),
        ("head/*", ["head/b", "head/w"]),
        (["body/?", "head/b"], ["body/0", "head/b"]),
        ({"head/?"}, ["head/b", "head/w"]),
        (
            {"head": {"w": True, "b": False}, "body": [True], "steps": True},
            ["body/0", "head/w"],
        ),
        (
            {"head/w": False, "head/b": True, "body/0": False, "steps": False},
            ["head/b"],
        ),
    ],
    ids=["all", "a name", "a pattern", "some", "a set", "a mask", "a mask by name"],
)
def test_chosen_variables_alone_are_differentiated_and_pushed(
    offline: Any, variables: Any, names: list[str]
) -> None:
    """The others are no part of the push, which names what it has."""
    client, recorder = offline(PARAMS)

    gradients = client.compute_gradients(
        loss, jnp.float32(1), like=PARAMS, variables=variables
    )
    client.push(gradients)

    assert [name for _, name in gradients] == names
    assert len(jax.tree.leaves(gradients.tree)) == len(names)
    (header,), (sent,) = recorder.headers, recorder.sent
    assert list(sent) == names
    assert numbers(sent) == {
        name: {"body/0": [4, 5], "head/b": [3], "head/w": [1, 2]}[name]
        for name in names
    }
    told = header.layout and [spec.name for spec in header.layout]
    assert told == (None if names == NAMES else names)


def test_a_variable_that_is_not_chosen_is_a_constant_to_jax(offline: Any) -> None:
    """Nothing of its gradient is computed: this function's cannot be."""
    client, _ = offline({"w": jnp.ones(2), "frozen": jnp.ones(2)})

    @jax.custom_jvp
    def features(frozen: Any) -> Any:
        return 2 * frozen

    @features.defjvp
    def _fail(primals: Any, tangents: Any) -> Any:
        raise AssertionError("expected no gradient here")

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(params["w"] * features(params["frozen"]))

    gradients = client.compute_gradients(loss, None, variables=["w"])

    assert numbers(gradients.tree) == {"w": [2.0, 2.0], "frozen": None}
    with pytest.raises(AssertionError, match="expected no gradient here"):
        client.compute_gradients(loss, None)


def test_a_choice_that_fits_none_of_very_many_variables_names_a_few(
    offline: Any,
) -> None:
    """The message is read by people."""
    client, _ = offline({f"w{number}": np.ones(()) for number in range(1000)})

    for variables, said in (("v", "names or patterns"), ([], "one at least")):
        message = f"variables: expected {said} of w0, w1, w10, .* and 995 more, got"
        with pytest.raises(VariableMismatchError, match=message):
            client.compute_gradients(loss, None, variables=variables)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("haed/*", "variables: expected names or patterns of .*head/w.* got 'haed/"),
        (["head/w", "steps"], "variables: expected names or .*head/w.* got 'steps'"),
        ([], "variables: expected one at least of .*head/w.*, got none"),
        ({"head": {"w": True}}, r"body/0: expected \(\) bool, got none"),
        (
            {"head": {"w": 1, "b": False}, "body": [True], "steps": True},
            r"head/w: expected \(\) bool, got \(\) int32",
        ),
    ],
    ids=["no such", "not trained", "none", "a part of a mask", "no bool"],
)
def test_a_choice_that_fits_no_variables_is_refused(
    offline: Any, variables: Any, message: str
) -> None:
    """Rather than that less is trained than was meant."""
    client, _ = offline(PARAMS)

    with pytest.raises(VariableMismatchError, match=f"^{message}"):
        client.compute_gradients(loss, jnp.float32(1), like=PARAMS, variables=variables)


# What it is pulled back from


def squares(params: Any, batch: Any) -> Any:
    """A loss of two elements, the gradient of each of which is twice its variable."""
    return params["w"] ** 2


@pytest.mark.parametrize(
    ("loss", "cotangent", "gradient", "value"),
    [
        (squares, jnp.asarray([1.0, 10.0]), [6.0, 80.0], None),
        (squares, [1, 10], [6.0, 80.0], None),
        (squares, np.asarray([0.0, 0.5]), [0.0, 4.0], None),
        (lambda params, batch: jnp.sum(params["w"]), 3, [3.0, 3.0], 7.0),
        (lambda params, batch: jnp.sum(params["w"]), None, [1.0, 1.0], 7.0),
    ],
    ids=["an array", "a list", "of numpy", "a scale", "none"],
)
def test_the_gradient_is_pulled_back_from_the_cotangent(
    offline: Any, loss: Any, cotangent: Any, gradient: Any, value: float | None
) -> None:
    """A loss that is no scalar has no value that a rule could use."""
    client, _ = offline({"w": jnp.asarray([3.0, 4.0])})

    gradients = client.compute_gradients(loss, None, cotangent=cotangent)

    assert numbers(gradients.tree) == {"w": gradient}
    assert gradients.value == value


@pytest.mark.parametrize(
    ("loss", "cotangent", "message"),
    [
        (squares, None, r"loss: expected a scalar, or a cotangent .*got shape \(2,\)"),
        (squares, 1.0, r"cotangent: expected shape \(2,\), .*, got \(\)"),
        (squares, jnp.ones(3), r"cotangent: expected shape \(2,\), .*, got \(3,\)"),
        (
            lambda params, batch: jnp.argmax(params["w"]),
            None,
            "loss: expected a floating-point array, got int32",
        ),
        (
            lambda params, batch: params,
            None,
            "loss: expected a floating-point array, got dict",
        ),
    ],
    ids=["none", "a scalar", "another shape", "integers", "no array"],
)
def test_a_loss_that_cannot_be_differentiated_so_is_refused(
    offline: Any, loss: Any, cotangent: Any, message: str
) -> None:
    """Before anything is pushed; the client can go on."""
    client, recorder = offline({"w": jnp.asarray([3.0, 4.0])})

    with pytest.raises(ValueError, match=f"^{message}"):
        client.minimize(loss, None, cotangent=cotangent)

    assert recorder.headers == []
    assert client.minimize(squares, None, cotangent=jnp.ones(2))[0].applied


@pytest.mark.parametrize(
    "transform",
    [
        lambda call: jax.jit(lambda: call(jnp.float32(1)))(),
        lambda call: jax.jit(call)(jnp.float32(1)),
        lambda call: jax.grad(call)(jnp.float32(1)),
        lambda call: jax.vmap(call)(jnp.ones(2)),
    ],
    ids=["jit of nothing", "jit", "grad", "vmap"],
)
@pytest.mark.parametrize("what", ["compute_gradients", "minimize", "push"])
def test_the_server_is_not_called_from_what_jax_traces(
    offline: Any, transform: Callable[[Any], Any], what: str
) -> None:
    """It would be called once, at the tracing; an error says so, and leaves nothing."""
    client, recorder = offline(PARAMS)
    snapshot = client.pull(like=PARAMS)

    def call(batch: Any) -> Any:
        if what == "push":
            traced = jax.tree.map(lambda leaf: leaf * batch, PARAMS["head"])
            return client.push({"head": traced}, snapshot)
        return getattr(client, what)(loss, batch, like=PARAMS)

    with (
        jax.checking_leaks(),
        pytest.raises(TypeError, match=r"^(loss|head/b): expected numbers, got what J"),
    ):
        transform(call)

    assert recorder.headers == []
    assert client.minimize(loss, jnp.float32(1), like=PARAMS)[0].applied


# What happens to them on their way


def _clipped(gradients: Gradients) -> Any:
    rule = optax.clip_by_global_norm(1.0)
    return rule.update(gradients, rule.init(gradients))[0]


@pytest.mark.parametrize(
    ("change", "head_b"),
    [
        (lambda gradients: jax.tree.map(lambda g: 2 * g, gradients), 6.0),
        (_clipped, 3 / np.sqrt(55)),
        (lambda gradients: jax.jit(_clipped)(gradients), 3 / np.sqrt(55)),
    ],
    ids=["scaled", "clipped", "compiled"],
)
def test_gradients_that_were_mapped_know_their_step_still(
    offline: Any, change: Callable[[Gradients], Gradients], head_b: float
) -> None:
    """Though the server has gone on since: they are as stale as they were."""
    client, recorder = offline(PARAMS)
    recorder.step = 3
    gradients = client.compute_gradients(loss, jnp.float32(1), like=PARAMS)
    recorder.step, recorder.generation = 9, "second"
    client.pull()

    verdict = client.push(change(gradients))

    (header,), (sent,) = recorder.headers, recorder.sent
    assert (header.generation, header.step_read, header.value) == ("first", 3, 27.5)
    assert header.layout is None
    assert verdict.staleness == 6
    np.testing.assert_allclose(sent["head/b"], [head_b], rtol=1e-6)


def test_what_is_written_into_the_tree_is_pushed(offline: Any) -> None:
    """The gradients are the tree, once somebody has seen it."""
    client, recorder = offline(PARAMS)
    gradients = client.compute_gradients(loss, jnp.float32(1), like=PARAMS)

    gradients.tree["head"]["b"] = jnp.asarray([100.0])
    client.push(gradients)

    assert numbers(recorder.sent[0])["head/b"] == [100.0]


def test_the_value_beside_gradients_has_precedence(offline: Any) -> None:
    """As for a loss that was scaled, whose own value the rule wants."""
    client, recorder = offline(PARAMS)
    gradients = client.compute_gradients(loss, jnp.float32(1), like=PARAMS)

    client.push(gradients, value=1.5)
    client.push(gradients)

    assert [header.value for header in recorder.headers] == [1.5, 27.5]


# The forms that a push takes

W, B, BODY = (np.asarray(a, np.float32) for a in ([1, 2], [3], [4, 5]))
TREE = {"head": {"w": W, "b": B}, "body": [BODY], "steps": None}
BY_NAME = {"head/w": W, "head/b": B, "body/0": BODY}
PAIRS = [(W, "head/w"), (B, "head/b"), (BODY, "body/0")]

FORMS: dict[str, Callable[[], Any]] = {
    "a pytree": lambda: TREE,
    "by name": lambda: BY_NAME,
    "backwards": lambda: dict(reversed(BY_NAME.items())),
    "a list of pairs": lambda: PAIRS,
    "a tuple of pairs": lambda: tuple(reversed(PAIRS)),
    "an iterator": lambda: iter(PAIRS),
    "a generator": lambda: ((jnp.asarray(array), name) for array, name in PAIRS),
    "a zip": lambda: zip(BY_NAME.values(), BY_NAME.keys(), strict=True),
    "with None": lambda: [(None, "steps"), *PAIRS],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_push_takes_gradients_in_any_form(
    offline: Any, form: Callable[[], Any]
) -> None:
    """Full pushes name no layout, in whatever order the gradients come."""
    client, recorder = offline(PARAMS)

    client.push(form(), client.pull())

    (header,), (sent,) = recorder.headers, recorder.sent
    assert header.layout is None
    assert list(sent) == NAMES
    assert numbers(sent) == numbers(BY_NAME)


PARTS: dict[str, Callable[[], Any]] = {
    "a pytree": lambda: {"head": {"w": W, "b": None}, "body": [BODY]},
    "by name": lambda: {"head/w": W, "body/0": BODY},
    "pairs": lambda: [(W, "head/w"), (None, "head/b"), (BODY, "body/0")],
    "an iterator": lambda: iter([(W, "head/w"), (BODY, "body/0")]),
    "a body": lambda: Body.gather(_layout("body/0", "head/w"), BY_NAME),
}


def _layout(*names: str) -> Layout:
    return Layout.of({name: BY_NAME[name] for name in names})


@pytest.mark.parametrize("form", PARTS.values(), ids=PARTS.keys())
def test_a_push_of_some_variables_says_which(
    offline: Any, form: Callable[[], Any]
) -> None:
    """In the variables' order, each with its shape and type."""
    client, recorder = offline(PARAMS)

    client.push(form(), client.pull())

    (header,), (sent,) = recorder.headers, recorder.sent
    assert header.layout == _layout("body/0", "head/w")
    assert header.nbytes == header.layout.nbytes
    assert numbers(sent) == {"body/0": [4, 5], "head/w": [1, 2]}


def test_pairs_that_were_made_of_gradients_may_name_them(offline: Any) -> None:
    """In place of a snapshot, of which they know all that is needed."""
    client, recorder = offline(PARAMS)
    recorder.step = 3
    gradients = client.compute_gradients(loss, jnp.float32(1), like=PARAMS)
    recorder.step = 9

    client.push(((gradient / 2, name) for gradient, name in gradients), gradients)

    (header,), (sent,) = recorder.headers, recorder.sent
    assert (header.step_read, header.value) == (3, 27.5)
    assert numbers(sent)["head/b"] == [1.5]


@pytest.mark.parametrize(
    "nothing",
    [{}, [], (), iter(()), [(None, "head/w")], {"head": {"w": None}}],
    ids=["dict", "list", "tuple", "iterator", "pairs of none", "a pytree of none"],
)
def test_nothing_to_push_is_an_error(offline: Any, nothing: Any) -> None:
    """As it was in the ancestor."""
    client, recorder = offline(PARAMS)

    with pytest.raises(ValueError, match=r"^gradients: .* there is nothing to push$"):
        client.push(nothing, client.pull())

    assert recorder.headers == []


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ([(W, "head/v")], r"head/v: expected one of body/0, head/b, head/w, got"),
        ([(W, "steps")], r"steps: expected one of body/0, head/b, head/w, got"),
        ([(None, "head/w"), (W, "head/w")], "head/w: expected one gradient, got two"),
        ([(B, "head/w")], r"head/w: expected \(2,\) float32, got \(1,\) float32"),
        ({"head/w": W[:1], "head/b": B}, r"head/w: expected \(2,\) float32, got"),
        (
            [(W, "head/w"), B],
            r"gradients: expected pairs of \(gradient, name\), got ar",
        ),
        (BY_NAME.items(), r"gradients: expected pairs of \(gradient, name\), got \('h"),
        ([("text", "head/w")], "head/w: expected an array, got str"),
    ],
    ids=[
        *("no such", "not trained", "twice", "shape", "shape by name", "no pair"),
        *("the wrong way round", "no array"),
    ],
)
def test_gradients_that_fit_no_variable_are_named(
    offline: Any, gradients: Any, message: str
) -> None:
    """Before anything is sent."""
    client, recorder = offline(PARAMS)

    with pytest.raises(VariableMismatchError, match=f"^{message}"):
        client.push(gradients, client.pull())

    assert recorder.headers == []


def test_gradients_need_no_snapshot_and_take_none(offline: Any) -> None:
    """They know the one that they were computed from; another would contradict."""
    client, recorder = offline(PARAMS)
    gradients = client.compute_gradients(loss, jnp.float32(1), like=PARAMS)
    message = "^push: expected neither a snapshot nor step_read beside Gradients$"

    for origin in ({"snapshot": client.pull()}, {"step_read": 0}):
        with pytest.raises(ValueError, match=message):
            client.push(gradients, **origin)

    assert recorder.headers == []


def test_gradients_are_not_exchanged(offline: Any) -> None:
    """They were pulled for already, and the snapshot beside them would be another."""
    client, recorder = offline(PARAMS)
    gradients = client.compute_gradients(loss, jnp.float32(1), like=PARAMS)

    with pytest.raises(ValueError, match=r"^exchange: .* got Gradients, .*: push them"):
        client.exchange(gradients, client.pull())

    assert recorder.headers == []


def test_what_top_k_keeps_of_a_variable_outlasts_pushes_without_it(
    offline: Any,
) -> None:
    """It is sent when the variable's turn comes again."""
    params = {name: jnp.zeros(100) for name in "ab"}
    client, recorder = offline(params, wire=Wire(fraction=0.01))
    rest = np.ones(100, np.float32)
    first = Snapshot(None, 0, "first")

    client.push({"a": np.arange(100, dtype=np.float32)}, first)
    client.push({"b": rest}, first)
    client.push({"a": np.zeros(100, np.float32)}, first)

    assert [sent["a"].tolist() for sent in recorder.sent if "a" in sent] == [[99], [98]]


# minimize is both


def test_minimize_pushes_what_was_chosen(offline: Any) -> None:
    """And returns what the loss did, of the variables that it has pulled."""
    client, recorder = offline(PARAMS)

    verdict, result = client.minimize(
        loss, jnp.float32(1), like=PARAMS, variables="head/b", cotangent=10
    )

    assert (verdict.applied, result) == (True, 27.5)
    assert numbers(recorder.sent) == [{"head/b": [30.0]}]


def test_a_function_says_what_becomes_of_a_dropped_batch(offline: Any) -> None:
    """It sees every drop, within max_retries and at their end; here it gives up."""
    client, recorder = offline(PARAMS, answers=[False] * 9)
    seen = []

    def on_drop(verdict: Any) -> bool:
        seen.append(verdict)
        return len(seen) != 2

    def minimize(max_retries: int) -> Any:
        return client.minimize(
            loss,
            jnp.float32(1),
            like=PARAMS,
            on_drop=on_drop,
            max_retries=max_retries,
        )[0]

    given_up = minimize(max_retries=5)
    bounded = minimize(max_retries=1)

    assert len(recorder.headers) == len(seen) == 4
    assert (given_up, bounded) == (seen[1], seen[3])
    assert not bounded.applied


@pytest.mark.parametrize("on_drop", ["requeue", "never", None])
def test_minimize_knows_no_other_way_with_drops(offline: Any, on_drop: Any) -> None:
    """There is no other batch that could go before."""
    client, recorder = offline(PARAMS)

    with pytest.raises(ValueError, match=r"^on_drop: "):
        client.minimize(loss, jnp.float32(1), like=PARAMS, on_drop=on_drop)

    assert recorder.headers == []
