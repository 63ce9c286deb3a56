"""The commands that ask something of a running server."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from psserver.config import ServerConfig
from pswire.credentials import Credentials
from pswire.options import with_credentials
from pswire.signals import interruptible

_ADDRESS = f"{ServerConfig.host}:{ServerConfig.port}"

# The server's own options have PSSERVER_TLS_CERT and the like for themselves.
_credentials = with_credentials("PSSERVER_CLIENT")


@click.command()
@click.argument("address", default=_ADDRESS, envvar="PSSERVER_ADDRESS")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("--watch", "live", is_flag=True, help="Keep it on the terminal, live.")
@_credentials
def status(address: str, as_json: bool, live: bool, credentials: Credentials) -> None:
    """Print the step, the drop rate in all and per worker, and the staleness."""
    if live:
        _watch(address, as_json, credentials)
        return
    from psserver import admin
    from pswire.display import summary

    with _clear_errors():
        current = admin.status(address, credentials)
    if as_json:
        click.echo(json.dumps(current.to_json(), indent=2))
    else:
        summary.show(current, sys.stdout)


@click.command()
@click.argument("what", nargs=-1, metavar="[ADDRESS] [NAME]")
# What cannot be told from a name by its place: it is there for the variable.
@click.option("--address", default=_ADDRESS, envvar="PSSERVER_ADDRESS", hidden=True)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@_credentials
def inspect(
    what: tuple[str, ...], address: str, as_json: bool, credentials: Credentials
) -> None:
    """Print the variables, and what the rule remembers of them.

    With the NAME of one of them, as it is in that list, print what its numbers are
    like: variables/w, say, or "slots[0].mu['w']".
    """
    if what and not what[0].startswith(("variables/", "slots[", "slots.")):
        address, what = what[0], what[1:]
        if ":" not in address:
            raise click.UsageError(
                "expected HOST:PORT, or the name of an array as psserver inspect lists "
                f"it (variables/w, slots[0].mu['w']), got {address!r}"
            )
    if len(what) > 1:
        raise click.UsageError(f"expected one NAME, got {len(what)}")
    from psserver import admin, arrays
    from pswire.display import summary

    with _clear_errors():
        found = admin.inspect(address, what, credentials)
    if as_json:
        click.echo(json.dumps(arrays.to_json(found), indent=2))
    else:
        summary.put(arrays.draw(found), sys.stdout)


def _watch(address: str, as_json: bool, credentials: Credentials) -> None:
    if as_json or not sys.stdout.isatty():
        got = "--json" if as_json else "none"
        raise click.UsageError(
            f"--watch: expected a terminal, got {got}; "
            "psserver metrics --follow is for scripts"
        )
    with _clear_errors(), interruptible(), suppress(KeyboardInterrupt):
        from psserver.watch import watch

        watch(address, sys.stdout, credentials)


@click.command()
@click.argument("address", default=_ADDRESS, envvar="PSSERVER_ADDRESS")
@click.option(
    "--format",
    "style",
    type=click.Choice(["json", "csv"]),
    default="json",
    show_default=True,
    help="A JSON object a line, or a header and a row for the total and each worker.",
)
@click.option("--follow", is_flag=True, help="Once a second, until interrupted.")
@_credentials
def metrics(address: str, style: str, follow: bool, credentials: Credentials) -> None:
    """Print the figures of `status` for scripts, with the time."""
    with _clear_errors(), interruptible(), suppress(KeyboardInterrupt):
        from psserver import output

        output.write(*(address, sys.stdout, credentials), style=style, follow=follow)


@click.command()
@click.argument("address", default=_ADDRESS, envvar="PSSERVER_ADDRESS")
@_credentials
def health(address: str, credentials: Credentials) -> None:
    """Exit with 0 if the server is serving, with 1 if not."""
    from psserver import admin

    with _clear_errors():
        healthy = admin.is_healthy(address, credentials)
    click.echo("serving" if healthy else "not serving")
    sys.exit(0 if healthy else 1)


@click.command("set")
@click.argument("what", nargs=-1, required=True, metavar="[ADDRESS] NAME=VALUE...")
# What cannot be told from a setting by its place: it is there for the variable.
@click.option("--address", default=_ADDRESS, envvar="PSSERVER_ADDRESS", hidden=True)
@_credentials
def change(what: tuple[str, ...], address: str, credentials: Credentials) -> None:
    """Change settings of a running server: all that are named, or none.

    They last until it ends; its next start has those that it is started with.

    \b
    max_staleness=STEPS|off        as --max-staleness of psserver serve
    staleness_policy=NAME[:ARGS]   as --staleness-policy

    \b
    Examples:
      psserver set max_staleness=4
      psserver set max_staleness=off staleness_policy=inverse
      psserver set 127.0.0.1:7070 staleness_policy=adaptive:0.9,2,16
    """  # noqa: D301 - What follows click's mark is not folded.
    if "=" not in what[0]:
        address, what = what[0], what[1:]
    settings = _settings(what)
    from psserver import admin
    from pswire.status import limited

    with _clear_errors():
        limits = admin.change(address, settings, credentials)
    click.echo(limited(limits.max_staleness, limits.staleness_policy))


def _settings(texts: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"expected NAME=VALUE, got {text!r}")
        if name in settings:
            raise click.UsageError(f"{name}: expected once, got twice")
        settings[name] = value
    if not texts:
        raise click.UsageError("expected NAME=VALUE, got none")
    return settings


@click.command()
@click.argument("address", default=_ADDRESS, envvar="PSSERVER_ADDRESS")
@_credentials
def stop(address: str, credentials: Credentials) -> None:
    """Stop the server, with grace: pushes in flight finish."""
    from psserver import admin

    with _clear_errors():
        admin.stop(address, credentials)
    click.echo(f"{address} is stopping")


@click.command()
@click.argument("address", default=_ADDRESS, envvar="PSSERVER_ADDRESS")
@_credentials
def save(address: str, credentials: Credentials) -> None:
    """Have the server save a checkpoint now, and wait for that."""
    from psserver import admin

    with _clear_errors():
        path, step = admin.save_checkpoint(address, credentials)
    click.echo(f"step {step}: {path}")


@contextmanager
def _clear_errors() -> Iterator[None]:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from pswire.errors import ParameterServerError

    try:
        yield
    except (OSError, ParameterServerError) as error:
        raise click.ClickException(str(error)) from error
