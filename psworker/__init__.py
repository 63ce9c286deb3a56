"""Changes the variables: pulls them, differentiates with JAX, pushes gradients."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pswire.body import Body as Body
    from pswire.credentials import Credentials as Credentials
    from pswire.rows import Rows as Rows
    from psworker.client import Client as Client
    from psworker.client import connect as connect
    from psworker.gradients import Gradients as Gradients
    from psworker.task import Shard as Shard
    from psworker.task import Task as Task

_HOMES = {
    "Body": "pswire.body",
    "Client": "psworker.client",
    "Credentials": "pswire.credentials",
    "Gradients": "psworker.gradients",
    "Rows": "pswire.rows",
    "Shard": "psworker.task",
    "Task": "psworker.task",
    "connect": "psworker.client",
}

__all__ = [
    "Body",
    "Client",
    "Credentials",
    "Gradients",
    "Rows",
    "Shard",
    "Task",
    "connect",
]


def __getattr__(name: str) -> Any:
    # The client loads JAX, which takes seconds; `psworker --help` must not.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
