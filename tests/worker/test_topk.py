"""What top-k sends of gradients, and what it keeps of them."""

from collections.abc import Callable
from math import ceil
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire.encoding import BFLOAT16, PLAIN, Encoding
from pswire.layout import Layout
from psworker.topk import Choice, TopK

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

NARROW = Encoding(BFLOAT16)
SEED = 5
SIZE = 200_000  # Elements: more than a sample has to tell about.


def chosen(gradient: Array, fraction: float) -> Array:
    """Return which elements of one gradient are sent."""
    choice = TopK(fraction).choose({"w": gradient}, Layout.of({"w": gradient}), "g")
    (where,) = choice.indices.values()
    assert choice.counts == (len(where),)
    assert where.dtype == np.uint32
    assert (where[1:] > where[:-1]).all()
    return where


def assert_largest(where: Array, gradient: Array, count: int) -> None:
    """Compare with a plain sort; of equal ones any will do."""
    flat = np.abs(np.asarray(gradient, np.float64).reshape(-1))
    assert len(where) == count
    np.testing.assert_array_equal(np.sort(flat[where]), np.sort(flat)[-count:])


def sent(choice: Choice, wire: Layout) -> Arrays:
    """Return what arrives of a choice: full arrays, zero where nothing was sent."""
    arrived = {}
    for spec in wire:
        array = choice.arrays[spec.name]
        where = choice.indices.get(spec.name, slice(None))
        full = np.zeros(array.size, np.float64)
        full[where] = array.reshape(-1)[where].astype(spec.dtype)
        arrived[spec.name] = full.reshape(array.shape)
    return arrived


# Which are sent


@settings(deadline=None, derandomize=True)
@given(
    magnitudes=st.lists(st.integers(-9, 9), min_size=200, max_size=400),
    fraction=st.floats(0.001, 0.2),
)
def test_the_largest_are_sent(magnitudes: list[int], fraction: float) -> None:
    """Of so few magnitudes, most are ties."""
    gradient = np.asarray(magnitudes, np.float32)

    where = chosen(gradient, fraction)

    assert_largest(where, gradient, ceil(fraction * len(magnitudes)))


def _spikes(places: slice) -> Callable[[np.random.Generator], Array]:
    def make(rng: np.random.Generator) -> Array:
        gradient = rng.standard_normal(SIZE, np.float32)
        gradient[places] *= 1000
        return gradient

    return make


def _with(values: Array) -> Callable[[np.random.Generator], Array]:
    def make(rng: np.random.Generator) -> Array:
        gradient = rng.standard_normal(SIZE, np.float32)
        gradient[rng.choice(SIZE, len(values), replace=False)] = values
        return gradient

    return make


# How an array lies to whoever looks at every so manieth element.
LARGE: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda rng: rng.standard_normal(SIZE, np.float32),
    "heavy tails": lambda rng: rng.standard_normal(SIZE, np.float32) ** 5,
    "a matrix": lambda rng: rng.standard_normal((400, SIZE // 400), np.float32).T,
    "all that is large is seen": _spikes(slice(0, None, 101)),
    "nothing that is large is seen": _spikes(slice(1, None, 101)),
    "large at the end": _spikes(slice(-SIZE // 100, None)),
    "rising": lambda rng: np.arange(SIZE, dtype=np.float32),
    "falling": lambda rng: -np.arange(SIZE, 0, -1, dtype=np.float32),
    "all the same": lambda rng: np.full(SIZE, -2.5, np.float32),
    "all zero": lambda rng: np.zeros(SIZE, np.float32),
    "two values": lambda rng: rng.integers(0, 2, SIZE).astype(np.float32),
    "almost all zero": lambda rng: np.where(
        rng.random(SIZE) < 1e-4, rng.standard_normal(SIZE), 0
    ).astype(np.float32),
    "zero where it is looked at": lambda rng: np.where(
        np.arange(SIZE) % 101 == 0, 0, rng.standard_normal(SIZE)
    ).astype(np.float32),
    "infinities": _with(np.asarray([np.inf, -np.inf] * 9)),
    "subnormals": lambda rng: (
        rng.integers(-100, 100, SIZE).astype(np.float32) * np.float32(1e-45)
    ),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("fraction", [1e-5, 0.005, 0.01, 0.1, 0.3])
def test_the_largest_of_a_large_gradient_are_sent(
    make: Callable[[np.random.Generator], Array], fraction: float
) -> None:
    """Exactly those, though a sample says where to look."""
    gradient = make(np.random.default_rng(SEED))

    where = chosen(gradient, fraction)

    assert_largest(where, gradient, ceil(fraction * SIZE))


@pytest.mark.parametrize("count", [1, 100, 2000, SIZE // 2, SIZE])
@pytest.mark.parametrize("size", [SIZE, 300], ids=["large", "small"])
def test_nan_is_sent_before_all_others(size: int, count: int) -> None:
    """So the server sees it, however few elements travel, and refuses the push."""
    rng = np.random.default_rng(SEED)
    gradient = rng.standard_normal(size, np.float32)
    count = min(count, size)
    gradient[rng.choice(size, count, replace=False)] = np.nan

    where = chosen(gradient, 0.01)

    assert np.isnan(gradient[where]).sum() == min(count, size // 100)


@pytest.mark.parametrize(
    ("wire", "shape", "fraction", "count"),
    [
        (PLAIN, (100,), 0.01, 1),
        (PLAIN, (1000,), 0.001, 1),
        (PLAIN, (1000,), 0.0101, 11),
        (PLAIN, (1000,), 0.49, 490),
        (PLAIN, (1000,), 0.5, 1000),  # An index and an element are as long as two.
        (PLAIN, (1000,), 1.0, 1000),
        (NARROW, (1000,), 0.32, 320),
        (NARROW, (1000,), 0.34, 1000),  # As long as three.
        (PLAIN, (32,), 0.01, 32),  # 128 bytes, which one of each takes.
        (PLAIN, (33,), 0.01, 1),
        (NARROW, (64,), 0.01, 64),
        (NARROW, (65,), 0.01, 1),
        (PLAIN, (), 0.01, 1),
        (PLAIN, (0, 3), 0.01, 0),
        (PLAIN, (5, 4, 5), 0.03, 3),
    ],
)
def test_an_array_that_is_not_worth_it_travels_whole(
    wire: Encoding, shape: tuple[int, ...], fraction: float, count: int
) -> None:
    """With their gaps, a few elements may take as many bytes as all of them."""
    gradient = np.ones(shape, np.float32)
    layout = wire.layout(Layout.of({"w": gradient}))

    choice = TopK(fraction).choose({"w": gradient}, layout, "g")

    assert choice.counts == (count,)
    assert bool(choice.indices) == (count < gradient.size)
    travels = Encoding(wire.wire_dtype, choice.counts).layout(
        Layout.of({"w": gradient})
    )
    assert travels.nbytes <= layout.nbytes


def test_an_array_without_an_index_for_every_element_travels_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here of so few elements that the arrays fit in memory."""
    monkeypatch.setattr("psworker.topk._MAX_SIZE", 200)
    gradients = {"a": np.ones(200, np.float32), "b": np.ones(201, np.float32)}

    choice = TopK(0.01).choose(gradients, Layout.of(gradients), "g")

    assert choice.counts == (2, 201)
    assert choice.arrays["b"] is gradients["b"]


# What is kept


DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("narrow", [False, True], ids=["plain", "bf16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_what_has_been_sent_and_what_is_kept_is_what_was_given(
    dtype: Any, narrow: bool
) -> None:
    """To the last bit, over many pushes: the sums of small integers are exact.

    What is kept shows when gradients of zero follow, until all has come.
    """
    rng = np.random.default_rng(SEED)
    shapes = {"w": (40, 30), "ü/b": (300,), "few": (3,)}
    given = {name: np.zeros(shape) for name, shape in shapes.items()}
    arrived = {name: np.zeros(shape) for name, shape in shapes.items()}
    top_k, counts = TopK(0.05), set()

    for number in range(80):
        gradients = {
            name: (rng.integers(-99, 99, shape) * (number < 20)).astype(dtype)
            for name, shape in shapes.items()
        }
        encoding = NARROW if narrow else PLAIN
        wire = encoding.layout(Layout.of(gradients))
        choice = top_k.choose(gradients, wire, "g")
        for name, array in sent(choice, wire).items():
            arrived[name] += array
            given[name] += gradients[name].astype(np.float64)
        counts.add(choice.counts)
        top_k.keep(choice, wire)

    assert counts == {(60, 15, 3)}
    for name, total in given.items():
        np.testing.assert_array_equal(arrived[name], total)


def test_what_rounding_takes_away_is_kept() -> None:
    """Until it is large enough by itself: each of three pushes sends what is left."""
    third = np.zeros(200, np.float32)
    third[7] = 1 / 3
    layout = NARROW.layout(Layout.of({"w": third}))
    top_k = TopK(0.005)
    arrived = []

    for gradient in (third, np.zeros_like(third), np.zeros_like(third)):
        choice = top_k.choose({"w": gradient}, layout, "g")
        arrived.append(sent(choice, layout)["w"][7])
        top_k.keep(choice, layout)

    assert arrived[0] == np.float32(1 / 3).astype(BFLOAT16) != np.float32(1 / 3)
    assert sum(arrived) == np.float32(1 / 3)


def _pushed(top_k: TopK, gradient: Array, generation: str = "g") -> list[int]:
    """Push; return which elements were sent."""
    layout = Layout.of({"w": gradient})
    choice = top_k.choose({"w": gradient}, layout, generation)
    top_k.keep(choice, layout)
    return choice.indices["w"].tolist()


FIRST = np.asarray([1, 3, 2] + [0] * 97, np.float32)
NOTHING = np.zeros(100, np.float32)


def test_a_choice_alone_changes_nothing() -> None:
    """Whoever was refused chooses again, and finds what was there before."""
    top_k = TopK(0.01)
    _pushed(top_k, FIRST)
    poison = np.full(100, np.nan, np.float32)
    longer = np.ones(101, np.float32)

    for gradient, generation in ((poison, "g"), (longer, "g"), (FIRST, "h")):
        top_k.choose({"w": gradient}, Layout.of({"w": gradient}), generation)

    assert [_pushed(top_k, NOTHING) for _ in range(2)] == [[2], [0]]


def test_what_is_kept_belongs_to_one_generation() -> None:
    """Of another one it is forgotten, and does not come back."""
    top_k = TopK(0.01)
    _pushed(top_k, FIRST)

    elsewhere = _pushed(top_k, np.roll(FIRST, 50), "h")
    again = top_k.choose({"w": NOTHING}, Layout.of({"w": NOTHING}), "g")

    assert elsewhere == [51]
    assert not again.arrays["w"].any()


def test_gradients_of_another_shape_are_passed_on_as_they_are() -> None:
    """The server will refuse them; they do not become something else before."""
    top_k = TopK(0.01)
    _pushed(top_k, FIRST)
    matrix = np.arange(1000, dtype=np.float32).reshape(10, 100)

    choice = top_k.choose({"w": matrix}, Layout.of({"w": matrix}), "g")

    np.testing.assert_array_equal(choice.arrays["w"], matrix)


def test_the_callers_gradients_are_left_as_they_were() -> None:
    """They may be what JAX computed, or be pushed again."""
    top_k = TopK(0.01)
    gradient = FIRST.copy()
    gradient.flags.writeable = False

    for _ in range(3):
        _pushed(top_k, gradient)

    np.testing.assert_array_equal(gradient, FIRST)


def test_the_order_of_arrays_may_change() -> None:
    """What is kept goes by name."""
    top_k = TopK(0.01)
    layout = Layout.of({"a": FIRST, "b": NOTHING})
    top_k.keep(top_k.choose({"a": FIRST, "b": NOTHING}, layout, "g"), layout)

    turned = {"b": NOTHING, "a": NOTHING}
    choice = top_k.choose(turned, Layout.of(turned), "g")

    assert list(choice.arrays) == ["b", "a"]
    assert sent(choice, Layout.of(turned))["a"][2] == 2
    assert not choice.arrays["b"].any()
