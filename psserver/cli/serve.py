"""`psserver serve`."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import click

from psserver import logs
from psserver.cli import complaints
from psserver.config import DURABILITIES, ServerConfig
from psserver.policies.terms import DEFAULT_LIMIT
from pswire.heap import keep_freed_memory
from pswire.signals import interruptible

if TYPE_CHECKING:
    from psserver.metrics.recorder import Sink
    from psserver.server import Server

_log = logging.getLogger("psserver")

# Not ServerConfig's, which is none: a program may make two servers, which must not be
# in each other's way; who types a command wants to see the page.
_HTTP_PORT = 7071
_FILE = click.Path(dir_okay=False)


def _number_or_off(
    noun: str,
) -> Callable[[click.Context, click.Parameter, str], int | None]:
    def read(
        context: click.Context, parameter: click.Parameter, text: str
    ) -> int | None:
        if text == "off":
            return None
        try:
            return int(text)
        except ValueError:
            raise click.BadParameter(f"expected {noun} or off, got {text!r}") from None

    return read


_steps_or_off = _number_or_off("a whole number of steps")


def _limit(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> int | EllipsisType | None:
    # The policy may say it instead.
    return ... if text is None else _steps_or_off(context, parameter, text)


def _read_config(
    context: click.Context, parameter: click.Parameter, path: Path | None
) -> None:
    if path is None:
        return
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(str(error)) from error
    names = {option.name for option in context.command.params} - {parameter.name}
    for name in table:
        if name.replace("-", "_") not in names:
            known = ", ".join(sorted(str(known) for known in names))
            raise click.BadParameter(f"{name}: expected one of {known}")
    context.default_map = {k.replace("-", "_"): v for k, v in table.items()}


@click.command(context_settings={"auto_envvar_prefix": "PSSERVER"})
@click.option(
    "--rule",
    required=True,
    metavar="NAME",
    help="The optax rule: adam, optax:NAME, or module:attribute.",
)
@click.option(
    "-a",
    "--argument",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the rule, as in -a learning_rate=1e-3. May be repeated.",
)
@click.option(
    "--name",
    default=ServerConfig.name,
    show_default=True,
    help="What to call this server in status, metrics, logs and checkpoints.",
)
@click.option(
    "--max-staleness",
    callback=_limit,
    show_default=str(DEFAULT_LIMIT),
    metavar="STEPS|off",
    help="Drop a push computed more than STEPS global steps ago; off drops none.",
)
@click.option(
    "--staleness-policy",
    default=ServerConfig.staleness_policy,
    show_default=True,
    metavar="NAME[:ARGUMENTS]",
    help="What becomes of the rest: drop (nothing), inverse, polynomial:a, hinge:a,b, "
    "exponential:a (their updates are scaled down, the more the staler), "
    "adaptive:quantile,least,most (the limit follows the staleness that there is), "
    "groups:PATTERN=STEPS,... (some variables have a limit of their own), "
    "ssp:s or admission (workers wait for their turns to pull), "
    "delay-compensation:lambda[,adaptive] (gradients are corrected for what has "
    "changed since), or backup:n (the mean of the first n pushes makes each step, the "
    "others are dropped). "
    "drop:STEPS sets the limit too. See docs/policies.md.",
)
@click.option(
    "--max-grad-norm",
    type=float,
    default=ServerConfig.max_grad_norm,
    show_default="no bound",
    metavar="NORM",
    help="Reject a push whose global L2 norm is over NORM.",
)
@click.option(
    "--max-inflight-bytes",
    type=click.IntRange(min=1),
    default=ServerConfig.max_inflight_bytes,
    show_default="an eighth of the memory",
    metavar="BYTES",
    help="How much of gradients may be on its way at once; who comes when there is no "
    "room is asked to come again.",
)
@click.option("--host", default=ServerConfig.host, show_default=True)
@click.option(
    "--port",
    type=int,
    default=ServerConfig.port,
    show_default=True,
    help="0 picks a free one.",
)
@click.option(
    "--http-port",
    callback=_number_or_off("a port"),
    default=str(_HTTP_PORT),
    show_default=True,
    metavar="PORT|off",
    help="Of the live page and the metrics; 0 picks a free one, off opens none.",
)
@click.option(
    "--tls-cert",
    type=_FILE,
    metavar="FILE",
    help="The server's certificate in PEM, then those that lead to one that clients "
    "know: both ports speak TLS.",
)
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key, in PEM.")
@click.option(
    "--tls-client-ca",
    type=_FILE,
    metavar="FILE",
    help="PEM certificates, of which one has to vouch for every client's.",
)
@click.option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    help="Lines of ROLE TOKEN [EXPIRES], one of which callers have to show: a viewer "
    "reads, a worker pushes too, an admin may do all. PSSERVER_TOKENS can have them "
    "too. SIGHUP reads this and certificates again.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen beyond loopback without TLS and tokens, although anybody could then "
    "change the variables.",
)
@click.option("--reflection", is_flag=True, help="Answer gRPC's reflection calls.")
@click.option(
    "--same-host/--no-same-host",
    default=ServerConfig.same_host,
    show_default=True,
    help="Let this user's workers on this host use a unix socket and shared memory.",
)
@click.option(
    "--durability",
    type=click.Choice(DURABILITIES),
    default=ServerConfig.durability,
    show_default=True,
    help="What an acknowledged push outlasts: nothing; the server's end, once a "
    "checkpoint is saved; or anything, the loss of power too.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where checkpoints and log are; a server that finds some goes on from them.",
)
@click.option(
    "--checkpoint-every",
    default=ServerConfig.checkpoint_every,
    show_default=True,
    metavar="STEPS|SECONDSs",
    help="When to save a checkpoint: 1000 means about every 1000 steps, as pushes go "
    "on while one is saved; 60s means seconds.",
)
@click.option(
    "--keep",
    type=int,
    default=ServerConfig.keep,
    show_default=True,
    help="How many checkpoints stay; at least 2 with log, which goes back to the one "
    "before the newest.",
)
@click.option(
    "--metrics-file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Append the figures to FILE, a line of JSON a second; see psserver report.",
)
@click.option(
    "--sink",
    multiple=True,
    metavar="NAME[=ARGUMENT]",
    help="Show the figures to a plug-in, such as tensorboard=DIR. May be repeated.",
)
@click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="Where to look for the module of --rule module:attribute.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.STYLES),
    default="human",
    show_default=True,
    help="json: an object a line, on stderr.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    metavar="FILE",
    help="A TOML file of these options; flags and PSSERVER_* variables win.",
)
def serve(
    rule: str,
    argument: tuple[str, ...],
    metrics_file: str | None,
    sink: tuple[str, ...],
    app_dir: str,
    log_format: str,
    **settings: Any,
) -> None:
    """Serve until interrupted, or until `psserver stop`."""
    # The variables live in this machine's memory: a GPU is left to the workers.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logs.configure(log_format, settings["name"])
    keep_freed_memory()
    # Whoever lists the processes sees their arguments, so there is no option for it.
    settings["tokens"] = os.environ.get("PSSERVER_TOKENS", "")
    sys.path.insert(0, app_dir)
    # A KeyboardInterrupt passes through the server, which stops with grace.
    with (
        interruptible(),
        suppress(KeyboardInterrupt),
        _start(rule, argument, metrics_file, sink, settings) as server,
    ):
        click.echo(f"listening on {server.address}")
        if server.http_address:
            click.echo(f"metrics on {_typeable(server.http_address)}")
        click.echo(f"next: {_next(server.address, settings)}")
        sys.stdout.flush()
        try:
            with _reloading(server, settings):
                server.wait()
        except OSError as error:
            raise click.ClickException(complaints.told(error)) from error
        finally:
            _stop(server)


def _next(address: str, settings: dict[str, Any]) -> str:
    command = f"psworker run MODULE:TASK --server {_typeable(address)}"
    if settings["tls_cert"]:
        command += " --tls-ca FILE"
    if settings["tls_client_ca"]:
        command += " --tls-cert FILE --tls-key FILE"
    if settings["token_file"] or settings["tokens"]:
        command += " --token-file FILE"
    return command


@contextmanager
def _reloading(server: "Server", settings: dict[str, Any]) -> Iterator[None]:
    """Have SIGHUP read files again, where there are any; else it ends the process."""
    if not (settings["tls_cert"] or settings["token_file"]):
        yield
        return

    def reload() -> None:
        try:
            server.reload()
        except ValueError as error:
            _log.error(
                "what there was stays good: %s",
                error,
                extra={"event": "reload_failed", "error": str(error)},
            )

    # In a thread: a handler interrupts whatever the main one is in the midst of.
    before = signal.signal(
        signal.SIGHUP, lambda number, frame: threading.Thread(target=reload).start()
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _typeable(address: str) -> str:
    # What means all addresses of this host is, elsewhere, none of them.
    everywhere = r"(?<![^/])(0\.0\.0\.0|\[::\])(?=:)"
    return re.sub(everywhere, lambda _: socket.gethostname(), address)


def _stop(server: "Server") -> None:
    # In a thread: a signal that comes meanwhile ends the wait for it, and nothing else.
    with ThreadPoolExecutor(1, "psserver stop") as pool:
        stopping = pool.submit(server.stop)
        while not stopping.done():
            with suppress(KeyboardInterrupt):
                wait((stopping,))
    try:
        was_in_time = stopping.result()
    except OSError as error:
        raise click.ClickException(complaints.told(error)) from error
    if not was_in_time:
        raise click.ClickException(
            "stop: expected calls in flight to finish in time, some were cut off"
        )


def _start(
    rule: str,
    arguments: tuple[str, ...],
    metrics_file: str | None,
    sinks: tuple[str, ...],
    settings: dict[str, Any],
) -> "Server":
    try:
        ServerConfig(**settings)  # Before the imports below, which take seconds.
        import jax

        from psserver.rulespec import canonical, parse_arguments, resolve
        from psserver.server import Server

        # An update is waited for anyway: another thread would take longer, and still
        # hold a model's memory for a moment. JAX has no environment variable for it.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        parsed = parse_arguments(arguments)
        resolved = resolve(rule, parsed)
        told = canonical(rule, parsed)
        opened = _open_sinks(metrics_file, sinks)  # The server closes them.
        return Server(resolved, rule_name=told, sinks=opened, **settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.ClickException(complaints.told(error)) from error


def _open_sinks(metrics_file: str | None, names: tuple[str, ...]) -> list["Sink"]:
    from psserver.metrics.jsonlines import JsonLines
    from psserver.metrics.recorder import close_sinks
    from psserver.metrics.sinks import resolve
    from psserver.metrics.workernews import WorkerNews

    files = [JsonLines(metrics_file)] if metrics_file else []
    opened: list[Sink] = [WorkerNews(), *files]
    try:
        opened.extend(map(resolve, names))
    except ValueError:
        close_sinks(opened)
        raise
    return opened
