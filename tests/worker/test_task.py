"""What a user brings: a task, and the shard of the data that a worker reads."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from psworker import Shard, Task
from psworker.task import Leased, load_task, parse_shard

FORM = "I/N, as in 0/4, or auto/N for parts that the server leases"
_MODULE = """
import psworker

def _task():
    return psworker.Task(init=dict, loss=lambda params, batch: 0.0, batches=list)

task = _task()
answer = 42

class nested:
    task = task

def make():
    return task

def make_nothing():
    return None

def fail():
    raise RuntimeError("the data are gone")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module with tasks in it, to be imported in this test alone."""
    (tmp_path / "my_tasks.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    yield "my_tasks"

    sys.modules.pop("my_tasks", None)


@pytest.mark.parametrize(
    ("text", "shard"),
    [
        *(("0/1", Shard(0, 1)), ("2/4", Shard(2, 4)), ("03/10", Shard(3, 10))),
        ("auto/16", Leased(16)),
    ],
)
def test_a_shard_is_read_from_its_text(text: str, shard: Shard | Leased) -> None:
    """The index counts from 0, the count from 1; or the server tells the index."""
    read = parse_shard(text)

    assert read == shard


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, FORM) for text in ("", "3", "1/", "-1/4", "1/2/3", "a/b")),
        *((text, FORM) for text in ("auto", "auto/", "auto/0", "auto/1/2", "Auto/4")),
        *((text, "I/N with 0 <= I < N") for text in ("4/4", "0/0")),
    ],
)
def test_a_text_that_is_no_shard_is_refused(text: str, expected: str) -> None:
    """The message says which of the two it is: another form, or out of range."""
    with pytest.raises(ValueError, match=f"^shard: expected {expected}, got .*{text}"):
        parse_shard(text)


def test_the_whole_of_the_data_is_one_shard() -> None:
    """A worker on its own need not speak of shards."""
    whole = Shard()

    assert whole == Shard(0, 1)


def test_a_task_needs_to_say_only_what_cannot_be_guessed() -> None:
    """Evaluation, auxiliary results and the seed have defaults."""
    task = Task(init=dict, loss=max, batches=lambda shard: [])

    assert (task.evaluate, task.has_aux, task.seed) == (None, False, 0)


@pytest.mark.parametrize("attribute", ["task", "make", "nested.task"])
def test_a_task_is_found_by_its_import_string(module: str, attribute: str) -> None:
    """It may be the task itself, a function that makes it, or lie deeper."""
    task = load_task(f"{module}:{attribute}")

    assert isinstance(task, Task)
    assert task.init is dict


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("answer", "expected a psworker.Task or a function that returns one, got int"),
        (
            "make_nothing",
            "expected a psworker.Task or a function that returns one, got NoneType",
        ),
        ("taks", "expected 'taks' in .*, got only task"),
    ],
)
def test_what_is_no_task_is_named_with_what_it_is(
    module: str, attribute: str, message: str
) -> None:
    """The import string comes first, so that it can be found in a script."""
    with pytest.raises(ValueError, match=f"^{module}:{attribute}: {message}"):
        load_task(f"{module}:{attribute}")


def test_an_error_from_inside_the_users_module_comes_through(module: str) -> None:
    """It is the user's to see, with its own type and text."""
    with pytest.raises(RuntimeError, match=r"^the data are gone$"):
        load_task(f"{module}:fail")
