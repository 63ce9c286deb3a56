"""The variables that the commands read from the environment."""

import click

from psserver.cli.serve import serve
from psworker.cli import run


def _names(command: click.Command, prefix: str) -> set[str]:
    return {f"{prefix}_{each.name}".upper() for each in command.params}


OF_SERVER = _names(serve, "PSSERVER")
OF_WORKER = _names(run, "PSWORKER")
