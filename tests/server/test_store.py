"""The store: one push at a time, all of it or nothing, and every one counted."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import optax
import pytest

from psserver.store import Store
from pswire import body
from pswire.errors import (
    CallCancelledError,
    GradientNormError,
    InternalError,
    InvalidRequestError,
    NonFiniteError,
    NotInitializedError,
    ParameterServerError,
    SequenceError,
    SessionSupersededError,
    SessionUnknownError,
    TooLargeError,
    VariableMismatchError,
    reason,
)
from pswire.layout import Layout
from pswire.status import Limits
from pswire.values import PushHeader, Reason, Verdict

Arrays = Mapping[str, npt.NDArray[Any]]

_TIMEOUT_S = 30.0


def _open_store(rule: object = None, **limits: Any) -> Store:
    """Start a store without variables, of plain SGD if nothing else is said."""
    settings: dict[str, Any] = {
        "max_staleness": None,
        "max_grad_norm": None,
        "max_model_nbytes": 2**20,
        "max_unary_nbytes": 2**20,
        **limits,
    }
    return Store(
        optax.sgd(1.0) if rule is None else rule,
        rule_name="test",
        limits=Limits(**settings),
        generation="g",
        incarnation="i",
        now=100.0,
    )


def _hand_over(arrays: Arrays) -> Callable[[Layout], Arrays]:
    return lambda layout: {spec.name: arrays[spec.name] for spec in layout}


@dataclass
class _Worker:
    """One session of a store: it numbers its pushes and says nothing about layouts."""

    store: Store
    name: str = "ann"
    session: str = "s"
    seq: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.store.join(self.name, self.session, now=100.0)

    def initialize(self, variables: Arrays) -> bool:
        layout = Layout.of(variables)
        return self.store.initialize(
            self.session, layout, _hand_over(variables), now=100.0
        )

    def header(self, gradients: Arrays, **changes: Any) -> PushHeader:
        layout = Layout.of(gradients)
        settings: dict[str, Any] = {
            "session": self.session,
            "seq": self.seq,
            "generation": "g",
            "step_read": 0,
            "nbytes": layout.nbytes,
            "layout": layout,
            **changes,
        }
        return PushHeader(**settings)

    def push(self, gradients: Arrays, **changes: Any) -> Verdict:
        self.seq += 1
        header = self.header(gradients, **changes)
        return self.store.push(header, _hand_over(gradients), now=100.0)

    def count(self, gradients: Arrays, **changes: Any) -> None:
        """Push, and keep the books as a client would."""
        try:
            verdict = self.push(gradients, **changes)
        except ParameterServerError as error:
            self.outcomes[reason(error)] += 1
        else:
            kind = "applied" if verdict.applied else "dropped"
            self.outcomes["duplicate" if verdict.duplicate else kind] += 1


def _start(
    rule: object = None, variables: Arrays | None = None, **limits: Any
) -> _Worker:
    """Join and initialize a store, with two variables if nothing else is said."""
    worker = _Worker(_open_store(rule, **limits))
    assert worker.initialize(_model() if variables is None else variables)
    return worker


def _model(value: float = 1.0) -> dict[str, npt.NDArray[Any]]:
    return {"w": np.full((2, 2), value, np.float32), "b": np.full(3, value, np.float32)}


def _bits(store: Store) -> tuple[int, dict[str, bytes], list[bytes]]:
    """Return the step and every bit of the variables and the slots."""
    kept = store.lineage.checkpoint()
    assert kept
    variables = {name: array.tobytes() for name, array in kept.variables.items()}
    return (
        kept.step,
        variables,
        [array.tobytes() for array in kept.slots.arrays.values()],
    )


def _values(store: Store) -> dict[str, Any]:
    params = store.pull("", now=100.0)[1].params
    return {name: array.tolist() for name, array in params.items()}


# Staleness


def test_a_stale_push_moves_the_variables_by_what_its_verdict_says() -> None:
    """Its retry gets the same verdict; what is dropped has no factor at all."""
    worker = _start(staleness_policy="inverse", max_staleness=4)
    for step in range(4):
        worker.push(_model(0.0), step_read=step)
    before = _values(worker.store)

    verdict = worker.push(_model(1.0), step_read=0)
    again = worker.store.push(
        worker.header(_model(1.0), step_read=0), _hand_over({}), now=100.0
    )
    dropped = worker.push(_model(1.0), step_read=0)

    assert verdict == Verdict(applied=True, staleness=4, step=5, factor=0.25)
    assert again == replace(verdict, duplicate=True)
    assert dropped == Verdict(False, 5, 5, Reason.STALE)
    after = _values(worker.store)
    assert before["b"] == [1.0, 1.0, 1.0]
    assert after["b"] == [0.75, 0.75, 0.75]


@pytest.mark.parametrize("begins_as", ["inverse", "drop"])
def test_nobody_waits_while_the_first_factor_is_compiled_for(begins_as: str) -> None:
    """It takes seconds where there are many arrays; the push waits for it, status not.

    Nor if the policy is set after the push has been judged for the first time.
    """
    compiling, compiled = threading.Event(), threading.Event()
    is_started = False

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if is_started:  # JAX calls it just to compile.
            compiling.set()
            assert compiled.wait(_TIMEOUT_S)
        return updates, state

    rule = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    worker = _start(rule, staleness_policy=begins_as)
    for _ in range(2):
        worker.push(_model())
    is_started = True

    def receive(layout: Layout) -> Arrays:
        worker.store.set({"staleness_policy": "inverse"})
        return _model()

    header = worker.header(_model(), seq=3)
    with ThreadPoolExecutor(2) as pool:
        pushing = pool.submit(worker.store.push, header, receive, 100.0)
        try:
            assert compiling.wait(_TIMEOUT_S)
            asked = pool.submit(worker.store.status, 100.0)
            step = asked.result(_TIMEOUT_S / 2).step
        finally:
            compiled.set()

        verdict = pushing.result(_TIMEOUT_S)

    assert step == 2
    assert verdict == Verdict(applied=True, staleness=2, step=3, factor=0.5)


def test_an_adaptive_limit_follows_the_pushes_that_are_judged() -> None:
    """The dropped ones too: else it could never rise again."""
    worker = _start(staleness_policy="adaptive:0.5,1,6", max_staleness=5)
    outcomes = []

    def push(age: int) -> bool:
        step = worker.store.status(now=100.0).step
        return worker.push(_model(0.0), step_read=max(0, step - age)).applied

    for age in (*[0] * 20, 2, 1, *[4] * 40):
        outcomes.append(push(age))

    # At first the hard limit counts, then the least. What is 4 steps old is dropped
    # until more than half of the pushes are.
    assert outcomes[:22] == [True] * 20 + [False, True]
    assert outcomes.index(True, 22) == 22 + 23
    assert all(outcomes[45:])


def test_a_dropped_push_leaves_no_trace(rule: optax.GradientTransformation) -> None:
    """Not in variables, slots or step, and not in what comes after either."""
    worker, other = _start(rule, max_staleness=0), _start(rule, max_staleness=0)
    for each in (worker, other):
        each.push(_model(0.5))
    before = _bits(worker.store)

    verdict = worker.push(_model(9.0), step_read=0)

    assert verdict == Verdict(applied=False, staleness=1, step=1, reason=Reason.STALE)
    assert _bits(worker.store) == before
    for each in (worker, other):
        each.push(_model(-0.25), step_read=1)
    assert _bits(worker.store) == _bits(other.store)
    assert _bits(worker.store)[0] == 2


@pytest.mark.parametrize(
    ("workers", "limit", "step", "drops", "ages"),
    [
        (1, 0, 1, 0, [0]),
        (1, -1, 0, 1, [0]),
        (2, 0, 1, 1, [0, 1]),
        (2, 1, 2, 0, [0, 1]),
        (3, 0, 1, 2, [0, 1, 1]),
        (3, 1, 2, 1, [0, 1, 2]),
    ],
)
def test_the_ancestors_cases_come_out_as_they_did(
    workers: int, limit: int, step: int, drops: int, ages: list[int]
) -> None:
    """The tests of TensorFlow 1's DropStaleGradientOptimizer: all read step 0."""
    minus_one = np.array(-1.0, np.float32)
    variables = {"v0": np.array(0.0, np.float32), "v1": np.array(1.0, np.float32)}
    first = _start(variables=variables, max_staleness=limit)
    others = [_Worker(first.store, f"w{n}", f"s{n}") for n in range(1, workers)]

    verdicts = [
        worker.push({"v0": minus_one, "v1": minus_one}) for worker in (first, *others)
    ]

    status = first.store.status(now=100.0)
    assert [verdict.staleness for verdict in verdicts] == ages
    assert (status.step, status.counts.dropped) == (step, drops)
    assert _values(first.store) == {"v0": step, "v1": step + 1}


@pytest.mark.parametrize("limit", [0, 1, 3, 15])
def test_of_racing_pushes_of_one_step_just_limit_and_one_pass(limit: int) -> None:
    """All have passed the check of the header: the step moves on under them."""
    first = _start(max_staleness=limit)
    racers = [_Worker(first.store, f"w{n}", f"s{n}") for n in range(20)]
    barrier = threading.Barrier(len(racers))

    def push(racer: _Worker) -> Verdict:
        def receive(layout: Layout) -> Arrays:
            barrier.wait(_TIMEOUT_S)
            return _model()

        header = racer.header(_model(), seq=1)
        return racer.store.push(header, receive, now=100.0)

    with ThreadPoolExecutor(len(racers)) as pool:
        verdicts = list(pool.map(push, racers))

    applied = sorted((v for v in verdicts if v.applied), key=lambda v: v.step)
    assert applied == [Verdict(True, age, age + 1) for age in range(limit + 1)]
    assert {v for v in verdicts if not v.applied} == {
        Verdict(False, limit + 1, limit + 1, Reason.STALE)
    }
    assert _values(first.store)["b"] == [1.0 - (limit + 1)] * 3


# All or nothing


def test_every_applied_push_moves_variables_and_slots() -> None:
    """Momentum of a half, by hand: 1, then 1.5, then 1.75 of the gradient."""
    worker = _start(optax.sgd(1.0, momentum=0.5), {"w": np.zeros(1, np.float32)})

    values = []
    for step in range(3):
        worker.push({"w": np.ones(1, np.float32)}, step_read=step)
        values.append(_values(worker.store)["w"])

    assert values == [[-1.0], [-2.5], [-4.25]]


_V = 20
_NAMES = [f"v{number:02}" for number in range(_V)]
_DEFECTS: dict[str, tuple[type[ParameterServerError], str]] = {
    "nan": (NonFiniteError, r"{name}: expected finite gradients, got nan at \(1,\)"),
    "infinity": (NonFiniteError, r"{name}: expected finite .*, got -inf at \(2,\)"),
    "overflow": (NonFiniteError, r"slots.*: expected a finite result of the rule, got"),
    "shape": (VariableMismatchError, r"{name}: expected \(3,\) float32, got \(3, 1\)"),
    "dtype": (VariableMismatchError, r"{name}: expected .* float32, got .* float64"),
    "extra": (VariableMismatchError, r"{name}': expected one of v00, .*, got \(3,\)"),
    "renamed": (VariableMismatchError, r"{name}': expected one of v00, .*, got \(3,"),
    "none": (VariableMismatchError, r"layout: expected one or more of v00, .*, got no"),
    "short": (VariableMismatchError, r"body: expected 1228 bytes, got {place}$"),
    "long": (VariableMismatchError, r"body: expected 1228 bytes, got [12][0-9]+$"),
    "announced": (VariableMismatchError, r"nbytes: expected 1228 bytes, got 1229"),
}


def _many(value: float) -> dict[str, npt.NDArray[Any]]:
    return {name: np.full(3, value, np.float32) for name in _NAMES}


def _spoil(defect: str, name: str) -> tuple[Layout, int, bytes]:
    """Return the layout, the announced size and the body of a push that is bad."""
    gradients = _many(0.5)
    replacements: dict[str, Any] = {
        "nan": np.array([0, np.nan, 0], np.float32),
        "infinity": np.array([0, 0, -np.inf], np.float32),
        "overflow": np.array([1e30, 0, 0], np.float32),
        "shape": np.zeros((3, 1), np.float32),
        "dtype": np.zeros(3, np.float64),
    }
    if defect in replacements:
        gradients[name] = replacements[defect]
    elif defect == "none":
        gradients = {}
    elif defect == "extra":
        gradients = {**gradients, name + "'": gradients[name]}
    elif defect == "renamed":
        gradients[name + "'"] = gradients.pop(name)
    layout = Layout.of(gradients)
    data = bytes(body.join(layout, gradients))
    if defect in ("short", "long"):
        whole = data
        place = 64 * _NAMES.index(name) + 5
        data = whole[:place] if defect == "short" else whole + whole[:place]
    return layout, layout.nbytes + (defect == "announced"), data


@pytest.fixture(scope="module")
def twenty() -> _Worker:
    """Keep twenty variables under Adam, whose slots have begun to move."""
    worker = _start(optax.adam(0.1), _many(1.0))
    worker.push(_many(0.5))
    return worker


@pytest.mark.parametrize("defect", list(_DEFECTS))
def test_one_bad_gradient_of_twenty_leaves_all_as_they_were(
    defect: str, twenty: _Worker
) -> None:
    """Wherever it is among them: no variable and no slot keeps a part of the push."""
    store = twenty.store
    before, rejected = _bits(store), dict(store.status(100.0).counts.rejected)
    error, message = _DEFECTS[defect]

    for number, name in enumerate(_NAMES):
        layout, nbytes, data = _spoil(defect, name)
        header = PushHeader("s", 1000, "g", 1, nbytes, layout)

        def receive(layout: Layout, data: bytes = data) -> Arrays:
            assembly = body.Assembly(layout)
            assembly.add(0, data)
            return assembly.finish()

        expected = message.format(name=name, place=64 * number + 5)
        with pytest.raises(error, match=f"^{expected}"):
            store.push(header, receive, now=100.0)
        assert _bits(store) == before

    counted = store.status(100.0).counts.rejected[reason(error)]
    assert counted - rejected.get(reason(error), 0) == _V


def test_a_rule_that_fails_changes_nothing(hook: Any) -> None:
    """The next push goes on from where the last good one was."""
    worker = _start(hook.rule)
    worker.push(_model())
    before = _bits(worker.store)

    def fail() -> None:
        raise ZeroDivisionError("no luck")

    hook.run = fail
    with pytest.raises(InternalError, match=r"^rule: failed with"):
        worker.push(_model())
    hook.run = lambda: None

    assert _bits(worker.store) == before
    assert worker.push(_model(), step_read=1).step == 2
    assert worker.store.status(100.0).counts.rejected == {"INTERNAL": 1}


def test_a_body_that_cannot_be_read_changes_nothing() -> None:
    """Whatever the reading raises is counted, and may be retried as the same push."""
    worker = _start()
    before = _bits(worker.store)

    def receive(layout: Layout) -> Arrays:
        raise OSError("no luck")

    with pytest.raises(OSError, match="no luck"):
        worker.store.push(worker.header(_model(), seq=1), receive, now=100.0)

    assert _bits(worker.store) == before
    assert worker.store.status(100.0).counts.rejected == {"INTERNAL": 1}
    assert worker.push(_model()) == Verdict(True, 0, 1)


def test_poisoned_pushes_among_good_ones_do_not_touch_the_model() -> None:
    """As many bad ones as good ones, in an order that the seed gives."""
    generator = np.random.default_rng(7)
    worker, alone = _start(optax.adam(0.1)), _start(optax.adam(0.1))

    for _ in range(200):
        good = {k: generator.normal(size=a.shape) for k, a in _model().items()}
        gradients = {k: a.astype(np.float32) for k, a in good.items()}
        bad = {k: a.copy() for k, a in gradients.items()}
        bad["b"][generator.integers(3)] = generator.choice([np.nan, np.inf, 3e30])
        for push in generator.permutation(["good", "bad"]):
            if push == "good":
                worker.push(gradients)
            else:
                with pytest.raises(NonFiniteError, match=r"^(b|slots.*): expected "):
                    worker.push(bad)
        alone.push(gradients)

    assert _bits(worker.store) == _bits(alone.store)


def test_a_gradient_over_the_bound_changes_nothing() -> None:
    """The bound itself is allowed: 3 and 4 make 5."""
    three, four, five = (np.array([n], np.float32) for n in (3, 4, 5))
    worker = _start(variables={"w": three, "b": four}, max_grad_norm=5.0)
    before = _bits(worker.store)

    with pytest.raises(
        GradientNormError, match=r"^gradients: expected .* at most 5, got 5\.83095$"
    ):
        worker.push({"w": three, "b": five})

    assert _bits(worker.store) == before
    assert worker.push({"w": three, "b": four}) == Verdict(True, 0, 1)
    assert worker.store.status(100.0).counts.rejected == {"GRADIENT_NORM": 1}


def test_variables_without_a_gradient_are_kept_as_they_are() -> None:
    """Integers and bools travel with the snapshots; a push does not bring them."""
    kept = {"n": np.array([2**40, -1]), "on": np.array([True, False])}
    worker = _start(variables={"w": np.ones(2, np.float32), **kept})

    worker.push({"w": np.ones(2, np.float32)}, layout=None)

    assert _values(worker.store) == {
        "w": [0.0, 0.0],
        "n": [2**40, -1],
        "on": [True, False],
    }
    with pytest.raises(VariableMismatchError, match=r"^n: expected one of w, got"):
        worker.push({"w": np.ones(2, np.float32), "n": kept["n"]})


def test_a_caller_who_went_away_changes_nothing() -> None:
    """Its push may come again under the same number."""
    worker = _start()
    before = _bits(worker.store)
    header = worker.header(_model(), seq=1)

    with pytest.raises(CallCancelledError, match=r"^push: the caller went away$"):
        worker.store.push(
            header, _hand_over(_model()), now=100.0, is_wanted=lambda: False
        )

    assert _bits(worker.store) == before
    assert worker.store.status(100.0).counts.rejected == {"CALL_CANCELLED": 1}
    assert worker.push(_model()) == Verdict(True, 0, 1)


# Initialization


def _no_body(layout: Layout) -> Arrays:
    raise VariableMismatchError("body: expected 76 bytes, got 75")


@pytest.mark.parametrize(
    ("rule", "variables", "receive", "error", "message"),
    [
        (
            None,
            _model(),
            _no_body,
            VariableMismatchError,
            r"^body: expected 76 bytes, got 75$",
        ),
        (
            None,
            {},
            _no_body,
            VariableMismatchError,
            r"^variables: expected at least one of a floating-point type, got none$",
        ),
        (
            None,
            {"n": np.arange(3), "empty": np.zeros(0, np.float32)},
            _no_body,
            VariableMismatchError,
            r"^variables: expected at least one of a floating-point type, got none$",
        ),
        (
            None,
            {"w": np.zeros(2**18 + 1, np.float32)},
            _no_body,
            TooLargeError,
            r"^variables: expected at most 1048576 bytes, .*, got 1048580$",
        ),
        (
            optax.lbfgs(),
            _model(),
            _hand_over(_model()),
            InvalidRequestError,
            r"^rule: expected one that needs the gradients,",
        ),
    ],
    ids=["body", "nothing", "no-floats", "too-large", "rule"],
)
def test_an_initialization_that_fails_sets_nothing(
    rule: object,
    variables: Arrays,
    receive: Callable[[Layout], Arrays],
    error: type[ParameterServerError],
    message: str,
) -> None:
    """Whoever comes next is the first: nobody has set the variables."""
    store = _open_store(rule)
    worker, other = _Worker(store), _Worker(store, "bob", "t")

    with pytest.raises(error, match=message):
        store.initialize("s", Layout.of(variables), receive, now=100.0)

    assert not store.status(100.0).initialized
    assert worker.store.join("ann", "s", now=100.0).layout is None
    with pytest.raises(NotInitializedError, match=r"^variables: expected to be init"):
        store.pull("", now=100.0)
    with pytest.raises(NotInitializedError, match=r"^variables: expected to be init"):
        other.push(_model())
    if rule is None:
        assert other.initialize(_model())


def test_a_model_of_just_the_largest_size_is_taken() -> None:
    """The bound is inclusive."""
    worker = _start(variables={"w": np.zeros(2**18, np.float32)})

    assert worker.store.status(100.0).initialized


def test_the_first_writer_wins_and_later_ones_are_told() -> None:
    """Their bodies are not even read; a retry by the first is told so again."""
    store = _open_store()
    ann, bob = _Worker(store), _Worker(store, "bob", "t")
    other = {"another": np.zeros(9, np.float32)}

    answers = [
        ann.initialize(_model(1.0)),
        store.initialize("t", Layout.of(other), _no_body, now=100.0),
        store.initialize("s", Layout.of(_model()), _no_body, now=100.0),
        bob.initialize(_model(2.0)),
    ]

    assert answers == [True, False, True, False]
    assert _values(store) == {"w": [[1.0, 1.0]] * 2, "b": [1.0] * 3}
    assert store.join("bob", "t", now=100.0).layout == Layout.of(_model())


def test_of_two_writers_at_once_one_wins_whole() -> None:
    """Both have read their bodies before either sets the variables."""
    store = _open_store()
    workers = [_Worker(store, name, name) for name in ("ann", "bob", "eve")]
    barrier = threading.Barrier(len(workers))

    def initialize(number: int) -> bool:
        def receive(layout: Layout) -> Arrays:
            barrier.wait(_TIMEOUT_S)
            return _model(float(number))

        layout = Layout.of(_model())
        return store.initialize(workers[number].session, layout, receive, now=100.0)

    with ThreadPoolExecutor(len(workers)) as pool:
        won = list(pool.map(initialize, range(len(workers))))

    assert won.count(True) == 1
    winner = float(won.index(True))
    assert _values(store) == {"w": [[winner] * 2] * 2, "b": [winner] * 3}


def test_a_snapshot_never_changes() -> None:
    """Whoever still reads an old one sees the old numbers, and nobody writes any."""
    worker = _start()
    before = worker.store.pull("s", now=100.0)[1]

    worker.push(_model())

    after = worker.store.pull("s", now=100.0)[1]
    assert (before.step, after.step) == (0, 1)
    assert before.params["b"].tolist() == [1.0] * 3
    assert after.params["b"].tolist() == [0.0] * 3
    assert not after.params["b"].flags.writeable


# Sessions


def test_a_new_session_takes_the_name_over() -> None:
    """The old one is told to stop, whatever it calls, and its counts stay."""
    old = _start()
    old.push(_model())
    new = _Worker(old.store, "ann", "t")

    verdict = new.push(_model(), step_read=1)

    assert verdict == Verdict(True, 0, 2)  # Its numbers begin anew.
    for call in (
        lambda: old.push(_model(), step_read=2),
        lambda: old.push(_model(), seq=1),
        lambda: old.store.join("ann", "s", now=100.0),
    ):
        with pytest.raises(
            SessionSupersededError,
            match=r"^session: expected the newest of worker ann, got s; another",
        ):
            call()
    (row,) = old.store.status(100.0).workers
    assert (row.name, row.counts.applied) == ("ann", 2)
    assert row.counts.rejected == {"SESSION_SUPERSEDED": 2}


def test_joining_again_is_no_takeover() -> None:
    """A client whose answer was lost joins twice."""
    worker = _start()
    worker.push(_model())

    joined = worker.store.join("ann", "s", now=100.0)

    assert (joined.generation, joined.incarnation, joined.step) == ("g", "i", 1)
    assert joined.layout == Layout.of(_model())
    assert worker.push(_model(), seq=1).duplicate


def test_a_session_belongs_to_one_worker() -> None:
    """Its pushes are counted under that name alone."""
    worker = _start()

    with pytest.raises(
        InvalidRequestError, match=r"^worker: expected ann, whose session s is, got bob"
    ):
        worker.store.join("bob", "s", now=100.0)

    assert [row.name for row in worker.store.status(100.0).workers] == ["ann"]


@pytest.mark.parametrize(
    ("worker", "session", "message"),
    [
        ("", "s", r"^worker: expected a name of 1 to 256 bytes, got 0$"),
        ("ann", "", r"^session: expected a name of 1 to 64 bytes, got 0$"),
        ("é" * 129, "s", r"^worker: expected a name of 1 to 256 bytes, got 258$"),
        ("ann", "s" * 65, r"^session: expected a name of 1 to 64 bytes, got 65$"),
        ("a\nn", "s", r"^worker: expected printable letters, got 'a\\nn'$"),
        ("ann", "\x00", r"^session: expected printable letters, got '\\x00'$"),
        ("\x1b[31mann", "s", r"^worker: expected printable letters, got '\\x1b"),
    ],
)
def test_a_name_that_cannot_be_shown_is_refused(
    worker: str, session: str, message: str
) -> None:
    """Names are printed in tables and logs."""
    store = _open_store()

    with pytest.raises(InvalidRequestError, match=message):
        store.join(worker, session, now=100.0)

    assert store.status(100.0).workers == ()


@pytest.mark.parametrize("session", ["", "t", "x" * 10_000])
def test_a_session_that_never_joined_is_refused(session: str) -> None:
    """An anonymous pull is all that it may do; its pushes are counted in all."""
    worker = _start()
    message = r"^session: expected one that has joined, got '[tx]{0,64}'$"

    with pytest.raises(SessionUnknownError, match=message):
        worker.push(_model(), session=session)
    with pytest.raises(SessionUnknownError, match=message):
        worker.store.initialize(session, Layout.of(_model()), _no_body, now=100.0)
    if session:
        with pytest.raises(SessionUnknownError, match=message):
            worker.store.pull(session, now=100.0)

    status = worker.store.status(100.0)
    assert status.counts.rejected == {"SESSION_UNKNOWN": 1}
    assert status.workers[0].counts.received == 0


def test_a_retry_repeats_its_verdict_and_changes_nothing() -> None:
    """At limit 0 the applied one is stale by itself, and the dropped one stays so."""
    worker = _start(max_staleness=0)
    applied, dropped = worker.push(_model()), worker.push(_model())
    before = _bits(worker.store)

    again = worker.push(_model(), seq=2)
    later = worker.push(_model(), seq=3, step_read=1)
    repeated = [worker.push(_model(np.nan), seq=3) for _ in range(3)]

    assert (applied.applied, dropped.applied) == (True, False)
    assert again == dropped.repeated()
    assert repeated == [later.repeated()] * 3
    assert (before[0], _bits(worker.store)[0]) == (1, 2)
    with pytest.raises(SequenceError, match=r"^seq: expected more than 3, got 2$"):
        worker.push(_model(), seq=2)


def test_the_same_push_from_many_threads_is_applied_once() -> None:
    """Each had passed the check of the header before any was applied."""
    worker = _start(max_staleness=0)
    barrier = threading.Barrier(16)

    def push(_: int) -> Verdict:
        def receive(layout: Layout) -> Arrays:
            barrier.wait(_TIMEOUT_S)
            return _model()

        header = worker.header(_model(), seq=1)
        return worker.store.push(header, receive, now=100.0)

    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(push, range(16)))

    first = Verdict(True, 0, 1)
    assert sorted(verdicts, key=lambda v: v.duplicate) == [
        first,
        *[first.repeated()] * 15,
    ]
    assert _values(worker.store)["b"] == [0.0] * 3


def test_a_number_of_a_rejected_push_is_free_again() -> None:
    """The worker may mend it, and two sessions' numbers never meet."""
    ann = _start()
    bob = _Worker(ann.store, "bob", "t")

    with pytest.raises(NonFiniteError, match=r"^w: expected finite gradients"):
        ann.push(_model(np.nan))
    verdicts = [ann.push(_model(), seq=1), bob.push(_model(), seq=1)]

    assert verdicts == [Verdict(True, 0, 1), Verdict(True, 1, 2)]


# Waiting


def test_a_pull_does_not_wait_for_a_push(hook: Any) -> None:
    """While the rule runs, the snapshot of the step before it is the newest."""
    worker = _start(hook.rule)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert leave.wait(_TIMEOUT_S)

    with ThreadPoolExecutor(2) as pool:
        hook.run = hold
        push = pool.submit(worker.push, _model())
        assert inside.wait(_TIMEOUT_S)
        try:
            pulls = [
                pool.submit(worker.store.pull, session, 100.0).result(_TIMEOUT_S)
                for session in ("s", "")
            ]
            pushed_by_then = push.done()
        finally:
            leave.set()

        assert push.result(_TIMEOUT_S) == Verdict(True, 0, 1)
    assert [snapshot.step for _, snapshot in pulls] == [0, 0]
    assert not pushed_by_then


def test_others_do_not_wait_while_the_rule_is_compiled() -> None:
    """A worker joins, and somebody asks for the status, before there are variables."""
    inside, leave = threading.Event(), threading.Event()

    sgd = optax.sgd(1.0)

    def init(params: Any) -> optax.OptState:
        inside.set()
        assert leave.wait(_TIMEOUT_S)
        return sgd.init(params)

    rule = optax.GradientTransformation(init, sgd.update)
    worker = _Worker(_open_store(rule))

    with ThreadPoolExecutor(2) as pool:
        initialize = pool.submit(worker.initialize, _model())
        assert inside.wait(_TIMEOUT_S)
        try:
            join = pool.submit(worker.store.join, "bob", "t", 101.0)
            joined = join.result(_TIMEOUT_S)
            status = worker.store.status(101.0)
        finally:
            leave.set()
        initialize.result(_TIMEOUT_S)

    assert joined.layout is None
    assert not status.initialized
    assert worker.store.status(102.0).initialized


def test_others_do_not_wait_while_a_layout_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of thousands of arrays that takes longer than to judge; so it is done once."""
    ann = _start()
    bob = _Worker(ann.store, "bob", "t")
    comparing, leave = threading.Event(), threading.Event()
    compare, compared = Layout.require_some, []

    def wait(layout: Layout, got: Layout) -> None:
        compared.append(got)
        if len(got.arrays) == 1:
            comparing.set()
            assert leave.wait(_TIMEOUT_S)
        compare(layout, got)

    monkeypatch.setattr(Layout, "require_some", wait)
    with ThreadPoolExecutor() as pool:
        pushed = pool.submit(ann.push, {"w": _model()["w"]})
        assert comparing.wait(_TIMEOUT_S)
        others = pool.submit(bob.push, _model()).result(_TIMEOUT_S)
        leave.set()
        verdict = pushed.result(_TIMEOUT_S)

    assert (others.step, verdict.step) == (1, 2)
    assert [len(layout.arrays) for layout in compared] == [1, 2]


@pytest.mark.parametrize(("value", "is_taken"), [(np.nan, False), (np.inf, True)])
def test_first_variables_may_be_infinite_but_not_nan(
    value: float, is_taken: bool
) -> None:
    """A mask may hold infinities; of NaN nothing can be learned."""
    worker = _Worker(_open_store())
    variables = {"a": np.ones(3, np.float32), "b": np.full(2, value, np.float32)}

    if is_taken:
        worker.initialize(variables)
    else:
        with pytest.raises(NonFiniteError, match=r"^b: expected first variables"):
            worker.initialize(variables)

    assert worker.store.status(101.0).initialized == is_taken


def test_a_superseded_session_cannot_even_pull() -> None:
    """A zombie learns that it is one by whatever it tries."""
    worker = _start()
    worker.store.join("ann", "newer", 101.0)

    for call in (
        lambda: worker.store.pull("s", 101.0),
        lambda: worker.initialize(_model()),
        lambda: worker.push(_model()),
    ):
        with pytest.raises(SessionSupersededError, match=r"^session: expected the"):
            call()


# Counting


def test_a_push_counts_for_the_rate_when_it_is_judged() -> None:
    """However long its body has been on the way."""
    worker = _start()
    header = worker.header(_model(), seq=1)

    worker.store.push(header, _hand_over(_model()), now=101.0, clock=lambda: 150.0)

    assert worker.store.status(151.0).pushes_per_s > 0


def test_the_counters_are_those_of_the_clients() -> None:
    """Mixed traffic of three workers and a stranger, in the order of the seed."""
    generator = np.random.default_rng(11)
    ann = _start(max_staleness=2, max_grad_norm=100.0)
    workers = [ann, _Worker(ann.store, "bob", "t"), _Worker(ann.store, "eve", "u")]
    stranger = _Worker(_open_store(), "joe", "v")
    stranger.store = ann.store
    kinds: dict[str, Callable[[int, _Worker], tuple[float, dict[str, Any]]]] = {
        "fresh": lambda step, _: (1e-3, {"step_read": step}),
        "old": lambda step, _: (1e-3, {"step_read": max(0, step - 2)}),
        "stale": lambda step, _: (1e-3, {"step_read": 0}),
        "nan": lambda step, _: (np.nan, {"step_read": step}),
        "large": lambda step, _: (1e3, {"step_read": step}),
        "ahead": lambda step, _: (1e-3, {"step_read": step + 1}),
        "foreign": lambda step, _: (1e-3, {"generation": "h"}),
        "retry": lambda step, w: (1e-3, {"seq": max(w.seq - 1, 1)}),
    }

    for _ in range(600):
        worker = (*workers, stranger)[generator.choice(4, p=[0.4, 0.3, 0.2, 0.1])]
        kind = kinds[str(generator.choice(list(kinds)))]
        value, changes = kind(ann.store.status(100.0).step, worker)
        worker.count(_model(value), **changes)

    status = ann.store.status(100.0)
    assert status.counts.received == 600
    assert {row.name: _tally(row.counts) for row in status.workers} == {
        worker.name: worker.outcomes for worker in workers
    }
    everything = sum((w.outcomes for w in (*workers, stranger)), Counter[str]())
    assert _tally(status.counts) == everything
    assert len(everything) == 9
    assert sum(status.staleness.values()) == status.counts.judged
    assert status.step == status.counts.applied
    assert status.counts.drop_rate == everything["dropped"] / (
        everything["dropped"] + everything["applied"]
    )


def _tally(counts: Any) -> Counter[str]:
    tally = Counter(
        applied=counts.applied,
        dropped=counts.dropped,
        duplicate=counts.duplicate,
        **counts.rejected,
    )
    return +tally


def test_drops_in_a_row_are_shown_per_worker() -> None:
    """A worker that is always too late is seen, however well the others fare."""
    ann = _start(max_staleness=0)
    bob = _Worker(ann.store, "bob", "t")
    runs = []

    for step in range(3):
        ann.push(_model(), step_read=step)
        bob.push(_model(), step_read=0)
        runs.append([w.consecutive_drops for w in ann.store.status(100.0).workers])
    bob.push(_model(), step_read=3)

    assert runs == [[0, 1], [0, 2], [0, 3]]
    assert [w.consecutive_drops for w in ann.store.status(100.0).workers] == [0, 0]


def test_the_rate_and_the_ages_follow_the_clock_that_is_passed() -> None:
    """The store has none of its own; it started at 100 s."""
    worker = _start()
    store = worker.store
    for seq in range(1, 9):
        header = worker.header(_model(), seq=seq)
        store.push(header, _hand_over(_model()), now=100.0 + seq)
    store.pull("s", now=110.0)

    statuses = [store.status(now) for now in (110.0, 112.5, 200.0)]

    assert [s.uptime_s for s in statuses] == [10.0, 12.5, 100.0]
    assert [s.pushes_per_s for s in statuses] == pytest.approx([8 / 9, 6 / 9.5, 0.0])
    assert [s.workers[0].last_seen_s for s in statuses] == [0.0, 2.5, 90.0]


def test_a_status_says_what_the_server_is() -> None:
    """Before there are variables, and after."""
    store = _open_store(max_staleness=3, max_grad_norm=2.5)
    before = store.status(101.0)

    _Worker(store).initialize(_model())

    after = store.status(101.0)
    assert (before.initialized, after.initialized) == (False, True)
    assert (before.generation, before.incarnation, before.step) == ("g", "i", 0)
    assert (before.rule, before.workers) == ("test", ())
    assert before.limits == Limits(3, 2.5, 2**20, 2**20)
