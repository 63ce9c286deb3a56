"""An HTTP server in this process, with pages that can only be read."""

import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import HTTPServer
from socketserver import TCPServer
from typing import Any

from psserver.security.access import Access
from psserver.security.tls import ServerTls
from psserver.web.request import Page, Request
from pswire.loopback import is_loopback

_PATIENCE_S = 20.0
_LOOK_EVERY_S = 0.1  # For clients that take too long, and for the end.
_MAX_CONNECTIONS = 64  # At once: each holds a thread.

_log = logging.getLogger("psserver")


class Web:
    """Answers from its construction until `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Page],
        access: Access,
        tls: ServerTls | None = None,
        *,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Listen.

        Args:
            host: The address to listen on: a name or a number.
            port: The port to listen on; 0 picks a free one.
            pages: What there is to read, by path.
            access: Who may read it.
            tls: What is shown to those who connect; None: all is said openly.
            patience_s: How long a client may take for its first request, and from
                each to the next, in seconds.

        Raises:
            OSError: The address cannot be listened on.
            RuntimeError: There is no thread left.
        """
        bare = host.strip("[]")
        self._server = Listener(bare, port, pages, access, tls, patience_s)
        shown = f"[{bare}]" if ":" in bare else bare
        scheme = "https" if tls else "http"
        self.address = f"{scheme}://{shown}:{self._server.server_port}/"
        """http://HOST:PORT/ or https, with the port really bound."""
        # Daemons, this thread and those of connections: any program can end.
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(_LOOK_EVERY_S,),
            name="psserver http",
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._server.server_close()
            raise

    def stop(self) -> None:
        """Close the port and every connection."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Listener(HTTPServer):
    """Gives each connection a thread, and hangs up on those that take too long.

    Attributes:
        pages: What there is to read, by path.
        access: Who may read it.
        failing: Those whose last request failed.
        only_loopback: Whether only this machine can connect.
    """

    allow_reuse_port = False  # Else a second server shares the port.

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Page],
        access: Access,
        tls: ServerTls | None,
        patience_s: float,
    ) -> None:
        self.pages = pages
        self.access = access
        self._tls = tls
        self.failing: set[Page] = set()
        self.only_loopback = is_loopback(host)
        self._patience_s = patience_s
        self._is_refusing = False
        # Guards the dictionary: each open connection's thread, and when it ends.
        self._lock = threading.Lock()
        self._open: dict[socket.socket, tuple[threading.Thread, float]] = {}
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self.address_family = found[0][0]
        super().__init__((host, port), Request)

    def renew(self, connection: socket.socket) -> None:
        """Give a client its time anew."""
        with self._lock:
            thread, _ = self._open[connection]
            self._open[connection] = (thread, time.monotonic() + self._patience_s)

    def server_bind(self) -> None:
        # HTTPServer's own asks a name server who it is.
        TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            self._tell_refused(error)
            time.sleep(_LOOK_EVERY_S)  # It would fail again at once, and again.
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            return len(self._open) < _MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._tls:
            # The rest, for which the client has to speak, is up to the thread.
            request = self._tls.context.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(
            target=self._converse,
            args=(request, client_address),
            name="psserver http connection",
            daemon=True,
        )
        with self._lock:
            thread.start()
            self._open[request] = (thread, time.monotonic() + self._patience_s)
        self._is_refusing = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a connection, which is then closed, could get no thread."""
        self._tell_refused(sys.exception())

    def service_actions(self) -> None:
        """Hang up on clients that take too long; called now and then."""
        self._hang_up(time.monotonic())

    def server_close(self) -> None:
        super().server_close()
        for thread in self._hang_up(float("inf")):
            thread.join()

    def _converse(self, connection: socket.socket, client_address: Any) -> None:
        try:
            # A client that goes away in the midst of an answer is nobody's trouble.
            with suppress(OSError):
                if isinstance(connection, ssl.SSLSocket):
                    connection.do_handshake()
                self.finish_request(connection, client_address)
        finally:
            with self._lock:
                del self._open[connection]
            self.shutdown_request(connection)

    def _hang_up(self, now: float) -> list[threading.Thread]:
        with self._lock:
            late = {c: thread for c, (thread, end) in self._open.items() if end <= now}
            for connection in late:
                with suppress(OSError):  # It has gone by itself.
                    # Not TLS's own, which takes from under its thread what it uses.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            return list(late.values())

    def _tell_refused(self, error: BaseException | None) -> None:
        if not self._is_refusing:  # Once is enough, until it works again.
            self._is_refusing = True
            _log.warning(
                "an HTTP connection cannot be taken: %s",
                error,
                extra={"event": "http_refused", "error": str(error)},
            )
