"""Objects by their import string, `module:attribute`."""

import difflib
import importlib
import sys
from typing import Any


def load(target: str) -> Any:
    """Import the object that `module:attribute` names.

    Args:
        target: A module's dotted name, a colon, and a dotted path within the module.

    Raises:
        ValueError: The string has another form, or there is no such module or
            attribute. An error from inside the module itself comes through as it is.
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path) or module_name.startswith("."):
        raise ValueError(f"{target}: expected module:attribute, got {target!r}")
    found: Any = _module(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ValueError(
                f"{target}: expected {name!r} in {module_name}, "
                f"got {_near(name, found)}"
            ) from None
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the user's module fails to find is the user's to see.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        places = ", ".join(place or "." for place in sys.path[:3])
        raise ValueError(
            f"{name}: expected a module in {places} or another place of sys.path, "
            f"got none"
        ) from None


def _near(name: str, owner: Any) -> str:
    public = [other for other in dir(owner) if not other.startswith("_")]
    near = difflib.get_close_matches(name, public, n=3)
    return f"only {', '.join(near)}" if near else "nothing like it"
