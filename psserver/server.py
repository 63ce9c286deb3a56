"""A server in this process: binds a port, answers calls, stops with grace."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Self

import grpc
import optax
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from psserver.calls import Calls
from psserver.config import ServerConfig
from psserver.malformed import RefuseMalformed, require_message
from psserver.metrics.history import History
from psserver.metrics.meter import Meter
from psserver.metrics.prometheus import exposer
from psserver.metrics.recorder import Recorder, Sink
from psserver.samehost import SameHost
from psserver.service import ParameterServer
from psserver.store import Store
from psserver.web.pages import make_pages
from psserver.web.web import Web
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.body import MAX_MESSAGE_NBYTES, MAX_UNARY_NBYTES
from pswire.errors import to_status
from pswire.status import Limits, Status

_MAX_CALLS = 128  # At once: every stream holds a thread for as long as it lasts.
_WAKE_S = 0.5
_SERVICES = tuple(
    pb.DESCRIPTOR.services_by_name[name].full_name
    for name in ("ParameterServer", "Admin")
)

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
        max_staleness: int | None = ServerConfig.max_staleness,
        max_grad_norm: float | None = ServerConfig.max_grad_norm,
        host: str = ServerConfig.host,
        port: int = ServerConfig.port,
        http_port: int | None = ServerConfig.http_port,
        insecure: bool = ServerConfig.insecure,
        reflection: bool = ServerConfig.reflection,
        same_host: bool = ServerConfig.same_host,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Listen.

        Args:
            rule: Any optax gradient transformation, `optax.adam(1e-3)` say.
            rule_name: What `status` calls the rule.
            max_staleness: See `ServerConfig`, as for all that follow.
            max_grad_norm: See there.
            host: See there.
            port: See there.
            http_port: See there.
            insecure: See there.
            reflection: See there.
            same_host: See there.
            sinks: Who gets the server's figures, once a second and at the end; they
                are closed with the server.

        Raises:
            ValueError: A setting is not what it has to be.
            OSError: The address cannot be listened on.
        """
        config = ServerConfig(
            max_staleness=max_staleness,
            max_grad_norm=max_grad_norm,
            host=host,
            port=port,
            http_port=http_port,
            insecure=insecure,
            reflection=reflection,
            same_host=same_host,
        )
        # Who asks for no metrics pays nothing for them.
        self._meter = None if config.http_port is None else Meter()
        self._store = Store(
            rule,
            rule_name=rule_name,
            limits=Limits(
                max_staleness=config.max_staleness,
                max_grad_norm=config.max_grad_norm,
                max_model_nbytes=_memory_nbytes(),
                max_unary_nbytes=MAX_UNARY_NBYTES,
            ),
            generation=secrets.token_hex(8),
            incarnation=secrets.token_hex(8),
            now=time.monotonic(),
            on_judged=self._meter.judged if self._meter else None,
        )
        self._calls = Calls(self._store)
        self._stopping = threading.Event()
        history = History(self._store.incarnation)
        self._web = self._open_web(config, history)
        self.http_address = self._web.address if self._web else None
        """http://HOST:PORT/ of the live page and the metrics; None: off."""
        self._pool = futures.ThreadPoolExecutor(_MAX_CALLS, "psserver")
        self._health = health.HealthServicer()
        self._grpc = self._build(config)
        self.address = self._bind(config)
        """HOST:PORT, with the port really bound."""
        self._same_host = self._listen_nearby() if config.same_host else None
        if self._web:
            sinks = (*sinks, history)
        self._recorder = Recorder(self.status, sinks) if sinks else None
        self._grpc.start()
        for service in ("", *_SERVICES):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        limit = "off" if max_staleness is None else f"{max_staleness} steps"
        _log.info(
            "serving %s on %s, limit %s",
            *(rule_name, self.address, limit),
            extra={
                "event": "serving",
                "rule": rule_name,
                "address": self.address,
                "limit": max_staleness,
            },
        )

    def status(self) -> Status:
        """Return all counters as of one moment."""
        return self._store.status(time.monotonic())

    def wait(self) -> None:
        """Block until somebody asks the server to stop, which is the caller's to do."""
        # Untimed, it may miss a signal that another thread has received.
        while not self._stopping.wait(_WAKE_S):
            pass

    def stop(self, grace_s: float = 10.0) -> None:
        """Refuse new calls, let those in flight finish, and close.

        Args:
            grace_s: How long to wait for calls in flight, in seconds; those that
                last longer are cancelled.
        """
        _log.info(
            "stopping, with %g s of grace",
            grace_s,
            extra={"event": "stopping", "grace_s": grace_s},
        )
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        stopped = self._grpc.stop(grace_s)
        if self._same_host:
            self._same_host.stop(grace_s)
        stopped.wait()
        # Closing a gRPC server leaves its pool's threads alive.
        self._pool.shutdown(wait=True)
        if self._recorder:
            self._recorder.stop()
        if self._web:
            self._web.stop()
        self._tell_end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _tell_end(self) -> None:
        last = self.status()
        counts = last.counts
        _log.info(
            "stopped at step %d: %d applied, %d dropped, %d duplicate, %d rejected",
            *(last.step, counts.applied, counts.dropped, counts.duplicate),
            sum(counts.rejected.values()),
            extra={"event": "stopped", "step": last.step, **counts.to_json()},
        )

    def _build(self, config: ServerConfig) -> grpc.Server:
        server = grpc.server(
            self._pool,
            interceptors=[RefuseMalformed()],
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
                # Else a second server shares the port, and half of the workers.
                ("grpc.so_reuseport", 0),
            ),
        )
        service = ParameterServer(self._calls, self._meter)
        server.add_generic_rpc_handlers((service.handlers(),))
        rpc.add_AdminServicer_to_server(_Admin(self._stopping), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            names = (*_SERVICES, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
            grpc_reflection.enable_server_reflection(names, server)
        return server

    def _open_web(self, config: ServerConfig, history: History) -> Web | None:
        if config.http_port is None or self._meter is None:
            return None
        pages = make_pages(self.status, history, exposer(self.status, self._meter))
        try:
            return Web(config.host, config.http_port, pages)
        except OSError as error:
            raise OSError(
                f"http_port: expected {config.host}:{config.http_port} to be free, got "
                f"{error}; --http-port 0 picks another port, off opens none"
            ) from error

    def _listen_nearby(self) -> SameHost | None:
        if not hasattr(os, "memfd_create"):
            return None  # Only Linux has memory without a name.
        try:
            nearby = SameHost(self._calls, self._store.incarnation, self._meter)
        except OSError as error:
            _log.warning(
                "workers on this host will use gRPC: %s",
                error,
                extra={"event": "same_host_off", "error": str(error)},
            )
            return None
        self._calls.same_host = nearby.path
        return nearby

    def _bind(self, config: ServerConfig) -> str:
        bare = config.host.strip("[]")
        host = f"[{bare}]" if ":" in bare else bare
        try:
            port = self._grpc.add_insecure_port(f"{host}:{config.port}")
        except RuntimeError as error:
            self._pool.shutdown()
            if self._web:
                self._web.stop()
            raise OSError(
                f"port: expected {host}:{config.port} to be free, got an error; "
                "does another server listen there?"
            ) from error
        return f"{host}:{port}"


class _Admin(rpc.AdminServicer):
    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def Stop(  # noqa: N802 - gRPC names the methods.
        self, request: pb.StopRequest, context: grpc.ServicerContext
    ) -> pb.StopReply:
        with to_status(context):
            require_message(request)
            _log.info(
                "asked to stop by %s",
                context.peer(),
                extra={"event": "asked_to_stop", "peer": context.peer()},
            )
            self._stopping.set()
            return pb.StopReply()


def _memory_nbytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
