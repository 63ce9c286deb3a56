"""Pytrees become named arrays and come back in the form that was asked for."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pswire import trees
from pswire.errors import VariableMismatchError

Make = Callable[..., Any]


class Layer(NamedTuple):
    """A node whose parts have names."""

    w: Any
    b: Any


TREES: dict[str, tuple[Callable[[Make], Any], list[str]]] = {
    "dict": (lambda a: {"b": a(2), "a": a(3)}, ["a", "b"]),
    "nested": (
        lambda a: {"h": {"w": a(2, 2)}, "o": [a(1), a()]},
        ["h/w", "o/0", "o/1"],
    ),
    "named tuple": (lambda a: (Layer(w=a(2), b=a(1)),), ["0/w", "0/b"]),
    "none": (lambda a: {"b": None, "w": a(2), "z": [None]}, ["w"]),
    "one array": (lambda a: a(4), ["params"]),
    "zero size": (lambda a: {"w": a(0, 3)}, ["w"]),
    "nothing": (lambda a: {"w": []}, []),
}
KINDS = ["float32", "float16", "bfloat16", "int32", "uint8", "bool"]


def counting(kind: npt.DTypeLike, like: Callable[[Any], Any]) -> Make:
    """Make arrays of a shape that hold 0, 1, 2 and so on, numpy's or JAX's."""
    return lambda *shape: like(np.arange(np.prod(shape)).reshape(shape).astype(kind))


@pytest.mark.parametrize(("make", "names"), TREES.values(), ids=TREES.keys())
@pytest.mark.parametrize(
    ("like", "kind"), [(np.asarray, np.ndarray), (jnp.asarray, jax.Array)]
)
def test_a_tree_comes_back_as_it_went(
    make: Callable[[Make], Any],
    names: list[str],
    like: Callable[[Any], Any],
    kind: type[Any],
) -> None:
    """Names say the path, in the tree's order; numpy stays numpy and JAX stays JAX."""
    tree = make(counting("float32", like))

    arrays = trees.flatten(tree)
    back = trees.unflatten(tree, dict(reversed(arrays.items())))

    assert list(arrays) == names
    assert str(jax.tree.structure(back)) == str(jax.tree.structure(tree))
    for got, sent in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert isinstance(got, kind)
        assert (got.shape, got.dtype) == (sent.shape, sent.dtype)
        assert got.tobytes() == sent.tobytes()


@pytest.mark.parametrize("dtype", KINDS)
def test_jax_arrays_keep_their_dtype_both_ways(dtype: str) -> None:
    """Also those that numpy has no name for."""
    tree = {"w": counting(jnp.dtype(dtype), jnp.asarray)(3)}

    back = trees.unflatten(tree, trees.flatten(tree))

    assert back["w"].dtype == dtype
    assert back["w"].tobytes() == tree["w"].tobytes()


def test_numpy_arrays_are_not_copied() -> None:
    """A model of gigabytes is not doubled by its names."""
    tree = {"w": np.ones(3, np.float32)}

    arrays = trees.flatten(tree)
    back = trees.unflatten(tree, arrays)

    assert arrays["w"] is tree["w"]
    assert back["w"] is tree["w"]


def test_shapes_alone_are_a_template() -> None:
    """What `jax.eval_shape` returns makes JAX arrays, and costs no memory itself."""
    like = jax.eval_shape(lambda: {"h": Layer(jnp.zeros((2, 3)), jnp.zeros(3, int))})
    arrays = {"h/w": np.ones((2, 3), np.float32), "h/b": np.arange(3, dtype=np.int32)}

    tree = trees.unflatten(like, arrays)

    assert jax.tree.all(jax.tree.map(lambda leaf: isinstance(leaf, jax.Array), tree))
    assert tree["h"].w.tolist() == arrays["h/w"].tolist()
    assert tree["h"].b.tolist() == [0, 1, 2]


def test_gradients_of_integers_are_left_out() -> None:
    """JAX gives them the type float0, which holds nothing."""
    params = {"n": jnp.arange(2), "w": jnp.ones(2)}

    gradients = jax.grad(lambda tree: tree["w"].sum(), allow_int=True)(params)

    assert list(gradients) == ["n", "w"]
    assert list(trees.flatten(gradients)) == ["w"]


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (2.5, np.float32),
        (7, np.int32),
        (True, np.bool_),
        (np.float32(2.5), np.float32),
        (np.float64(0.1), np.float64),
        (np.int64(2**40), np.int64),
        (np.bool_(True), np.bool_),
        (ml_dtypes.bfloat16(1.5), ml_dtypes.bfloat16),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_numbers_are_scalars(leaf: Any, dtype: npt.DTypeLike) -> None:
    """Python's become what JAX makes of them; numpy's have a dtype, and keep it."""
    arrays = trees.flatten({"x": leaf})

    assert (arrays["x"].shape, arrays["x"].dtype) == ((), np.dtype(dtype))
    assert arrays["x"].tobytes() == np.asarray(leaf, dtype).tobytes()


def test_numbers_in_a_template_become_jax_arrays() -> None:
    """A pull brings arrays, which is what a loss function can differentiate."""
    tree = trees.unflatten({"x": 1.0}, {"x": np.array(2.5, np.float32)})

    assert isinstance(tree["x"], jax.Array)
    assert float(tree["x"]) == 2.5


X, Y = np.ones(2, np.float32), np.ones(3, np.float32)
STRUCT = jax.ShapeDtypeStruct((2,), np.float32)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a/b": X, "a": {"b": Y}}, "a/b: expected one leaf, got two"),
        ({"params": X, "": Y}, "params: expected one leaf, got two"),
        ({"a": [X, "text"]}, "a/1: expected an array, got str"),
        ({"a": {"f": len}}, "a/f: expected an array, got builtin_function_or_method"),
        ({"a": 1j}, "a: expected an array, got complex"),
        ("text", "params: expected an array, got str"),
        ({"a": jax.random.key(0)}, "a: expected "),
        ({"a": 2**40}, "a: expected "),
    ],
    ids=[
        *("two-paths", "empty-path", "str", "function", "complex", "root"),
        *("random-key", "too-large-int"),
    ],
)
def test_a_leaf_that_cannot_travel_is_refused_by_its_name(tree: Any, text: str) -> None:
    """On the worker's side, before anything is sent."""
    with pytest.raises(VariableMismatchError, match=f"^{re.escape(text)}"):
        trees.flatten(tree)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"w": Y}, "w: expected (2,) float32, got (3,) float32"),
        ({"w": X.astype(np.float64)}, "w: expected (2,) float32, got (2,) float64"),
        ({}, "w: expected (2,) float32, got none"),
        (
            {"w": X, "more": Y},
            "more: expected one of w, got (3,) float32 of another name",
        ),
    ],
    ids=["shape", "dtype", "missing", "extra"],
)
@pytest.mark.parametrize(
    "like", [X, jnp.ones(2), jax.ShapeDtypeStruct((2,), "float32")]
)
def test_arrays_that_are_not_the_template_s_are_refused(
    arrays: dict[str, npt.NDArray[Any]], text: str, like: Any
) -> None:
    """The message begins with the variable's name."""
    with pytest.raises(VariableMismatchError, match=f"^{re.escape(text)}$"):
        trees.unflatten({"w": like}, arrays)
