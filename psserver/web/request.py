"""One HTTP connection: its requests, and their answers."""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from pswire.credentials import Role
from pswire.errors import ParameterServerError
from pswire.loopback import names_loopback

if TYPE_CHECKING:
    from psserver.web.web import Listener

Page = Callable[[str], tuple[str, bytes]]
"""Takes a request's Accept header; returns a content type and a body."""

HEALTH = "/healthz"
"""Where a probe may look, which has no token."""

_TEXT = "text/plain; charset=utf-8"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger("psserver")


class Request(BaseHTTPRequestHandler):
    """Answers one request after the other, until the client goes or takes too long."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else a body waits for its head's acknowledgement.
    server: "Listener"

    def do_GET(self) -> None:
        self.server.renew(self.connection)
        if self.headers["Content-Length"] or self.headers["Transfer-Encoding"]:
            self.close_connection = True  # A body would be taken for a request.
        if self.server.only_loopback and not names_loopback(self.headers["Host"]):
            # A web page from elsewhere that points its own name here reads nothing.
            self.send_error(
                HTTPStatus.FORBIDDEN,
                "Host: expected a loopback name or address, as this server is bound "
                "to loopback",
            )
        elif refusal := self._refusal():
            self.send_error(HTTPStatus.UNAUTHORIZED, refusal)
        elif page := self.server.pages.get(self.path.partition("?")[0]):
            self._show(page)
        else:
            known = ", ".join(sorted(self.server.pages))
            self.send_error(HTTPStatus.NOT_FOUND, f"path: expected one of {known}")

    do_HEAD = do_GET  # noqa: N815 - see above.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Answer with an error, in a line of text, and hang up."""
        text = message or HTTPStatus(code).phrase
        headers = {"Connection": "close"}
        if code == HTTPStatus.UNAUTHORIZED:
            # What makes a browser ask: the password is the token.
            headers["WWW-Authenticate"] = 'Basic realm="asyncps"'
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        self._answer(code, _TEXT, f"{text}\n".encode(), headers)

    def version_string(self) -> str:
        return "asyncps"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: what is worth reading is logged where it happens."""

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "method: expected GET or HEAD")

    def _refusal(self) -> str:
        """Say why the caller may not read; empty: it may."""
        if self.path == HEALTH:
            return ""
        try:
            said = self.headers["Authorization"] or ""
            self.server.access.require(said, Role.VIEWER)
        except ParameterServerError as error:
            return str(error)
        return ""

    def _show(self, page: Page) -> None:
        try:
            kind, body = page(self.headers["Accept"] or "")
        except Exception:
            self._tell_failed(page)
            self.send_error(
                HTTPStatus.INTERNAL_SERVER_ERROR, "failed; the server's log says why"
            )
        else:
            self.server.failing.discard(page)
            self._answer(HTTPStatus.OK, kind, body, {})

    def _tell_failed(self, page: Page) -> None:
        if page not in self.server.failing:  # Once is enough, until it works again.
            self.server.failing.add(page)
            _log.exception(
                "an HTTP request failed; the server goes on",
                extra={"event": "page_failed"},
            )

    def _answer(
        self, code: int, kind: str, body: bytes, headers: Mapping[str, str]
    ) -> None:
        self.send_response(code)
        fixed = {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
