"""Import strings: what is wrong with one is said in its own words."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pswire.imports import load

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules that can be imported for as long as the test runs."""
    before = set(sys.modules)

    def put(name: str, text: str) -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield put

    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "value"),
    [("my_task:task", 1), ("my_task:Made.inner", 2), ("my_pack.my_task:task", 3)],
)
def test_an_object_is_found_by_its_string(
    write: Write, target: str, value: int
) -> None:
    """In a module or a package, at its top or below."""
    write("my_task", "task = 1\nclass Made:\n    inner = 2\n")
    write("my_pack.my_task", "task = 3\n")

    found = load(target)

    assert found == value


@pytest.mark.parametrize(
    "target", ["", "my_task", ":task", "my_task:", ":", ".my_task:task", "..:task"]
)
def test_a_string_of_another_form_is_refused(target: str) -> None:
    """The form is said, with what came; a relative name is relative to nothing."""
    with pytest.raises(ValueError, match="expected module:attribute, got ") as caught:
        load(target)

    assert str(caught.value).endswith(repr(target))


@pytest.mark.parametrize("module", ["no_task", "no_pack.my_task", "my_task.py"])
def test_a_missing_module_is_named_with_where_it_was_sought(
    write: Write, tmp_path: Path, module: str
) -> None:
    """A file's name in a module's place is the commonest of mistakes."""
    write("my_task", "")

    with pytest.raises(ValueError, match=f"^{module}: expected a module in ") as caught:
        load(f"{module}:task")

    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tusk", "^my_task:tusk: expected 'tusk' in my_task, got only task$"),
        ("Made.iner", "expected 'iner' in my_task, got only inner$"),
        ("unlike_all", "expected 'unlike_all' in my_task, got nothing like it$"),
        ("_tas", "expected '_tas' in my_task, got only task$"),
        ("task.", "expected '' in my_task, got nothing like it$"),
    ],
)
def test_a_missing_attribute_is_named_with_what_is_near(
    write: Write, path: str, text: str
) -> None:
    """Only public names are offered."""
    write("my_task", "task = _tassk = 1\nclass Made:\n    inner = 2\n")

    with pytest.raises(ValueError, match=text):
        load(f"my_task:{path}")


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("import no_such_library", ModuleNotFoundError, "no_such_library"),
        ("import my_task_helper", ModuleNotFoundError, "my_task_helper"),
        ("import my_tas", ModuleNotFoundError, "my_tas"),
        ("from my_task import later", ImportError, "cannot import name 'later'"),
        ("from json import no_such_name", ImportError, "no_such_name"),
        ("raise ValueError('of the user')", ValueError, "^of the user$"),
        ("task = 1 +", SyntaxError, "invalid syntax"),
    ],
)
def test_what_the_user_s_module_raises_comes_through(
    write: Write, source: str, error: type[Exception], text: str
) -> None:
    """It is the user's to see, with the traceback, not a wrong import string."""
    write("my_task", source)

    with pytest.raises(error, match=text):
        load("my_task:task")
