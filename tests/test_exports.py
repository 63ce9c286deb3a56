"""The public names: these, no others, and each with a word on what it is."""

import importlib
import inspect

import pytest

NAMES = {
    "psserver": ["JsonLines", "Server"],
    "psworker": [
        "Body",
        "Client",
        "Credentials",
        "Gradients",
        "Rows",
        "Shard",
        "Task",
        "connect",
    ],
}
EACH = [(package, name) for package, names in NAMES.items() for name in names]


@pytest.mark.parametrize(("package", "names"), NAMES.items())
def test_a_package_exports_just_its_public_names(
    package: str, names: list[str]
) -> None:
    """A new name is added here too, or has not been thought of as public."""
    module = importlib.import_module(package)

    assert module.__all__ == names


@pytest.mark.parametrize(("package", "name"), EACH)
def test_a_public_name_and_its_methods_are_documented(package: str, name: str) -> None:
    """A dataclass's made-up docstring is none."""
    found = getattr(importlib.import_module(package), name)

    members = inspect.getmembers(found) if inspect.isclass(found) else []
    methods = [
        value
        for key, value in members
        if not key.startswith("_")
        if inspect.isroutine(value) or isinstance(value, property)
    ]

    assert found.__name__ == name
    assert found.__module__.startswith((f"{package}.", "pswire."))
    for each in [found, *methods]:
        assert each.__doc__, each
        assert not each.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize("package", NAMES)
@pytest.mark.parametrize("name", ["nothing", "_nothing", "servers", "Tasks"])
def test_an_unknown_name_is_refused(package: str, name: str) -> None:
    """As any module refuses one, though names are looked up late here."""
    module = importlib.import_module(package)

    text = f"^module '{package}' has no attribute '{name}'$"
    with pytest.raises(AttributeError, match=text):
        getattr(module, name)
