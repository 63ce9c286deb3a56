"""`psserver set`: settings of a running server change together, or not at all."""

import logging
import re
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import Result

import psserver
import psworker
from psserver import admin
from pswire.errors import InvalidRequestError

Run = Callable[..., Result]
StartServer = Callable[..., psserver.Server]
Dial = Callable[[str], grpc.Channel]


@pytest.mark.parametrize(
    ("settings", "told", "limit", "policy"),
    [
        (["max_staleness=2"], "limit 2 steps", 2, "drop"),
        (["max_staleness=-1"], "limit -1 steps", -1, "drop"),
        (["max_staleness=off"], "limit off", None, "drop"),
        (["staleness_policy=drop:3"], "limit 3 steps", 3, "drop"),
        (
            ["staleness_policy=polynomial:0.50"],
            "limit 4 steps, policy polynomial:0.5",
            *(4, "polynomial:0.5"),
        ),
        (
            ["max_staleness=9", "staleness_policy=hinge:10,4"],
            "limit 9 steps, policy hinge:10,4",
            *(9, "hinge:10,4"),
        ),
    ],
)
def test_what_is_named_changes_and_the_rest_stays(
    settings: list[str],
    told: str,
    limit: int | None,
    policy: str,
    run: Run,
    start_server: StartServer,
) -> None:
    """The command says what holds now, which is what the status says."""
    server = start_server(max_staleness=4)

    result = run("set", server.address, *settings)

    assert (result.exit_code, result.output) == (0, f"{told}\n")
    limits = server.status().limits
    assert (limits.max_staleness, limits.staleness_policy) == (limit, policy)


def test_the_address_may_come_from_the_environment(
    run: Run, start_server: StartServer
) -> None:
    """As in every command; what has no = in the first place is an address."""
    server = start_server(max_staleness=4)

    result = run("set", "max_staleness=2", PSSERVER_ADDRESS=server.address)

    assert result.output == "limit 2 steps\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["limit=2"], "limit: expected one of max_staleness, staleness_policy"),
        (["max_staleness=2.5"], "max_staleness: expected a whole number of steps or "),
        (["max_staleness="], "max_staleness: expected a whole number of steps or off"),
        (["staleness_policy=dorp"], "staleness_policy: expected one of drop, inverse"),
        (
            ["max_staleness=2", "staleness_policy=polynomial:-1"],
            "staleness_policy: polynomial: a: expected a finite number over 0, got -1",
        ),
        (
            ["staleness_policy=inverse", "max_staleness=many"],
            "max_staleness: expected a whole number of steps or off, got 'many'",
        ),
        (
            ["staleness_policy=drop:2", "max_staleness=3"],
            "staleness_policy: expected drop beside max_staleness, got 'drop:2'",
        ),
    ],
)
def test_of_settings_with_one_amiss_none_is_taken(
    settings: list[str], message: str, run: Run, start_server: StartServer
) -> None:
    """The option is named; the exit code is 1."""
    server = start_server(max_staleness=4)
    before = server.status().limits

    result = run("set", server.address, *settings)

    assert result.exit_code == 1
    assert message in result.output
    assert server.status().limits == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["127.0.0.1:7070"], "expected NAME=VALUE, got none"),
        (["max_staleness=2", "drop"], "expected NAME=VALUE, got 'drop'"),
        (["max_staleness=2", "max_staleness=3"], "max_staleness: expected once, got"),
    ],
)
def test_what_is_no_setting_is_a_usage_error(
    arguments: list[str], message: str, run: Run
) -> None:
    """No server is asked."""
    result = run("set", *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_its_help_has_examples_that_are_taken(
    run: Run, start_server: StartServer
) -> None:
    """One a line, as they would be typed."""
    server = start_server()
    text = run("set", "--help").output.partition("Examples:")[2]
    examples = re.findall(r"^ +psserver set (.*)$", text, re.MULTILINE)

    results = [
        run("set", *example.split(), PSSERVER_ADDRESS=server.address)
        for example in (line.removeprefix("127.0.0.1:7070 ") for line in examples)
    ]

    assert len(results) == 3
    assert [result.exit_code for result in results] == [0, 0, 0]


def test_a_change_is_told_in_the_log_once(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With what was before; what changes nothing is no news."""
    caplog.set_level(logging.INFO, "psserver")
    server = start_server(max_staleness=4)

    for _ in range(2):
        admin.change(
            server.address, {"max_staleness": "off", "staleness_policy": "inverse"}
        )

    (told,) = (
        vars(record)
        for record in caplog.records
        if getattr(record, "event", "") == "limits_changed"
    )
    assert told["message"] == (
        f"going on with other limits, as {told['peer']} has asked: "
        "limit off, was 4 steps; policy inverse, was drop"
    )
    assert told["peer"].startswith("ipv4:127.0.0.1:")
    assert (told["limit"], told["limit_before"]) == (None, 4)
    names = ("staleness_policy", "staleness_policy_before")
    assert [told[name] for name in names] == ["inverse", "drop"]


def test_patterns_that_no_variable_goes_by_are_warned_of(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When the variables come, and when the policy is set; not of what else is."""
    server = start_server(staleness_policy="groups:hed=1,head=2,n=3")
    before = list(caplog.messages)
    with psworker.connect(server.address) as client:
        client.initialize({"head": np.ones(2, np.float32), "n": np.arange(3)})
    for policy in ("groups:*=4,head=2", "groups:head=1"):
        admin.change(server.address, {"staleness_policy": policy})
    admin.change(server.address, {"max_staleness": "1"})

    assert not before
    assert caplog.messages == [
        f"staleness_policy: no variable is of {patterns}: none has such a name, or "
        "each is of an earlier group"
        for patterns in ("hed, n", "head")
    ]
    assert [vars(record)["patterns"] for record in caplog.records] == [
        ["hed", "n"],
        ["head"],
    ]


def test_a_request_that_names_nothing_is_refused(start_server: StartServer) -> None:
    """It was meant to change something."""
    with pytest.raises(
        InvalidRequestError, match=r"settings: expected some of .*, got none$"
    ):
        admin.change(start_server().address, {})


def test_garbage_in_place_of_the_request_is_refused(
    start_server: StartServer, dial: Dial
) -> None:
    """As of every call."""
    call: Any = dial(start_server().address).unary_unary("/ps.v1.Admin/Set")

    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
        call(b"\xff", timeout=30.0)
