"""The variables that the commands read from the environment."""

import click

from psserver.cli.ask import status
from psserver.cli.serve import serve
from psworker.cli import run


def _defaults(command: click.Command, prefix: str) -> dict[str, str]:
    return {
        # Of what has none, click says so in more ways than one.
        f"{prefix}_{each.name}".upper(): str(each.default)
        if isinstance(each.default, (str, int, float))
        else ""
        for each in command.params
    }


_SERVERS = _defaults(serve, "PSSERVER")
_WORKERS = _defaults(run, "PSWORKER")

OF_SERVER = set(_SERVERS)
OF_CLIENT = {
    each.envvar
    for each in status.params
    if isinstance(each.envvar, str) and each.envvar != "PSSERVER_ADDRESS"
}
OF_WORKER = set(_WORKERS)
DEFAULTS = _SERVERS | _WORKERS
"""What each is where it is not set; "" where there is no such thing."""
