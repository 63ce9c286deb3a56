"""Slots, told by the names of arrays."""

import numpy as np
import pytest

from pswire.layout import Layout
from psworker.slots import slot_names, slot_of

QUOTES = "a'b\"]['w']\\"


def _layout(*names: str) -> Layout:
    return Layout.of(dict.fromkeys(names, np.zeros(2, np.float32)))


@pytest.mark.parametrize(
    ("array", "slot", "variable"),
    [
        ("slots[0].mu['w']", "slots[0].mu", "w"),
        ("slots['w']", "slots", "w"),
        ("slots[0]['w'].row", "slots[0].row", "w"),
        ("slots.states['w'].mu['b']", "slots.states['w'].mu", "b"),
        ("slots[0].mu['a/b']", "slots[0].mu", "a/b"),
        ('slots[0].mu["it\'s"]', "slots[0].mu", "it's"),
        ("slots[0].mu[\"x['w']\"]", "slots[0].mu", "x['w']"),
        (f"slots[0].mu[{QUOTES!r}].row", "slots[0].mu.row", QUOTES),
        (f"slots[{QUOTES!r}].mu['w']", f"slots[{QUOTES!r}].mu", "w"),
    ],
)
def test_a_slot_is_what_is_left_of_a_name_without_its_variable(
    array: str, slot: str, variable: str
) -> None:
    """Whatever labels a rule has, and whatever is in the variables' names."""
    variables = ("w", "b", "a/b", "it's", "x['w']", QUOTES)
    layout = _layout(*(f"variables/{name}" for name in variables), array)

    assert slot_of(layout, slot, variable) == array
    assert slot_names(layout) == (slot,)


def test_what_is_no_single_variable_s_is_no_slot() -> None:
    """A count, a hyperparameter; each slot is named once."""
    layout = _layout(
        *("variables/w", "variables/b", "slots[0].count", "slots.hyper['rate']"),
        *("slots[0].mu['b']", "slots[0].nu['b']", "slots[0].mu['w']"),
    )

    assert slot_names(layout) == ("slots[0].mu", "slots[0].nu")
