"""The gRPC port: its services, their threads, and its end."""

from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from psserver import patience
from psserver.config import ServerConfig
from psserver.health import Health
from psserver.malformed import RefuseMalformed
from psserver.patience import Patience
from psserver.security.guard import Guard
from psserver.security.tls import ServerTls
from psserver.service import ParameterServer
from pswire import keepalive
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.body import MAX_MESSAGE_NBYTES

_MAX_CALLS = 128  # At once: every stream holds a thread for as long as it lasts.
_SERVICES = tuple(
    pb.DESCRIPTOR.services_by_name[name].full_name
    for name in ("ParameterServer", "Admin")
)


class GrpcPort:
    """Is bound from its construction, and answers from `start` until `stop`."""

    def __init__(
        self,
        service: ParameterServer,
        admin: rpc.AdminServicer,
        config: ServerConfig,
        *,
        guard: Guard,
        tls: ServerTls | None,
    ) -> None:
        """Bind.

        Args:
            service: Answers the workers.
            admin: Answers operators.
            config: Says where to listen.
            guard: Says who is answered.
            tls: What is shown to those who connect; None: all is said openly.

        Raises:
            OSError: The address cannot be listened on.
        """
        self._patience = Patience(patience.PATIENCE_S)
        self._pool = futures.ThreadPoolExecutor(_MAX_CALLS, "psserver")
        self._health = Health()
        self._grpc = self._build(service, admin, config, guard)
        self.address = self._bind(config, tls)
        """HOST:PORT, with the port really bound."""

    def start(self) -> None:
        """Answer, and say so to those who ask about the server's health."""
        self._grpc.start()
        self._patience.start()
        self.tell_health(True)

    def tell_health(self, is_serving: bool) -> None:
        """Say so, or the contrary, to those who ask about the server's health."""
        replies = health_pb2.HealthCheckResponse
        status = replies.SERVING if is_serving else replies.NOT_SERVING
        for service in ("", *_SERVICES):
            self._health.set(service, status)

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, and cancel those in flight that last longer than that.

        Args:
            grace_s: How long they may last, in seconds; `join` waits for them.
        """
        self._health.enter_graceful_shutdown()
        self._stopped = self._grpc.stop(grace_s)
        self._health.let_go()

    def join(self) -> None:
        """Wait until all calls have ended."""
        self._stopped.wait()
        self._patience.stop()
        # Closing a gRPC server leaves its pool's threads alive.
        self._pool.shutdown(wait=True)

    def _build(
        self,
        service: ParameterServer,
        admin: rpc.AdminServicer,
        config: ServerConfig,
        guard: Guard,
    ) -> grpc.Server:
        server = grpc.server(
            self._pool,
            interceptors=[guard, self._patience, RefuseMalformed()],
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
                # Nobody sends compressed what has no patterns; a few bytes might
                # become gigabytes.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                # Else a second server shares the port, and half of the workers.
                ("grpc.so_reuseport", 0),
                *keepalive.options(),
            ),
        )
        server.add_generic_rpc_handlers((service.handlers(),))
        rpc.add_AdminServicer_to_server(admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            names = (*_SERVICES, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
            grpc_reflection.enable_server_reflection(names, server)
        return server

    def _bind(self, config: ServerConfig, tls: ServerTls | None) -> str:
        bare = config.host.strip("[]")
        host = f"[{bare}]" if ":" in bare else bare
        try:
            where = f"{host}:{config.port}"
            if tls:
                port = self._grpc.add_secure_port(where, tls.grpc_credentials())
            else:
                port = self._grpc.add_insecure_port(where)
        except RuntimeError as error:
            self._pool.shutdown()
            raise OSError(
                f"port: expected {host}:{config.port} to be free, got an error; "
                "does another server listen there?"
            ) from error
        return f"{host}:{port}"
