"""What is typed often starts fast: it loads no JAX, which takes seconds."""

import subprocess
import sys

import pytest

JAX, COMPUTES = {"jax", "jaxlib"}, {"jax", "jaxlib", "optax"}
INSTANT = COMPUTES | {"grpc", "numpy", "rich"}


def loaded(*arguments: str) -> set[str]:
    """Run Python, and return the names of all top-level packages that it imported."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    lines = (line for line in process.stderr.splitlines() if line.count("|") == 2)
    modules = {line.rpartition("|")[2].strip() for line in lines}
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    "command",
    [
        ("psserver", "--help"),
        ("psserver", "serve", "--help"),
        ("psserver", "checkpoint", "export", "--help"),
        ("psserver", "--version"),
        ("psworker", "--help"),
        ("psworker", "run", "--help"),
        ("psworker", "launch", "--help"),
    ],
    ids=" ".join,
)
def test_help_is_instant(command: tuple[str, ...]) -> None:
    """Neither JAX nor gRPC nor numpy is loaded to print a page of text."""
    packages = loaded("-m", *command)

    assert "click" in packages
    assert packages & INSTANT == set()


@pytest.mark.parametrize("module", ["psserver.cli", "psworker.cli"])
def test_a_command_s_module_loads_little(module: str) -> None:
    """Each command imports what it needs once it runs."""
    packages = loaded("-c", f"import {module}")

    assert {"click", module.partition(".")[0]} <= packages
    assert packages & INSTANT == set()


@pytest.mark.parametrize(
    "module",
    [
        *("psserver", "psserver.admin", "psserver.config", "psserver.decision"),
        *("psserver.output", "psserver.watch"),
        *("psserver.durability.export", "psserver.durability.listing"),
        *("psserver.metrics.jsonlines", "psserver.metrics.sinks"),
        *("psworker", "psworker.connection", "psworker.launcher", "psworker.overlap"),
        "psworker.task",
        *("pswire.body", "pswire.errors", "pswire.display.summary", "pswire.values"),
    ],
)
def test_a_module_that_computes_nothing_loads_no_jax(module: str) -> None:
    """A status, a launcher of processes and a raw connection need none."""
    packages = loaded("-c", f"import {module}")

    assert module.partition(".")[0] in packages
    assert packages & COMPUTES == set()


def test_a_report_is_written_without_jax_and_grpc() -> None:
    """On whatever machine the file has been copied to."""
    packages = loaded("-c", "import psserver.report.page")

    assert "psserver" in packages
    assert packages & (COMPUTES | {"grpc"}) == set()
