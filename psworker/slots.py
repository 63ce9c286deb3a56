"""What a rule remembers of each variable, told by the arrays' names."""

import re
from collections.abc import Mapping

from pswire.errors import VariableMismatchError
from pswire.inspection import VARIABLES
from pswire.layout import Layout

_KEY = re.compile(r"""\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\]""")  # As repr quotes.


def slot_names(layout: Layout) -> tuple[str, ...]:
    """Return the slots that are kept for variables, each once.

    Args:
        layout: Of all that a server keeps, as an `Inspection` has it.
    """
    return tuple(dict.fromkeys(slot for slot, _ in _slots(layout)))


def slot_of(layout: Layout, slot: str, variable: str) -> str:
    """Return the name of the array that is a variable's slot.

    Args:
        layout: See `slot_names`.
        slot: One of those.
        variable: The variable's name.

    Raises:
        VariableMismatchError: There is no such slot.
    """
    slots = _slots(layout)
    if (slot, variable) not in slots:
        known = ", ".join(name for name, of in slots if of == variable) or "none"
        raise VariableMismatchError(
            f"{variable}: expected a slot that it has, which are {known}, got {slot}"
        )
    return slots[slot, variable]


def _slots(layout: Layout) -> Mapping[tuple[str, str], str]:
    """Return {(slot, variable): the array's name}."""
    variables = {
        f"[{variable!r}]": variable
        for name in layout.places
        if (variable := name.removeprefix(VARIABLES)) != name
    }
    slots: dict[tuple[str, str], str] = {}
    for name in layout.places:
        if name.startswith(VARIABLES):
            continue
        # A rule may have labels like names: the last key is the variable's.
        keys = [key for key in _KEY.finditer(name) if key.group() in variables]
        for key in keys[-1:]:
            slot = name[: key.start()] + name[key.end() :]
            slots[slot, variables[key.group()]] = name
    return slots
