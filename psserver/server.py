"""A server in this process: comes up as a whole or not at all, stops with grace."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import EllipsisType
from typing import Self

import optax

from psserver.budget import Budget
from psserver.calls import Calls
from psserver.commands import Commands
from psserver.config import ServerConfig
from psserver.durability import disk
from psserver.durability.archive import Archive
from psserver.durability.every import Every
from psserver.durability.lock import locked
from psserver.durability.logwatch import LogWatch
from psserver.durability.place import require_own
from psserver.durability.saver import Saver
from psserver.grpcport import GrpcPort
from psserver.metrics.history import History
from psserver.metrics.meter import Meter
from psserver.metrics.prometheus import exposer
from psserver.metrics.recorder import Recorder, Sink, close_sinks
from psserver.samehost import SameHost
from psserver.security.access import Access
from psserver.security.guard import Guard
from psserver.security.tls import ServerTls
from psserver.security.tokens import read_tokens
from psserver.service import ParameterServer
from psserver.store import Store
from psserver.web.pages import make_pages
from psserver.web.web import Web
from pswire.body import MAX_UNARY_NBYTES
from pswire.status import Limits, Status, limited

_WAKE_S = 0.5
_UNDO_S = 1.0  # For threads that have nothing to do yet.

_log = logging.getLogger("psserver")


class Server:
    """A parameter server that listens from its construction until `stop`.

    Example:
        >>> import optax
        >>> with Server(optax.sgd(0.1), max_staleness=4, port=0) as server:
        ...     server.status().step
        0
    """

    def __init__(
        self,
        rule: optax.GradientTransformation,
        *,
        rule_name: str = "custom",
        name: str = ServerConfig.name,
        max_staleness: int | EllipsisType | None = ServerConfig.max_staleness,
        staleness_policy: str = ServerConfig.staleness_policy,
        max_grad_norm: float | None = ServerConfig.max_grad_norm,
        max_inflight_bytes: int | None = ServerConfig.max_inflight_bytes,
        host: str = ServerConfig.host,
        port: int = ServerConfig.port,
        http_port: int | None = ServerConfig.http_port,
        tls_cert: str | os.PathLike[str] | None = ServerConfig.tls_cert,
        tls_key: str | os.PathLike[str] | None = ServerConfig.tls_key,
        tls_client_ca: str | os.PathLike[str] | None = ServerConfig.tls_client_ca,
        token_file: str | os.PathLike[str] | None = ServerConfig.token_file,
        tokens: str = "",
        insecure: bool = ServerConfig.insecure,
        reflection: bool = ServerConfig.reflection,
        same_host: bool = ServerConfig.same_host,
        durability: str = ServerConfig.durability,
        data_dir: str | os.PathLike[str] | None = ServerConfig.data_dir,
        checkpoint_every: int | str = ServerConfig.checkpoint_every,
        keep: int = ServerConfig.keep,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Listen.

        Args:
            rule: Any optax gradient transformation, `optax.adam(1e-3)` say.
            rule_name: What `status` calls the rule.
            name: See `ServerConfig`, as for all that follow.
            max_staleness: See there.
            staleness_policy: See there.
            max_grad_norm: See there.
            max_inflight_bytes: See there.
            host: See there.
            port: See there.
            http_port: See there.
            tls_cert: See there.
            tls_key: See there.
            tls_client_ca: See there.
            token_file: See there.
            tokens: See there.
            insecure: See there.
            reflection: See there.
            same_host: See there.
            durability: See there.
            data_dir: See there.
            checkpoint_every: See there.
            keep: See there.
            sinks: Who gets the server's figures, once a second and at the end; they
                are closed with the server, also if it does not come up.

        Raises:
            ValueError: A setting is not what it has to be.
            OSError: The address cannot be listened on, or the data directory not be
                used: its files are damaged, of another rule, or another server's.
        """
        self._asked = threading.Event()
        # Guards `_is_stopped`; a signal's handler may stop a server that is stopping.
        self._stopping = threading.RLock()
        self._is_stopped = False
        self._was_in_time = True
        with ExitStack() as undo:
            undo.callback(close_sinks, sinks)
            self._config = config = ServerConfig(
                name=name,
                max_staleness=max_staleness,
                staleness_policy=staleness_policy,
                max_grad_norm=max_grad_norm,
                max_inflight_bytes=max_inflight_bytes,
                host=host,
                port=port,
                http_port=http_port,
                tls_cert=tls_cert,
                tls_key=tls_key,
                tls_client_ca=tls_client_ca,
                token_file=token_file,
                tokens=tokens,
                insecure=insecure,
                reflection=reflection,
                same_host=same_host,
                durability=durability,
                data_dir=data_dir,
                checkpoint_every=checkpoint_every,
                keep=keep,
            )
            self._open_security(config)
            self._prepare(rule, rule_name, config, undo)
            self._listen(config, sinks, undo)
            undo.pop_all()  # It is up: from now on all that is for `stop` to do.
        limits = self._store.limits
        _log.info(
            "serving %s on %s, %s",
            *(rule_name, self.address),
            limited(limits.max_staleness, limits.staleness_policy),
            extra={
                "event": "serving",
                "rule": rule_name,
                "address": self.address,
                "limit": limits.max_staleness,
                "staleness_policy": limits.staleness_policy,
            },
        )

    def status(self) -> Status:
        """Return all counters as of one moment."""
        return self._store.status(time.monotonic())

    def reload(self) -> None:
        """Read tokens and certificates again; calls and connections go on.

        Who has connected stays so, but each of its calls is held against the tokens
        that there are then.

        Raises:
            ValueError: A file cannot be read, or is not what it has to be; then all
                stays as it is.
        """
        tokens = read_tokens(self._config.token_file, self._config.tokens)
        if self._tls:
            self._tls.reload()
        self._access.tokens = tokens
        _log.info("read tokens and certificates again", extra={"event": "reloaded"})

    def wait(self) -> None:
        """Block until somebody asks the server to stop, which is the caller's to do.

        Raises:
            OSError: The disk has failed, so that no push can be kept any more.
        """
        # Untimed, it may miss a signal that another thread has received.
        while not self._asked.wait(_WAKE_S):
            pass
        if self._failure:
            raise self._failure

    def stop(self, grace_s: float = 10.0) -> bool:
        """Refuse new calls, let those in flight finish, save all, and close.

        Args:
            grace_s: How long to wait for calls in flight, in seconds; those that
                last longer are cancelled. Sinks have what is left of it, and two
                seconds at least.

        Returns:
            Whether all calls in flight have finished by themselves.

        Raises:
            OSError: The last checkpoint could not be saved; all else is done.
        """
        with self._stopping:
            if self._is_stopped:
                return self._was_in_time
            deadline = time.monotonic() + grace_s
            _log.info(
                "stopping, with %g s of grace",
                grace_s,
                extra={"event": "stopping", "grace_s": grace_s},
            )
            self._asked.set()
            self._grpc.stop(grace_s)
            self._store.stop_waiting()
            if self._same_host:
                self._same_host.stop(grace_s)
            self._grpc.join()
            self._was_in_time = time.monotonic() < deadline
            if self._web:
                self._web.stop()
            if self._recorder:
                self._recorder.stop(deadline - time.monotonic())
            self._tell_end()
            try:
                if self._saver:
                    self._saver.stop()
            except Exception:
                self._let_go()
                raise
            self._let_go()  # Not before: whoever interrupts this may call it again.
            return self._was_in_time

    def _let_go(self) -> None:
        self._data_dir.close()
        self._is_stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _prepare(
        self,
        rule: optax.GradientTransformation,
        rule_name: str,
        config: ServerConfig,
        undo: ExitStack,
    ) -> None:
        self._saver = self._open_data_dir(config, undo)
        # What it measures, only the HTTP port shows.
        self._meter = None if config.http_port is None else Meter()
        self._store = Store(
            rule,
            rule_name=rule_name,
            name=config.name,
            limits=Limits(
                max_staleness=config.terms.limit,
                staleness_policy=config.terms.policy.spec,
                max_grad_norm=config.max_grad_norm,
                max_model_nbytes=_memory_nbytes(),
                max_unary_nbytes=MAX_UNARY_NBYTES,
            ),
            generation=secrets.token_hex(8),
            incarnation=secrets.token_hex(8),
            now=time.monotonic(),
            on_judged=self._meter.judged if self._meter else None,
            keeper=self._saver,
            budget=Budget(config.max_inflight_bytes or _memory_nbytes() // 8),
        )
        if self._saver:
            self._saver.recover(self._store.lineage, rule_name)
        self._calls = Calls(self._store)

    def _open_security(self, config: ServerConfig) -> None:
        self._access = Access(read_tokens(config.token_file, config.tokens))
        self._tls = None
        if config.tls_cert is not None and config.tls_key is not None:
            self._tls = ServerTls(config.tls_cert, config.tls_key, config.tls_client_ca)

    def _open_data_dir(self, config: ServerConfig, undo: ExitStack) -> Saver | None:
        self._failure: Exception | None = None
        self._data_dir = undo.enter_context(ExitStack())
        if config.data_dir is None:
            return None
        folder = Path(config.data_dir).absolute()
        real = disk.RealDisk()
        require_own(real, folder)  # Before a lock is put there.
        self._data_dir.enter_context(locked(folder))
        archive = Archive(real, folder, mode=config.durability, keep=config.keep)
        self._data_dir.callback(archive.close)
        return Saver(
            archive,
            Every.parse(config.checkpoint_every),
            LogWatch(archive, self._fail),
            lambda is_taking: self._grpc.tell_health(is_taking),
        )

    def _fail(self, error: Exception) -> None:
        """Have the server end: what it acknowledged from now on might be lost."""
        why = str(error) or repr(error)  # Some say nothing.
        _log.critical(
            "no push can be kept any more: %s",
            why,
            extra={"event": "disk_failed", "error": why},
        )
        self._failure = error
        self._asked.set()

    def _listen(
        self, config: ServerConfig, sinks: Sequence[Sink], undo: ExitStack
    ) -> None:
        first = self.status()  # Before anybody can call.
        history = History(self._store.incarnation)
        self._web = self._open_web(config, history, first)
        self.http_address = self._web.address if self._web else None
        """http://HOST:PORT/ of the live page and the metrics, or https; None: off."""
        if self._web:
            undo.callback(self._web.stop)
            sinks = (*sinks, history)
        service = ParameterServer(self._calls, self._meter)
        save = self._saver.save if self._saver else None
        commands = Commands(self._asked, self._calls, save)
        guard = Guard(self._access, self._meter)
        self._grpc = GrpcPort(service, commands, config, guard=guard, tls=self._tls)
        undo.callback(self._grpc.join)
        undo.callback(self._grpc.stop, _UNDO_S)
        self.address = self._grpc.address
        """HOST:PORT, with the port really bound."""
        self._same_host = self._listen_nearby() if config.same_host else None
        if self._same_host:
            undo.callback(self._same_host.stop, _UNDO_S)
        if self._saver:
            undo.callback(self._saver.halt)
            self._saver.start()
        self._grpc.start()
        self._recorder = Recorder(self.status, sinks, first=first) if sinks else None

    def _tell_end(self) -> None:
        last = self.status()
        counts = last.counts
        _log.info(
            "stopped at step %d: %d applied, %d dropped, %d duplicate, %d rejected",
            *(last.step, counts.applied, counts.dropped, counts.duplicate),
            sum(counts.rejected.values()),
            extra={"event": "stopped", "step": last.step, **counts.to_json()},
        )

    def _open_web(
        self, config: ServerConfig, history: History, first: Status
    ) -> Web | None:
        if config.http_port is None or self._meter is None:
            return None
        expose = exposer(self.status, self._meter, first=first)
        pages = make_pages(self.status, history, expose)
        try:
            return Web(*(config.host, config.http_port, pages), self._access, self._tls)
        except OSError as error:
            raise OSError(
                f"http_port: expected {config.host}:{config.http_port} to be free, got "
                f"{error}; --http-port 0 picks another port, off opens none"
            ) from error

    def _listen_nearby(self) -> SameHost | None:
        if not hasattr(os, "memfd_create"):
            return None  # Only Linux has memory without a name.
        try:
            nearby = SameHost(
                *(self._calls, self._store.incarnation, self._access, self._meter)
            )
        except OSError as error:
            _log.warning(
                "workers on this host will use gRPC: %s",
                error,
                extra={"event": "same_host_off", "error": str(error)},
            )
            return None
        self._calls.same_host = nearby.path
        return nearby


def _memory_nbytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
