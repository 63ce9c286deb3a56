"""Tables: a rule changes the rows of a push alone, and a cut of them stays."""

import threading
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver import columns
from psserver.columns import Column
from psserver.core import Core
from psserver.model import Model, start
from psserver.policies.terms import read_terms
from psserver.rules import CompiledRule, State, require_rule
from pswire.body import Body
from pswire.errors import InvalidRequestError, NonFiniteError
from pswire.layout import ArraySpec, Layout
from pswire.rows import Rows
from pswire.values import PushHeader

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

RATE = 0.5
VARIABLES: dict[str, Array] = {
    "w": np.ones(3, np.float32),
    "emb": np.arange(12, dtype=np.float32).reshape(6, 2),
}


class _Trained:
    """A model of one table, and a step for each push."""

    def __init__(
        self, rule: optax.GradientTransformation, variables: Mapping[str, Array]
    ) -> None:
        layout = Layout.of(variables).by_rows({"emb"})
        compiled = CompiledRule(require_rule(rule), layout)
        body = Body.gather(layout, variables)
        self.model: Model
        self.state: State
        self.model, self.state = start(compiled, body, "s")
        self.step = 0

    def push(self, ids: list[int], gradient: float) -> None:
        """Push rows of one number, and let everybody see them."""
        self.push_unseen(ids, gradient)
        self.model.tables.publish(self.step)

    def push_unseen(self, ids: list[int], gradient: float) -> None:
        shape = (len(ids), *self.model.layout.places["emb"][0].shape[1:])
        values = np.full(shape, gradient, self.model.layout.places["emb"][0].dtype)
        rows = {"emb": Rows(np.array(ids), values)}
        scalars = self.model.rule.scalars(None, 1.0)
        self.step += 1
        patch = self.model.tables.patch(self.step, self.state.slots, rows, scalars)
        zeros = Body.zeros(self.model.layout.dense.trainable)
        self.state = self.model.rule.apply(self.state, zeros, None, present=frozenset())
        self.model.tables.add(patch)

    def row(self, number: int) -> Array:
        ids = {"emb": np.array([number])}
        return np.asarray(self.model.tables.read(ids)["emb"].values[0])

    def arrays(self) -> dict[str, Array]:
        cuts = self.model.tables.cut(threading.Lock())
        return {name: _read(cut) for name, cut in cuts.items()}


def _read(cut: columns.Cut) -> Array:
    data = b"".join(bytes(piece) for piece in cut.pieces())
    return np.frombuffer(data, cut.dtype).reshape(cut.shape)


def _sgd(gradients: list[tuple[int, float]]) -> float:
    return -RATE * sum(g for _, g in gradients)


def _momentum(gradients: list[tuple[int, float]]) -> float:
    """The trace decays with the row's own pushes, not with those of others."""
    moved, trace = 0.0, 0.0
    for _, g in gradients:
        trace = 0.9 * trace + g
        moved -= RATE * trace
    return moved


def _adagrad(gradients: list[tuple[int, float]]) -> float:
    moved, squares = 0.0, 0.1  # optax's initial accumulator.
    for _, g in gradients:
        squares += g * g
        moved -= RATE * g / np.sqrt(squares + 1e-7)
    return moved


def _adam(gradients: list[tuple[int, float]]) -> float:
    """The moments are the row's, the count is the model's."""
    moved, mu, nu = 0.0, 0.0, 0.0
    for count, g in gradients:
        mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g * g
        mean, square = mu / (1 - 0.9**count), nu / (1 - 0.999**count)
        moved -= RATE * mean / (np.sqrt(square) + 1e-8)
    return moved


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        (optax.sgd(RATE), _sgd),
        (optax.sgd(RATE, momentum=0.9), _momentum),
        (optax.adagrad(RATE), _adagrad),
        (optax.adam(RATE), _adam),
    ],
    ids=["sgd", "momentum", "adagrad", "adam"],
)
def test_a_row_is_what_its_own_pushes_make_of_it(
    rule: optax.GradientTransformation,
    by_hand: Callable[[list[tuple[int, float]]], float],
) -> None:
    """Row 1 has the pushes 1, 2 and 4, row 3 the pushes 2 and 3, row 0 none."""
    trained = _Trained(rule, VARIABLES)

    for ids, gradient in (([1], 2.0), ([1, 3], -1.0), ([3], 3.0), ([1], 0.5)):
        trained.push(ids, gradient)

    first = by_hand([(1, 2.0), (2, -1.0), (4, 0.5)])
    third = by_hand([(2, -1.0), (3, 3.0)])
    np.testing.assert_allclose(trained.row(1), [2 + first, 3 + first], rtol=1e-5)
    np.testing.assert_allclose(trained.row(3), [6 + third, 7 + third], rtol=1e-5)
    assert trained.row(0).tolist() == [0, 1]


@pytest.mark.parametrize(
    "rule",
    [
        optax.sgd(0.1),
        optax.sgd(optax.exponential_decay(0.5, 2, 0.5), momentum=0.9),
        optax.adagrad(0.1),
        optax.adamw(0.1, weight_decay=0.1),
        optax.chain(optax.clip(0.5), optax.rmsprop(0.1)),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    ],
    ids=["sgd", "scheduled", "adagrad", "adamw", "clipped", "injected"],
)
def test_pushes_of_all_rows_are_what_a_dense_rule_makes_of_them(
    rule: optax.GradientTransformation,
) -> None:
    """Variables and slots, after each of them."""
    trained = _Trained(rule, VARIABLES)
    dense = jnp.asarray(VARIABLES["emb"])
    slots = rule.init({"emb": dense})

    for number in range(1, 6):
        trained.push(list(range(6)), 1.0 / number)
        gradient = {"emb": jnp.full((6, 2), 1.0 / number)}
        updates, slots = rule.update(gradient, slots, {"emb": dense})
        dense = optax.apply_updates({"emb": dense}, updates)["emb"]

    arrays = trained.arrays()
    np.testing.assert_allclose(arrays.pop("variables/emb"), dense, rtol=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(slots)
    by_path = {f"slots{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    for name, slot in arrays.items():
        np.testing.assert_allclose(slot, by_path[name], rtol=1e-5)
    shared = trained.model.rule.slots(trained.state).arrays
    for name in shared.keys() & by_path.keys():
        np.testing.assert_allclose(shared[name], by_path[name], rtol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
    ],
    ids=["norm", "factored"],
)
def test_a_rule_that_looks_at_whole_arrays_takes_no_table(
    rule: optax.GradientTransformation,
) -> None:
    """The error begins with the table's name."""
    with pytest.raises(InvalidRequestError, match=r"^emb: expected a rule that treats"):
        _Trained(rule, VARIABLES)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
)
def test_a_table_may_be_of_any_trainable_type(dtype: Any) -> None:
    """And each of another; the slots have the type that the rule gives them."""
    rule = optax.sgd(0.5, momentum=0.5)
    trained = _Trained(rule, VARIABLES | {"emb": VARIABLES["emb"].astype(dtype)})

    for _ in range(2):
        trained.push([1, 2], 1.0)

    assert trained.row(2).dtype == dtype
    assert trained.row(2).tolist() == [4 - 0.5 - 0.75, 5 - 0.5 - 0.75]
    assert {array.dtype for array in trained.arrays().values()} == {np.dtype(dtype)}


def test_unseen_pushes_build_upon_one_another_and_can_be_forgotten() -> None:
    """What is read is what was published, until the next one is."""
    trained = _Trained(optax.sgd(1.0), VARIABLES)
    trained.push_unseen([1, 2], -1.0)
    trained.push_unseen([2, 4], -1.0)
    assert trained.row(2).tolist() == [4, 5]

    trained.model.tables.publish(1)
    assert trained.row(2).tolist() == [5, 6]
    trained.model.tables.publish(2)
    assert [trained.row(n)[0] for n in (1, 2, 4)] == [3, 6, 9]

    trained.push_unseen([2], -1.0)
    trained.model.tables.roll_back()
    trained.model.tables.publish(3)
    assert trained.row(2).tolist() == [6, 7]


def test_a_push_that_is_taken_back_leaves_its_rows_as_they_were() -> None:
    """The next one, of the same step, builds upon what there was before."""
    trained = _Trained(optax.sgd(1.0), VARIABLES)
    core = Core(read_terms("drop", 0), "g", keeps_changes=True)
    core.join("worker", "s", 0.0)
    core.start(trained.model, trained.state)
    layout = Layout((trained.model.layout.places["emb"][0],))
    header = PushHeader("s", 1, "g", 0, 64 + 8, layout, rows=(1,))
    received = {"ids": np.array([2]), "rows": np.full((1, 2), -1, np.float32)}
    names = trained.model.wire_layout(header).places
    body = Body.gather(
        trained.model.wire_layout(header),
        dict(zip(names, received.values(), strict=True)),
    )

    for happens in (core.roll_back, lambda taken, why: core.publish()):
        push, verdict = trained.model.push(header, body), core.decide(header)
        core.apply(push, verdict)
        core.settle(header, verdict, 0.0)
        happens(core.take(), "no luck")

    assert core.published.snapshot.step == 1
    assert trained.row(2).tolist() == [5, 6]


def test_a_rule_that_overflows_changes_no_row() -> None:
    """It is told by the table's name."""
    trained = _Trained(optax.scale(-3e38), VARIABLES)

    with pytest.raises(NonFiniteError, match=r"^emb: expected a finite result"):
        trained.push([1], 10.0)

    assert trained.row(1).tolist() == [2, 3]


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a piece of a cut hold two rows."""
    monkeypatch.setattr(columns, "_PIECE_NBYTES", 16)


@pytest.mark.usefixtures("short_pieces")
def test_a_cut_stays_what_it_was_while_rows_are_replaced() -> None:
    """Rows that have been read, and that have not; one of them twice."""
    lock = threading.Lock()
    column = Column(ArraySpec("emb", np.dtype(np.float32), (9, 2)))
    column.fill(0, np.arange(18, dtype=np.float32).reshape(9, 2))
    cut, pieces = column.cut(lock), []

    for number, piece in enumerate(cut.pieces()):
        pieces.append(bytes(piece))
        ids = np.arange(number, 9, 2)
        column.write(ids, np.full((len(ids), 2), -1, np.float32))

    assert np.frombuffer(b"".join(pieces), np.float32).tolist() == list(range(18))
    assert _read(column.cut(lock)).tolist() == [[-1, -1]] * 9


@pytest.mark.usefixtures("short_pieces")
def test_cuts_of_different_moments_do_not_disturb_one_another() -> None:
    """Each has the rows of its own moment, and they are let go with it."""
    lock = threading.Lock()
    column = Column(ArraySpec("emb", np.dtype(np.float32), (4, 2)))
    cuts = []

    for number in range(1, 4):
        cuts.append(column.cut(lock))
        column.write(np.array([1, 2]), np.full((2, 2), number, np.float32))

    assert [_read(cut)[1, 0] for cut in cuts] == [0, 1, 2]
    assert len(column.cuts) == 3
    cuts.clear()
    assert not column.cuts


def test_a_push_takes_memory_for_its_own_rows_alone() -> None:
    """A thousand rows of a million: the table's memory is 64 MB."""
    table = np.zeros((1_000_000, 16), np.float32)
    trained = _Trained(optax.adam(0.1), {"emb": table})
    ids = list(range(0, 1_000_000, 1000))
    trained.push(ids, 1.0)  # Compiles.

    tracemalloc.start()
    try:
        trained.push(ids, 1.0)
        trained.row(5)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 40 * 1000 * 16 * 4


def test_a_cut_without_memory_is_lost_and_the_push_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever reads it is told, as a save that fails is."""
    column = Column(ArraySpec("emb", np.dtype(np.float32), (4, 2)))
    cut = column.cut(threading.Lock())

    def full(nbytes: int) -> Array:
        raise MemoryError

    monkeypatch.setattr(columns, "zeros", full)
    column.write(np.array([1]), np.ones((1, 2), np.float32))

    assert column.read(np.array([1])).tolist() == [[1, 1]]
    with pytest.raises(MemoryError, match="expected memory to put some aside"):
        next(cut.pieces())
