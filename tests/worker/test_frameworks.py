"""The same regression in every framework, trained through a real server.

With one worker and a limit of 0 every push is applied to the very variables that it was
computed from, so the result has to be what optax makes of the same batches by itself.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from psworker import Shard, Task
from psworker.loop import train

FEATURES, HIDDEN, BATCH, STEPS = 3, 4, 8, 20
SEED = 5

# Powers of two: what they multiply is not rounded, in whichever order it is done.
RULE = optax.sgd(0.0625, momentum=0.5)

Case = Callable[[], tuple[Callable[[], Any], Callable[..., Any]]]


def batches(shard: Shard) -> Iterator[tuple[Any, Any]]:
    """Yield batches of a noisy linear relation."""
    rng = np.random.default_rng(SEED + shard.index)
    truth = np.asarray([1.0, -2.0, 0.5], np.float32)
    for _ in range(STEPS):
        x = rng.standard_normal((BATCH, FEATURES), np.float32)
        yield x, x @ truth + np.float32(0.01) * rng.standard_normal(BATCH, np.float32)


def squared_error(predicted: Any, batch: Any) -> Any:
    """Compare a column of predictions with a batch's targets."""
    return jnp.mean((predicted.reshape(-1) - batch[1]) ** 2)


def plain_dict() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Variables as a dict, one of which is an integer and so not trained."""

    def init() -> Any:
        return {"w": jnp.zeros(FEATURES), "b": jnp.float32(0), "scale": jnp.int32(2)}

    def loss(params: Any, batch: Any) -> Any:
        return squared_error((batch[0] @ params["w"]) * params["scale"], batch)

    return init, loss


class Layer(NamedTuple):
    """A dense layer."""

    w: Any
    b: Any


def nested() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Variables in a tuple of lists of named tuples."""

    def init() -> Any:
        first, second = jax.random.split(jax.random.key(SEED))
        hidden = Layer(jax.random.normal(first, (FEATURES, HIDDEN)), jnp.zeros(HIDDEN))
        output = Layer(jax.random.normal(second, (HIDDEN, 1)) / HIDDEN, jnp.zeros(1))
        return ([hidden], [output, None])

    def loss(params: Any, batch: Any) -> Any:
        ([hidden], [output, _]) = params
        x = jnp.tanh(batch[0] @ hidden.w + hidden.b[None])
        return squared_error(x @ output.w + output.b[None], batch)

    return init, loss


def flax_linen() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """A linen module, whose parameters are a dict of dicts."""
    model = linen.Sequential([linen.Dense(HIDDEN), jnp.tanh, linen.Dense(1)])

    def init() -> Any:
        return model.init(jax.random.key(SEED), jnp.zeros((1, FEATURES)))

    def loss(params: Any, batch: Any) -> Any:
        return squared_error(model.apply(params, batch[0]), batch)

    return init, loss


def flax_nnx() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """An nnx model, split into what stays and a State, and merged in the loss."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.hidden = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
            self.output = nnx.Linear(HIDDEN, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.output(jnp.tanh(self.hidden(x)))

    graph, _ = nnx.split(Model(nnx.Rngs(SEED)))

    def init() -> Any:
        return nnx.state(Model(nnx.Rngs(SEED)))

    def loss(params: Any, batch: Any) -> Any:
        model = nnx.merge(graph, params, copy=True)
        return squared_error(model(batch[0]), batch)

    return init, loss


def equinox() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """An equinox module, whose leaves that are no arrays are None."""
    model = eqx.nn.MLP(FEATURES, 1, HIDDEN, 1, jnp.tanh, key=jax.random.key(SEED))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params: Any, batch: Any) -> Any:
        return squared_error(jax.vmap(eqx.combine(params, static))(batch[0]), batch)

    return lambda: params, loss


def haiku() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """A haiku function with dropout; its modules' names have slashes in them."""

    def forward(x: Any) -> Any:
        x = hk.nets.MLP([HIDDEN, HIDDEN], activate_final=True, name="mlp")(x)
        return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.1, x))

    model = hk.transform(forward)

    def init() -> Any:
        params: Any = model.init(jax.random.key(SEED), jnp.zeros((1, FEATURES)))
        assert "mlp/~/linear_0" in params
        return params

    def loss(params: Any, batch: Any, rng: Any) -> Any:
        return squared_error(model.apply(params, rng, batch[0]), batch)

    return init, loss


def by_optax_alone(
    params: Any, loss: Callable[..., Any], keys: list[Any]
) -> tuple[Any, list[float]]:
    """Train without a server or a worker; return the variables and the losses."""
    trained, kept = eqx.partition(params, eqx.is_inexact_array)
    slots = RULE.init(trained)

    @jax.jit
    def step(trained: Any, slots: Any, batch: Any, key: Any) -> Any:
        extra = () if key is None else (key,)

        def of_trained(trained: Any) -> Any:
            return loss(eqx.combine(trained, kept), batch, *extra)

        value, gradients = jax.value_and_grad(of_trained)(trained)
        updates, new_slots = RULE.update(gradients, slots, trained)
        return value, optax.apply_updates(trained, updates), new_slots

    values = []
    for batch, key in zip(batches(Shard()), keys, strict=True):
        value, trained, slots = step(trained, slots, batch, key)
        values.append(float(value))
    return eqx.combine(trained, kept), values


@pytest.mark.parametrize(
    "make", [plain_dict, nested, flax_linen, flax_nnx, equinox, haiku]
)
def test_a_model_is_trained_as_optax_alone_would(
    start_server: Any, connect: Any, make: Case
) -> None:
    """The same variables and losses, in the framework's own form; the loss falls."""
    init, loss = make()
    client = connect(start_server(RULE, max_staleness=0).address)
    losses: list[Any] = []
    own = jax.random.fold_in(jax.random.key(SEED), 0)
    keys = [jax.random.fold_in(own, i) if make is haiku else None for i in range(STEPS)]
    params = init()
    expected, expected_losses = by_optax_alone(params, loss, keys)

    progress = train(
        client,
        Task(init=init, loss=loss, batches=batches, seed=SEED),
        Shard(),
        report=lambda progress: losses.append(progress.loss),
    )
    pulled = client.pull(like=params).params

    assert (progress.applied, progress.dropped) == (STEPS, 0)
    everything = tuple(map(np.concatenate, zip(*batches(Shard()), strict=True)))
    extra = keys[:1] if make is haiku else ()
    assert loss(pulled, everything, *extra) < loss(params, everything, *extra) / 2
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    assert len({jax.tree.structure(params), jax.tree.structure(pulled)}) == 1
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), pulled, expected)


def test_batch_statistics_stay_with_the_worker(start_server: Any, connect: Any) -> None:
    """They come out of the loss beside it, and go in again with the next batch.

    The server keeps what has a gradient, and never sees them.
    """
    norm = linen.BatchNorm(momentum=0.5)
    first = norm.init(
        jax.random.key(SEED), jnp.zeros((1, FEATURES)), use_running_average=False
    )
    params, stats = first["params"], first["batch_stats"]

    def loss(params: Any, batch: Any) -> Any:
        (x, y), stats = batch
        normal, changed = norm.apply(
            {"params": params, "batch_stats": stats},
            x,
            use_running_average=False,
            mutable=["batch_stats"],
        )
        return squared_error(normal.sum(1), (x, y)), changed["batch_stats"]

    client = connect(start_server(RULE, max_staleness=0).address)
    client.initialize(params)
    losses = []
    for batch in batches(Shard()):
        verdict, (value, stats) = client.minimize(
            loss, (batch, stats), like=params, has_aux=True
        )
        assert verdict.applied
        losses.append(float(value))

    means = np.zeros(FEATURES, np.float32)
    for x, _ in batches(Shard()):
        means = 0.5 * means + 0.5 * x.mean(0)
    np.testing.assert_allclose(stats["mean"], means, rtol=1e-4)
    assert set(client.pull().params) == {"bias", "scale"}
    assert sum(losses[-3:]) < sum(losses[:3])
