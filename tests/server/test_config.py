"""A server's settings: their defaults and their checks."""

import math
from dataclasses import FrozenInstanceError
from typing import Any

import optax
import pytest

import psserver
from psserver.config import ServerConfig
from psserver.policies.terms import Terms
from psserver.policies.weights import Inverse


def test_a_server_is_safe_as_it_comes() -> None:
    """It listens on this machine alone, and drops what is too stale."""
    config = ServerConfig()

    assert config.terms == ServerConfig(max_staleness=8).terms == Terms(8)
    assert config == ServerConfig(
        name="asyncps",
        staleness_policy="drop",
        max_grad_norm=None,
        host="127.0.0.1",
        port=7070,
        http_port=None,
        insecure=False,
        reflection=False,
        durability="none",
        data_dir=None,
        checkpoint_every="60s",
        keep=3,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, r"name: expected 1 to 64 letters of A-Za-z0-9\._-, got ''"),
        ({"name": "x" * 65}, r"name: expected 1 to 64 letters of .*, got 'x*'"),
        ({"name": "a b"}, r"name: expected 1 to 64 letters of .*, got 'a b'"),
        ({"name": "a\n"}, r"name: expected 1 to 64 letters of .*, got 'a\\n'"),
        ({"staleness_policy": "x"}, r"staleness_policy: expected one of .*, got 'x'"),
        (
            {"staleness_policy": "drop:4", "max_staleness": 8},
            r"staleness_policy: expected drop beside max_staleness, got 'drop:4', .*",
        ),
        ({"max_grad_norm": 0.0}, r"max_grad_norm: expected more than 0, got 0\.0"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm: expected more than 0, got -1\.0"),
        ({"max_grad_norm": math.nan}, r"max_grad_norm: expected more than 0, got nan"),
        ({"max_grad_norm": math.inf}, r"max_grad_norm: expected more than 0, got inf"),
        ({"port": -1}, r"port: expected 0 to 65535, got -1"),
        ({"port": 65536}, r"port: expected 0 to 65535, got 65536"),
        ({"http_port": -1}, r"http_port: expected 0 to 65535, got -1"),
        ({"http_port": 65536}, r"http_port: expected 0 to 65535, got 65536"),
        ({"durability": "all"}, r"durability: expected one of none, .*, got 'all'"),
        ({"durability": "log"}, r"data_dir: expected a folder for .* log, got none"),
        ({"data_dir": "d"}, r"durability: expected checkpoint or log .*, got none"),
        ({"checkpoint_every": "5m"}, r"checkpoint_every: expected .*, got '5m'"),
        (
            {"durability": "log", "data_dir": ""},
            r"data_dir: expected the name of a folder, got ''",
        ),
        ({"keep": 0}, r"keep: expected 1 checkpoint or more, got 0"),
        (
            {"durability": "log", "data_dir": "d", "keep": 1},
            r"keep: expected 2 checkpoints or more, as a log goes back .*, got 1",
        ),
        *[
            ({"host": host}, rf"host: expected a loopback address, got {host}; .*")
            for host in (
                "0.0.0.0",
                "::",
                "[::]",
                "10.0.0.1",
                "128.0.0.1",
                "example.com",
                "127.0.0.1.example.com",
                "localhost.example.com",
                "",
            )
        ],
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused_by_name(
    settings: dict[str, Any], message: str
) -> None:
    """Above all a host that other machines reach, which has to be said aloud."""
    expected = message.replace("[::]", r"\[::\]")

    with pytest.raises(ValueError, match=f"^{expected}$"):
        ServerConfig(**settings)


@pytest.mark.parametrize(
    ("host", "insecure"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("localhost", False),
        ("::1", False),
        ("[::1]", False),
        ("0.0.0.0", True),
        ("example.com", True),
    ],
)
def test_loopback_is_listened_on_and_the_rest_where_it_is_asked_for(
    host: str, insecure: bool
) -> None:
    """A name other than localhost could mean any machine."""
    config = ServerConfig(host=host, insecure=insecure)

    assert config.host == host


@pytest.mark.parametrize("name", ["port", "http_port"])
@pytest.mark.parametrize("port", [0, 65535])
def test_the_first_and_the_last_port_are_ports(name: str, port: int) -> None:
    """And 0 means any."""
    settings: dict[str, Any] = {name: port}

    assert getattr(ServerConfig(**settings), name) == port


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"staleness_policy": "drop:4"}, Terms(4)),
        ({"staleness_policy": "drop:4", "max_staleness": 4}, Terms(4)),
        ({"staleness_policy": "inverse"}, Terms(8, Inverse())),
        (
            {"staleness_policy": "inverse", "max_staleness": None},
            Terms(None, Inverse()),
        ),
    ],
)
def test_a_policy_may_say_the_limit(settings: dict[str, Any], terms: Terms) -> None:
    """Or leave it as it is."""
    assert ServerConfig(**settings).terms == terms


def test_settings_do_not_change() -> None:
    """A running server's are read by many threads."""
    config: Any = ServerConfig()

    with pytest.raises(FrozenInstanceError, match="port"):
        config.port = 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_staleness": 2.5}, r"^max_staleness: expected None or a whole number"),
        ({"max_staleness": 2**63}, r"^max_staleness: expected None or a whole number"),
        ({"rule": optax.adam}, r"^rule: expected an optax .*, got adam$"),
        ({"host": "0.0.0.0"}, r"^host: expected a loopback address, got 0\.0\.0\.0;"),
        ({"port": 65536}, r"^port: expected 0 to 65535, got 65536$"),
    ],
    ids=["half", "64 bits", "factory", "open", "port"],
)
def test_a_server_of_wrong_settings_does_not_start(
    settings: dict[str, Any], message: str
) -> None:
    """It leaves no thread and no open port behind."""
    arguments = {"rule": optax.sgd(1.0), "port": 0, **settings}

    with pytest.raises(ValueError, match=message):
        psserver.Server(**arguments)
