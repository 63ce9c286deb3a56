"""The `psserver` command.

JAX, optax and gRPC are imported by the commands that need them: `--help` is instant.
"""

import click

from psserver.cli.ask import change, health, inspect, metrics, save, status, stop
from psserver.cli.checkpoint import checkpoint
from psserver.cli.report import write_report
from psserver.cli.serve import serve


@click.group()
@click.version_option(package_name="asyncps")
def main() -> None:
    """Keep the variables of a model that many workers train at once."""


checkpoint.add_command(save)
_ASKING = (status, inspect, metrics, change, health, stop)
for _command in (serve, *_ASKING, write_report, checkpoint):
    main.add_command(_command)
