"""The `psworker` command."""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from pswire.credentials import Credentials
from pswire.heap import keep_freed_memory
from pswire.options import with_credentials
from pswire.signals import interruptible
from psworker.drops import NO_PUSH, UNLEARNED, require_no_retry
from psworker.task import (
    Leased,
    Shard,
    Task,
    load_task,
    parse_shard,
    require_no_rows,
)
from psworker.wire import Wire

# JAX and gRPC are imported by the commands that need them: `--help` is instant.

_PROGRESS_S = 2.0

_credentials = with_credentials("PSWORKER")
_app_dir = click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="Where to look for the task's module.",
)
_steps = click.option(
    "--steps",
    type=click.IntRange(min=0),
    metavar="N",
    help="Stop once the global step is N.  [default: when the batches end]",
)
_on_drop = click.option(
    "--on-drop",
    type=click.Choice(["skip", "retry", "requeue"]),
    help="Let go of a dropped batch, compute it again at once, or after the others of "
    "its part.  [default: as the task says, else skip]",
)
_prefetch = click.option(
    "--prefetch",
    is_flag=True,
    help="Pull the next variables while a gradient is computed; they are older by "
    "what all workers push meanwhile.",
)
_background_push = click.option(
    "--background-push",
    is_flag=True,
    help="Go on while a push is on its way, and wait for it before the next one.",
)
_outage = click.option(
    "--outage",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to go on trying while no server answers.",
)
_wire_dtype = click.option(
    "--wire-dtype",
    metavar="bf16|bf16:pull|bf16:push",
    help="Let float32 travel as bfloat16: both ways, or one.  [default: as it is]",
)
_compression = click.option(
    "--compression",
    metavar="topk:FRACTION",
    help="Push the largest elements of each gradient alone, the others later.  "
    "[default: push all]",
)


def _read_shard(
    context: click.Context, parameter: click.Parameter, text: str
) -> Shard | Leased:
    try:
        return parse_shard(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.group()
@click.version_option(package_name="asyncps")
def main() -> None:
    """Train a model whose variables a parameter server keeps."""


@main.command(context_settings={"auto_envvar_prefix": "PSWORKER"})
@click.argument("target", metavar="MODULE:TASK")
@click.option("--server", required=True, metavar="HOST:PORT")
@click.option(
    "--shard",
    callback=_read_shard,
    default="0/1",
    show_default=True,
    metavar="I/N",
    help="Which part of the data this worker reads; auto/N: one of N after another, "
    "each leased from the server.",
)
@click.option(
    "--name",
    help="The worker's name; a newer one of the same name supersedes this one.  "
    "[default: host, process id and a number]",
)
@_steps
@_on_drop
@_prefetch
@_background_push
@_outage
@_wire_dtype
@_compression
@_app_dir
@_credentials
def run(
    target: str,
    server: str,
    shard: Shard | Leased,
    name: str | None,
    steps: int | None,
    on_drop: Any,
    prefetch: bool,
    background_push: bool,
    outage: float,
    wire_dtype: str | None,
    compression: str | None,
    app_dir: str,
    credentials: Credentials,
) -> None:
    """Train one worker, until the batches end, the step is reached, or Ctrl-C."""
    log = logging.getLogger("psworker")
    latest: Any = None
    is_stopped = False

    def report(progress: Any) -> None:
        nonlocal latest
        latest = progress
        news(progress)

    overlap = {"prefetch": prefetch, "background_push": background_push}
    with _usage_errors():
        Wire.parse(wire_dtype, compression)
        require_no_retry(on_drop, **overlap)
    news = _every(_PROGRESS_S, lambda progress: log.info(_line(progress)))
    with interruptible(), _clear_errors():
        try:
            task = _load(target, app_dir)
            with _usage_errors():
                require_no_retry(on_drop or task.on_drop, **overlap)
                require_no_rows(task, prefetch=overlap["prefetch"])
            from psworker.client import connect
            from psworker.loop import train

            with connect(
                server,
                name=name,
                outage_s=outage,
                credentials=credentials,
                wire_dtype=wire_dtype,
                compression=compression,
            ) as client:
                log.info("joined %s as %s", server, client.name)
                latest = train(
                    client,
                    task,
                    client.lease_shards(shard.count)
                    if isinstance(shard, Leased)
                    else shard,
                    steps=steps,
                    on_drop=on_drop,
                    report=report,
                    **overlap,
                )
        except KeyboardInterrupt:
            log.info("stopped")
            is_stopped = True
        finally:  # Whoever launched it reads it, however it ends.
            if latest:
                click.echo(_line(latest))
    if not latest:
        click.echo(NO_PUSH)
    if is_stopped:
        _leave()


@main.command(context_settings={"auto_envvar_prefix": "PSWORKER"})
@click.argument("target", metavar="MODULE:TASK")
@click.option("--server", required=True, metavar="HOST:PORT")
@_outage
@_app_dir
@_credentials
def evaluate(
    target: str, server: str, outage: float, app_dir: str, credentials: Credentials
) -> None:
    """Print what the task's `evaluate` says of the variables as they are now."""
    with _clear_errors():
        task = _load(target, app_dir)
        if task.evaluate is None:
            click.echo(f"{target} has nothing to evaluate", err=True)
            return
        from psworker.client import read

        snapshot = read(
            server, like=task.init(), outage_s=outage, credentials=credentials
        )
        numbers = task.evaluate(snapshot.params)
        found = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        click.echo(f"at step {snapshot.step}: {found}")


@main.command(context_settings={"auto_envvar_prefix": "PSWORKER"})
@click.argument("target", metavar="MODULE:TASK")
@click.option("--workers", type=click.IntRange(min=1), required=True, metavar="N")
@click.option("--server", metavar="HOST:PORT", help="Of a server that runs already.")
@click.option(
    "--local-server",
    is_flag=True,
    help="Start a server too, with the options of `psserver serve` after a --.",
)
@click.argument("serve_options", nargs=-1, metavar="[-- SERVE OPTIONS]")
@_steps
@_on_drop
@_prefetch
@_background_push
@_outage
@_wire_dtype
@_compression
@_app_dir
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="psworker-logs",
    show_default=True,
    help="Where every process has its log.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often each worker may be restarted after a crash.",
)
@_credentials
def launch(
    target: str,
    workers: int,
    server: str | None,
    local_server: bool,
    serve_options: tuple[str, ...],
    steps: int | None,
    on_drop: Any,
    prefetch: bool,
    background_push: bool,
    outage: float,
    wire_dtype: str | None,
    compression: str | None,
    app_dir: str,
    log_dir: Path,
    max_restarts: int,
    credentials: Credentials,
) -> None:
    """Train with N worker processes on this machine, and sum up."""
    if bool(server) == local_server:
        raise click.UsageError("expected either --server or --local-server")
    if serve_options and not local_server:
        raise click.UsageError(
            f"--local-server: expected beside serve options, got {serve_options[0]}"
        )
    with _usage_errors():
        Wire.parse(wire_dtype, compression)
        require_no_retry(on_drop, prefetch=prefetch, background_push=background_push)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Several workers may share one accelerator: none takes all its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from psworker.launcher import LaunchError, Plan
    from psworker.launcher import launch as run_plan

    run_options = ["--outage", str(outage)]
    if on_drop is not None:
        run_options += ["--on-drop", on_drop]
    if steps is not None:
        run_options += ["--steps", str(steps)]
    if prefetch:
        run_options.append("--prefetch")
    if background_push:
        run_options.append("--background-push")
    if wire_dtype is not None:
        run_options += ["--wire-dtype", wire_dtype]
    if compression is not None:
        run_options += ["--compression", compression]
    plan = Plan(
        target=target,
        workers=workers,
        server=server,
        serve_options=serve_options,
        run_options=run_options,
        # Launches on several machines must not take each other's names.
        name="worker" if local_server else f"{socket.gethostname()}-{os.getpid()}",
        app_dir=app_dir,
        log_dir=log_dir,
        max_restarts=max_restarts,
        credentials=credentials,
    )
    complete = True
    with interruptible(), suppress(KeyboardInterrupt):
        try:
            complete = run_plan(plan, lambda line: click.echo(line, err=True))
        except LaunchError as error:
            raise click.ClickException(str(error)) from error
    sys.exit(0 if complete else 1)


def _load(target: str, app_dir: str) -> Task:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("psworker").setLevel(logging.INFO)
    keep_freed_memory()
    sys.path.insert(0, app_dir)
    with _usage_errors():
        return load_task(target)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def _clear_errors() -> Iterator[None]:
    from pswire.errors import ParameterServerError

    try:
        yield
    except ParameterServerError as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error


def _leave() -> NoReturn:
    """End at once: a thread of JAX may be compiling, which Python's own end crashes."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)


def _every(seconds: float, action: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the action, left out where the last one was less than `seconds` ago."""
    last = -seconds

    def act(value: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= seconds:
            last = now
            action(value)

    return act


def _line(progress: Any) -> str:
    loss = "none" if progress.loss is None else f"{progress.loss:.4g}"
    return (
        f"step {progress.step}, loss {loss}, "
        f"{progress.applied} applied, {progress.dropped} dropped, "
        f"{progress.unlearned} {UNLEARNED}"
    )
