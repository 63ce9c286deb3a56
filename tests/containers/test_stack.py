"""The compose stack on a real engine: how it comes up, what it stands, how it ends.

In this order: each test leaves to the next a stack that trains.
"""

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest

from kit.stack import Stack
from pswire.counts import STALENESS_BOUNDS, WorkerStatus
from pswire.status import Status

# The first test waits for the image to be built, too.
pytestmark = pytest.mark.timeout(900)


def workers(status: Status) -> dict[str, WorkerStatus]:
    """Return the workers by name."""
    return {worker.name: worker for worker in status.workers}


def applied(status: Status) -> dict[str, int]:
    """Return how many pushes of each worker were applied."""
    return {worker.name: worker.counts.applied for worker in status.workers}


def parts(status: Status) -> list[str]:
    """Return the parts of the data that are leased."""
    return [worker.shard for worker in status.workers if worker.shard]


def older(worker: WorkerStatus, steps: int) -> int:
    """Return how many of a worker's pushes were older than a bucket's bound."""
    return sum(worker.staleness_buckets[STALENESS_BOUNDS.index(steps) + 1 :])


def test_the_server_is_healthy_in_time(stack: Stack) -> None:
    """Within fifteen seconds, as Docker saw it, which keeps its last five checks."""
    [server] = stack.containers("server")
    state = stack.inspect(server)["State"]

    healthy = next(each for each in state["Health"]["Log"] if each["ExitCode"] == 0)

    started, checked = state["StartedAt"], healthy["End"]
    took = datetime.fromisoformat(checked) - datetime.fromisoformat(started)
    assert took < timedelta(seconds=15)


def test_three_workers_train_with_a_healthy_server(stack: Stack) -> None:
    """Each under the name of its container."""
    [server] = stack.containers("server")

    trained = stack.until(
        lambda status: sum(pushes > 10 for pushes in applied(status).values()) == 3
    )

    assert stack.inspect(server)["State"]["Health"]["Status"] == "healthy"
    assert workers(trained).keys() == stack.names()
    assert trained.durability.mode == "log"
    assert trained.rule == "mine:make(learning_rate=0.002)"


def test_no_two_workers_have_the_same_part_of_the_data(stack: Stack) -> None:
    """Whenever one looks, until each has been seen with one part after another."""
    seen: list[list[str]] = []
    had: dict[str, set[str]] = {name: set() for name in stack.names()}

    def have_changed(status: Status) -> bool:
        seen.append(parts(status))
        for worker in status.workers:
            had[worker.name] |= {worker.shard} - {""}
        return all(len(each) > 1 for each in had.values())

    stack.until(have_changed)

    assert all(len(set(leased)) == len(leased) for leased in seen)
    assert all(part.endswith("/16") for leased in seen for part in leased)


def test_the_host_reads_status_page_and_logs(stack: Stack) -> None:
    """Through the ports that are published, and as `docker compose logs` shows them."""
    command = (sys.executable, "-m", "psserver", "status", stack.address())

    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    with urlopen(f"http://{stack.address('server', 7071)}/", timeout=60) as page:
        html = page.read().decode()
    log = stack.compose("logs", "--no-color")

    assert told.returncode == 0, told.stderr
    assert "<title>" in html
    assert (
        "listening on" not in log
    )  # It would stand between the objects of a JSON log.
    for name in stack.names():
        assert name in told.stdout
        assert f"psworker: joined server:7070 as {name}\n" in log
        assert f"psserver: worker {name} has joined\n" in log
    assert re.search(r"^worker-\d .* step \d+, loss \S+, \d+ applied", log, re.M)


def test_a_container_may_do_and_has_what_it_needs(stack: Stack) -> None:
    """No root, no capabilities, nothing to write to; only this machine reaches it."""
    [server] = stack.containers("server")
    script = "id -u; grep -E '^(CapBnd|NoNewPrivs)' /proc/self/status; touch /x || :"
    tools = "for each in gcc make git curl; do command -v $each; done; ls ~/.cache || :"

    for container in (server, *stack.containers("worker")):
        may = stack.docker("exec", container, "sh", "-c", script)
        has = stack.docker("exec", container, "sh", "-c", tools)

        assert may.split() == ["10001", "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
        assert has == ""
    bindings = stack.inspect(server)["NetworkSettings"]["Ports"]
    assert bindings.keys() == {"7070/tcp", "7071/tcp"}
    assert {b["HostIp"] for bound in bindings.values() for b in bound} == {"127.0.0.1"}


def test_two_more_workers_find_parts_of_their_own(stack: Stack) -> None:
    """As `docker compose up --scale worker=5` starts them, beside those that run."""
    before = stack.names()

    stack.up(workers=5)

    scaled = stack.until(
        lambda status: (
            sum(pushes > 10 for pushes in applied(status).values()) == 5
            and len(set(parts(status))) == 5
        )
    )
    assert before < workers(scaled).keys() == stack.names()


def test_a_killed_worker_comes_back_and_its_part_is_leased_again(stack: Stack) -> None:
    """It is started again under its name, so that nobody waits for its silence."""
    victim = stack.containers("worker")[0]
    name = victim[:12]

    stack.crash(victim)
    dead = workers(stack.until(lambda status: bool(workers(status)[name].shard)))[name]

    def is_leased_again(status: Status) -> bool:
        is_back = applied(status)[name] > dead.counts.applied
        return is_back and dead.shard in parts(status)

    stack.until(is_leased_again)
    assert stack.inspect(victim)["RestartCount"] == 1


def test_a_killed_server_comes_back_with_every_push(stack: Stack) -> None:
    """The restart policy starts it; its log has all that was acknowledged."""
    [server] = stack.containers("server")
    stack.compose("pause", "worker")  # So that the counts stand still.
    before = stack.status()
    while (later := stack.status()).counts != before.counts:
        before = later

    stack.crash(server)
    after = stack.until(lambda status: status.incarnation != before.incarnation)
    stack.compose("unpause", "worker")

    assert stack.inspect(server)["RestartCount"] == 1
    assert (after.generation, after.step) == (before.generation, before.step)
    assert after.step == after.counts.applied > 0
    assert applied(after) == applied(before)
    stack.until(
        lambda status: all(
            applied(status)[name] > pushes for name, pushes in applied(before).items()
        )
    )


def test_a_worker_that_is_gone_leaves_a_part_behind(stack: Stack) -> None:
    """Killed by hand it is not started again; what becomes of its part, see below."""
    gone = stack.containers("worker")[-1]

    stack.docker("rm", "--force", gone)

    assert workers(stack.status())[gone[:12]].shard


def test_a_partitioned_worker_pushes_late_and_goes_on(stack: Stack) -> None:
    """What it computed before is judged as the rule says, whatever its age."""
    victim, network = stack.containers("worker")[0], f"{stack.project}_default"
    name = victim[:12]
    stack.docker("network", "disconnect", network, victim)
    limit = stack.status().limits.max_staleness
    assert limit is not None
    cut = stack.train(steps=limit)  # What has reached the server is judged by now.
    before = workers(cut)[name]

    alone = stack.train(steps=2 * limit)
    stack.docker("network", "connect", network, victim)
    healed = stack.until(
        lambda status: workers(status)[name].counts.judged > before.counts.judged + 10
    )

    assert workers(alone)[name].counts == before.counts
    # Of its last push the worker may have got no verdict: then that one comes again.
    after = workers(healed)[name]
    is_late = older(after, 2 * limit) > older(before, 2 * limit)
    assert is_late or after.counts.duplicate > before.counts.duplicate
    assert healed.generation == cut.generation
    assert healed.step == healed.counts.applied
    fresh = sum(n for staleness, n in healed.staleness.items() if staleness <= limit)
    assert (fresh, sum(healed.staleness.values()) - fresh) == (
        healed.counts.applied,
        healed.counts.dropped,
    )
    assert stack.inspect(victim)["RestartCount"] <= 1  # That of the kill before.


def test_prometheus_has_the_drop_rate_of_every_worker(
    stack: Stack, checkout: Path
) -> None:
    """By the rules that are shipped; and every query of the dashboard finds something.

    Those that compare find only what is wrong.
    """
    dashboard = checkout / "deploy/grafana/dashboards/asyncps.json"
    shown = json.loads(dashboard.read_text())

    rates = stack.until_query(
        "asyncps:worker_drop_ratio:rate5m",
        lambda found: {each["metric"]["worker"] for each in found} >= stack.names(),
    )

    assert all(0 <= float(each["value"][1]) <= 1 for each in rates)
    assert {each["metric"]["instance"] for each in rates} == {"server"}
    for panel in shown["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m")
            if ">" in expression:
                stack.query(expression)
            else:
                stack.until_query(expression)


@pytest.mark.soak
def test_the_part_of_a_worker_that_is_gone_is_leased_again(stack: Stack) -> None:
    """A minute after its last call: those that are left then go through all."""
    gone = stack.containers("worker")[-1]
    stack.until(lambda status: applied(status).get(gone[:12], 0) > 0)
    stack.docker("rm", "--force", gone)
    left, seen = stack.names(), set[str]()

    def is_gone_through(status: Status) -> bool:
        seen.update(each.shard for each in status.workers if each.name in left)
        return len(seen - {""}) == 16

    stack.until(is_gone_through)

    assert stack.names() == left


def test_all_stop_in_time_and_leave_nothing(stack: Stack) -> None:
    """One that is killed once its grace is over ends with 137."""
    services = ("server", "worker", "prometheus")
    running = [each for service in services for each in stack.containers(service)]

    stack.compose("stop")
    codes = [stack.inspect(each)["State"]["ExitCode"] for each in running]
    stack.compose("down", "--volumes")

    assert {*codes} == {0}
    label = f"label=com.docker.compose.project={stack.project}"
    for kind in ("container", "volume", "network"):
        everything = ("--all",) if kind == "container" else ()
        assert stack.docker(kind, "ls", *everything, "--quiet", "--filter", label) == ""
