"""The options of every command that calls a server: what to show it, how to know it."""

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from pswire.credentials import SYSTEM, Credentials

_FILE = click.Path(dir_okay=False)


def with_credentials(prefix: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options, and an argument `credentials` in their place.

    Args:
        prefix: Of their variables in the environment, and of that of the token itself,
            which no option brings: whoever lists the processes would see it.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*arguments: Any, **options: Any) -> Any:
            files = {name: options.pop(name) for name in _OPTIONS}
            # A file that is named on the command line wins.
            token = "" if files["token_file"] else os.environ.get(f"{prefix}_TOKEN", "")
            try:
                credentials = Credentials(token=token, **files)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            return command(*arguments, credentials=credentials, **options)

        decorated: Callable[..., Any] = call
        for name, text in reversed(_OPTIONS.items()):
            option = click.option(
                f"--{name.replace('_', '-')}",
                type=_FILE,
                envvar=f"{prefix}_{name.upper()}",
                metavar="FILE",
                help=text.format(prefix=prefix),
            )
            decorated = option(decorated)
        return decorated

    return decorate


_OPTIONS = {
    "token_file": "Whose first line is the token to show the server; or {prefix}_TOKEN "
    "is it.",
    "tls_ca": "PEM certificates, of which one has to vouch for the server's: then all "
    f"is encrypted. {SYSTEM} trusts what this system does.",
    "tls_cert": "A certificate to show a server that asks for one, in PEM.",
    "tls_key": "Its private key, in PEM.",
}
