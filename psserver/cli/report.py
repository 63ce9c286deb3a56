"""`psserver report`."""

from functools import partial
from pathlib import Path

import click


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The HTML file to write.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=float,
    metavar="LOSS",
    help="Say when the loss first was LOSS or less. May be repeated.",
)
def write_report(file: Path, output: Path, targets: tuple[float, ...]) -> None:
    """Write what the metrics FILE of a server holds as one HTML page, with charts."""
    from psserver.report import page

    try:
        page.write(file, output, targets, partial(click.echo, err=True))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"report: {output}")
