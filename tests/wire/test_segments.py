"""The parts of a body that JAX takes as one array each."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pswire import body
from pswire.body import Body
from pswire.layout import ArraySpec, Layout
from pswire.segments import Segment, segments

Arrays = Mapping[str, npt.NDArray[Any]]

_DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.bool_]
_LARGE = (256, 257)  # float32's: over 2**18 bytes.


def _numbers(layout: Layout, seed: int = 0) -> Body:
    """Fill a body; only what belongs to no array is zero."""
    generator = np.random.default_rng(seed)
    arrays = {
        spec.name: generator.integers(1, 9, spec.shape).astype(spec.dtype)
        for spec in layout
    }
    return Body.gather(layout, arrays)


def _names(parts: tuple[Segment, ...]) -> list[list[str]]:
    return [[spec.name for spec, _ in part.arrays] for part in parts]


def _layout(*specs: tuple[str, npt.DTypeLike, tuple[int, ...]]) -> Layout:
    arrays = [ArraySpec(name, np.dtype(dtype), shape) for name, dtype, shape in specs]
    return Layout(tuple(arrays))


@st.composite
def _layouts(draw: st.DrawFn) -> Layout:
    kinds = st.sampled_from(_DTYPES)
    shapes = st.lists(st.integers(0, 40), max_size=2).map(tuple)
    specs = draw(st.lists(st.tuples(kinds, shapes), max_size=12))
    return _layout(
        *((f"v{number}", kind, shape) for number, (kind, shape) in enumerate(specs))
    )


def _same(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


@pytest.mark.parametrize("apart", [False, True])
@given(layout=_layouts())
@settings(max_examples=100, deadline=None)
def test_segments_are_views_of_both_bodies_that_miss_nothing(
    apart: bool, layout: Layout
) -> None:
    """Any layout: each trainable array once, in order, in both bodies' own memory."""
    variables, gradients = _numbers(layout, 1), _numbers(layout.trainable, 2)

    parts = segments(layout, apart=apart)

    whole = [
        {
            name: array
            for part, view in zip(parts, views, strict=True)
            for name, array in part.cut(view).items()
        }
        for views in (
            [part.of_variables(variables) for part in parts],
            [part.of_gradients(gradients) for part in parts],
        )
    ]
    assert _same(
        whole[0], {spec.name: variables[spec.name] for spec in layout.trainable}
    )
    assert _same(whole[1], gradients)
    for part in parts:
        view = part.of_variables(variables)
        assert (view.dtype, view.shape) == (part.dtype, (part.size,))
        assert not part.size or np.shares_memory(view, variables.runs[0][1])


@given(layout=_layouts())
@settings(max_examples=100, deadline=None)
def test_the_gaps_are_all_that_belongs_to_no_array(layout: Layout) -> None:
    """Of arrays full of ones nothing but the gaps is zero."""
    arrays = {spec.name: np.ones(spec.shape, spec.dtype) for spec in layout}
    variables = Body.gather(layout, arrays)

    for part in segments(layout, apart=False):
        view = part.of_variables(variables)
        gaps = np.unique(part.gaps // part.dtype.itemsize)
        assert np.flatnonzero(view == 0).tolist() == gaps.tolist()


def test_neighbours_of_one_type_make_a_segment() -> None:
    """Another type, and an array that is not trainable, end it."""
    layout = _layout(
        ("a", np.float32, (3,)),
        ("b", np.float32, ()),
        ("h", np.float16, (5,)),
        ("c", np.float32, (2, 2)),
        ("n", np.int32, (4,)),
        ("d", np.float32, (1,)),
    )

    parts = segments(layout, apart=False)

    assert _names(parts) == [["a", "b"], ["h"], ["c"], ["d"]]
    assert [part.start for part in parts] == [0, 128, 192, 320]
    assert [part.gradient_start for part in parts] == [0, 128, 192, 256]
    assert [part.size for part in parts] == [17, 5, 4, 1]
    assert [part.gaps.tolist() for part in parts] == [list(range(12, 64)), [], [], []]


@pytest.mark.parametrize(
    ("apart", "names"),
    [
        (False, [["a", "large", "b", "c", "huge"]]),
        (True, [["a"], ["large"], ["b", "c"], ["huge"]]),
    ],
)
def test_large_arrays_may_be_parts_by_themselves(
    apart: bool, names: list[list[str]]
) -> None:
    """Two large ones, though of one type, are never one part then."""
    layout = _layout(
        ("a", np.float32, (3,)),
        ("large", np.float32, _LARGE),
        ("b", np.float32, (2,)),
        ("c", np.float32, ()),
        ("huge", np.float32, (2, *_LARGE)),
    )

    parts = segments(layout, apart=apart)

    assert _names(parts) == names


def test_large_neighbours_are_parted() -> None:
    """Each has the size of its array, without a gap."""
    layout = _layout(*((name, np.float32, _LARGE) for name in "ab"))

    parts = segments(layout, apart=True)

    assert [(part.size, part.gaps.tolist()) for part in parts] == [(256 * 257, [])] * 2
    assert [part.start for part in parts] == list(layout.offsets)


@pytest.mark.parametrize(
    "specs",
    [
        [("e", (0,))],
        [("e", (0,)), ("a", (3,))],
        [("a", (3,)), ("e", (2, 0)), ("b", (5,))],
        [("a", (3,)), ("b", (16,)), ("e", (0,))],
        [("e", (0,)), ("f", (0, 4))],
    ],
)
def test_empty_arrays_take_no_place(specs: list[tuple[str, tuple[int, ...]]]) -> None:
    """Wherever they come they are cut out again, as empty as they were."""
    layout = _layout(("n", np.int8, (7,)), *((n, np.float32, s) for n, s in specs))
    variables = _numbers(layout)

    (part,) = segments(layout, apart=False)

    cut = part.cut(part.of_variables(variables))
    assert _same(cut, {name: variables[name] for name, _ in specs})


@pytest.mark.parametrize(
    "shapes", [[(3, 5)], [(0, 2), (3,), (), (0,), (17,), (2, 2)], [(0,), (3, 0)]]
)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_what_is_cut_can_be_joined(
    shapes: list[tuple[int, ...]], dtype: npt.DTypeLike
) -> None:
    """The same bytes, gaps included."""
    layout = _layout(*((f"v{i}", dtype, shape) for i, shape in enumerate(shapes)))
    variables = _numbers(layout)
    (part,) = segments(layout, apart=False)
    view = part.of_variables(variables)

    joined = part.join(part.cut(jnp.asarray(view)))

    assert joined.dtype == dtype
    assert np.asarray(joined).tobytes() == view.tobytes()


@pytest.mark.parametrize("fill", [1.0, np.nan, np.inf])
def test_the_bytes_that_travel_have_zeros_between_the_arrays(fill: float) -> None:
    """Whatever a rule has made there; its own array keeps that."""
    layout = _layout(("a", np.float32, (3,)), ("b", np.float32, (2,)))
    (part,) = segments(layout, apart=False)
    made = np.full(part.size, fill, np.float32)
    before = made.tobytes()

    travels = part.bytes_of(made)

    arrays = {"a": made[:3], "b": made[:2]}
    assert travels.tobytes() == bytes(body.join(layout, arrays))
    assert made.tobytes() == before


def test_bytes_that_are_zero_already_are_not_copied() -> None:
    """Nearly every rule leaves the gaps alone."""
    layout = _layout(("a", np.float32, (3,)), ("b", np.float32, (2,)))
    (part,) = segments(layout, apart=False)
    view = part.of_variables(_numbers(layout))

    assert np.shares_memory(part.bytes_of(view), view)


@pytest.mark.parametrize("apart", [False, True])
def test_without_a_trainable_array_there_is_no_segment(apart: bool) -> None:
    """Nor without any array at all."""
    assert segments(_layout(), apart=apart) == ()
    assert segments(_layout(("n", np.int32, (3,))), apart=apart) == ()
