"""Every option can be set in the environment, by the name that it has as a flag."""

import click
import pytest

from psserver.cli.serve import serve
from psworker.cli import evaluate, launch, run


@pytest.mark.parametrize("command", [serve, run, launch, evaluate])
def test_an_option_s_variable_is_called_as_its_flag(command: click.Command) -> None:
    """`--max-staleness` is PSSERVER_MAX_STALENESS: click makes it of the parameter."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    named = {option.name: option.opts for option in options}

    assert len(named) >= 3
    for name, flags in named.items():
        assert f"--{str(name).replace('_', '-')}" in flags
