"""What becomes of a push from before a restart: never is it taken for another's."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
import psworker
from psserver import admin
from psserver.durability.errors import DataDirectoryError
from pswire.errors import GenerationError, StepReadError
from pswire.values import Verdict

StartServer = Callable[..., psserver.Server]
ConnectNear = Callable[..., psworker.Client]
Kept = Callable[..., dict[str, Any]]
Succeed = Callable[..., psserver.Server]

LIMIT = 4
SAVED, LAST = 3, 6  # The steps of the checkpoint, and of the server's end.
UP = {"w": np.full(2, -1.0, np.float32)}
ZEROS = {"w": np.zeros(2, np.float32)}

# What a push gets that was read above the newest step, above the step that the server
# began with, at that, and below it: where history goes on, and where it was cut.
ORDINARY = ["StepReadError", "applied, 1 stale", "applied, 3 stale", "dropped, 5 stale"]
CUT = ["GenerationError"] * 4


def push(client: psworker.Client, pushes: int) -> None:
    """Push as often as that, each time from the newest step."""
    for _ in range(pushes):
        assert client.push(UP, client.pull()).applied


def outcome(client: psworker.Client, step_read: int) -> str:
    """Push what was read at a step of the generation that was pulled last."""
    try:
        verdict = client.push(UP, step_read=step_read)
    except (GenerationError, StepReadError) as error:
        return type(error).__name__
    return f"{'applied' if verdict.applied else 'dropped'}, {verdict.staleness} stale"


def spoil_newest(tmp_path: Path) -> None:
    """Change a byte of the newest checkpoint."""
    newest = max((tmp_path / "data" / "checkpoints").iterdir())
    with open(newest / "arrays.safetensors", "r+b") as arrays:
        arrays.seek(-1, 2)
        arrays.write(b"!")


@pytest.mark.parametrize(
    ("durability", "end", "began", "expected"),
    [
        ("none", "stopped", 0, CUT),
        ("none", "killed", 0, CUT),
        ("checkpoint", "stopped", LAST, ORDINARY),
        ("checkpoint", "killed", SAVED, CUT),
        ("log", "stopped", LAST, ORDINARY),
        ("log", "killed", LAST, ORDINARY),
    ],
)
def test_a_push_from_before_a_restart_is_judged_by_what_is_left_of_its_history(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    durability: str,
    end: str,
    began: int,
    expected: list[str],
) -> None:
    """Its step may be one of the new history too; afterwards its worker goes on.

    By then the new server has made two steps of its own.
    """
    server = start_server(**kept(durability, max_staleness=LIMIT))
    old = connect_near(server.address)
    old.initialize(ZEROS)
    push(old, SAVED)
    if durability != "none":
        admin.save_checkpoint(server.address)
    push(old, LAST - SAVED)
    before = old.pull()
    server = succeed(server, end, **kept(durability, max_staleness=LIMIT))
    new = connect_near(server.address)
    new.initialize(ZEROS)
    assert new.pull().step == began
    push(new, 2)
    steps = began + 3, began + 1, began, began - 1

    got = [outcome(old, step_read) for step_read in steps]

    assert got == expected
    after = old.pull()
    assert after.params["w"].tolist() == [float(after.step)] * 2
    assert (after.generation == before.generation) == (expected == ORDINARY)
    assert old.push(UP, after).applied
    assert min(server.status().staleness) == 0


@pytest.mark.parametrize(
    ("durability", "began", "expected"),
    [("checkpoint", SAVED, CUT), ("log", LAST, ORDINARY)],
)
def test_a_push_is_judged_likewise_when_the_newest_checkpoint_is_corrupt(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    tmp_path: Path,
    durability: str,
    began: int,
    expected: list[str],
) -> None:
    """The server had stopped with grace; with a log, what came later is still there."""
    server = start_server(**kept(durability, max_staleness=LIMIT))
    old = connect_near(server.address)
    old.initialize(ZEROS)
    push(old, SAVED)
    admin.save_checkpoint(server.address)
    push(old, LAST - SAVED)
    server.stop()
    spoil_newest(tmp_path)

    server = succeed(server, "stopped", **kept(durability, max_staleness=LIMIT))
    new = connect_near(server.address)
    assert new.pull().step == began
    push(new, 2)
    steps = began + 3, began + 1, began, began - 1

    assert [outcome(old, step_read) for step_read in steps] == expected


def test_once_gone_back_to_an_older_checkpoint_history_is_cut_no_more(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    tmp_path: Path,
) -> None:
    """The log had what the corrupt one lacks; from then on none is missing."""
    server = start_server(**kept("log"))
    worker = connect_near(server.address)
    worker.initialize(ZEROS)
    push(worker, SAVED)
    for _ in range(2):  # Of one step: nothing is lost, and nothing new to be saved.
        admin.save_checkpoint(server.address)
    spoil_newest(tmp_path)
    generations = [server.status().generation]

    for end in ("killed", "stopped"):
        server = succeed(server, end, **kept("checkpoint"))
        assert server.status().step == SAVED
        generations.append(server.status().generation)

    assert len(set(generations)) == 1


@pytest.mark.parametrize("ends", [["stopped"] * 3, ["killed", "stopped", "killed"]])
def test_a_data_directory_may_change_its_durability(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    ends: list[str],
) -> None:
    """From a log to checkpoints, to a log again: nothing is lost, or taken twice."""
    server = start_server(**kept("log"))
    client = connect_near(server.address)
    client.initialize(ZEROS)
    generations = []

    for end, durability in zip(ends, ("checkpoint", "log", "log"), strict=True):
        push(client, 3)
        generations.append(client.pull().generation)
        server = succeed(server, end, **kept(durability, max_staleness=LIMIT))

    final = client.pull()
    assert (final.step, final.params["w"].tolist()) == (9, [9.0, 9.0])
    assert {*generations, final.generation} == {final.generation}
    assert server.status().counts.applied == 9


def test_with_a_log_no_older_one_is_used_than_the_two_newest_checkpoints(
    start_server: StartServer, connect_near: ConnectNear, kept: Kept, tmp_path: Path
) -> None:
    """What came after an older one is gone: whoever moves the log away accepts that."""
    server = start_server(**kept("log", keep=4))
    client = connect_near(server.address)
    client.initialize(ZEROS)
    for _ in range(3):
        push(client, 1)
        admin.save_checkpoint(server.address)
    server.stop()
    data = tmp_path / "data"
    for newest in sorted((data / "checkpoints").iterdir())[-2:]:
        (newest / "manifest.json").write_text("damaged")

    with pytest.raises(
        DataDirectoryError, match="steps from 2 on, got those from 3 on"
    ):
        start_server(**kept("log", keep=4))
    (data / "log").rename(tmp_path / "log")
    (data / "state.json").rename(tmp_path / "state.json")
    after = start_server(**kept("log", keep=4)).status()

    assert (after.step, after.durability.mode) == (1, "log")
    assert after.generation != server.status().generation


def test_checkpoints_that_were_killed_begin_a_history_for_the_log_that_follows(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
) -> None:
    """What came after the checkpoint is gone, and no push of it is in the log."""
    server = start_server(**kept("checkpoint"))
    client = connect_near(server.address)
    client.initialize(ZEROS)
    push(client, SAVED)
    admin.save_checkpoint(server.address)
    push(client, LAST - SAVED)
    server = succeed(server, "killed", **kept("log"))
    assert outcome(client, SAVED) == "GenerationError"
    push(client, 1)
    generation = client.pull().generation

    succeed(server, "killed", **kept("log"))

    final = client.pull()
    assert (final.step, final.generation) == (SAVED + 1, generation)


@pytest.mark.parametrize(("retries", "expected"), [(0, SAVED), (1, SAVED + 1)])
def test_a_retry_goes_on_in_the_history_that_has_begun(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    retries: int,
    expected: int,
) -> None:
    """The server is killed between the gradient and its push: it is computed again."""
    server = start_server(**kept("checkpoint"))
    client = connect_near(server.address)
    client.initialize(ZEROS)
    push(client, SAVED)
    admin.save_checkpoint(server.address)
    push(client, LAST - SAVED)
    seen = []

    def kill_and_push(gradients: Any) -> Verdict:
        seen.append(gradients.step_read)
        if len(seen) == 1:
            succeed(server, "killed", **kept("checkpoint"))
        return psworker.Client.push(client, gradients)

    monkeypatch.setattr(client, "push", kill_and_push)

    def minimize() -> Verdict:
        return client.minimize(
            lambda params, batch: batch * params["w"].sum(),
            1.0,
            like=ZEROS,
            on_drop="retry",
            max_retries=retries,
        )[0]

    if retries:
        assert minimize() == Verdict(applied=True, staleness=0, step=expected)
    else:
        with pytest.raises(GenerationError, match=r"^generation: expected"):
            minimize()
    assert seen == [LAST, SAVED][: retries + 1]
    assert client.pull().step == expected


@pytest.mark.parametrize(
    ("durability", "end", "replayed", "began", "whole"),
    [
        ("checkpoint", "stopped", [], LAST, True),
        ("checkpoint", "killed", [], SAVED, False),
        ("log", "stopped", [], LAST, True),
        ("log", "killed", [f"step {SAVED}"], LAST, True),
    ],
)
def test_a_start_says_what_it_goes_on_from_and_whether_something_is_lost(
    start_server: StartServer,
    connect_near: ConnectNear,
    succeed: Succeed,
    kept: Kept,
    caplog: pytest.LogCaptureFixture,
    durability: str,
    end: str,
    replayed: list[str],
    began: int,
    whole: bool,
) -> None:
    """That a log is applied again it says first: it may take a while."""
    server = start_server(**kept(durability))
    client = connect_near(server.address)
    client.initialize(ZEROS)
    push(client, SAVED)
    admin.save_checkpoint(server.address)
    push(client, LAST - SAVED)
    caplog.set_level(logging.INFO, "psserver")

    succeed(server, end, **kept(durability))

    news = ("replaying", "recovered")
    told = [r for r in caplog.records if getattr(r, "event", "") in news]
    recovered = told.pop()
    assert [r.getMessage().rpartition(" after ")[2] for r in told] == replayed
    assert recovered.getMessage().startswith(f"going on from step {began} of ")
    assert recovered.levelno == (logging.INFO if whole else logging.WARNING)
    assert ("nothing is lost" in recovered.getMessage()) == whole
