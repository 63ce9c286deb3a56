"""The HTTP port: what it answers, whom it refuses, and that it outlives its clients."""

import errno
import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import optax
import pytest

import psserver
import psworker
from psserver.security.access import Access
from psserver.web.web import Listener, Web

StartServer = Callable[..., psserver.Server]
Get = Callable[..., http.client.HTTPResponse]

_TIMEOUT_S = 20.0
_TEXT = "text/plain; charset=utf-8"


def fail(accept: str) -> tuple[str, bytes]:
    """Be a page whose making goes wrong."""
    raise RuntimeError("the disk is gone")


PAGES = {
    "/": lambda accept: ("text/html", b"<p>hello"),
    "/accept": lambda accept: ("text/plain", accept.encode()),
    "/broken": fail,
}
ANYBODY = Access(None)
HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start an HTTP server of three pages, for all tests that only ask."""
    web = Web("127.0.0.1", 0, PAGES, ANYBODY)
    yield web.address
    web.stop()


@pytest.fixture
def start_web() -> Iterator[Callable[..., Web]]:
    """Start HTTP servers of three pages that stop with the test."""
    with ExitStack() as stack:

        def start(host: str = "127.0.0.1", **settings: Any) -> Web:
            web = Web(host, 0, PAGES, ANYBODY, **settings)
            stack.callback(web.stop)
            return web

        yield start


def connect(address: str) -> http.client.HTTPConnection:
    """Connect to the port of an address `http://HOST:PORT/`."""
    url = urlsplit(address)
    assert url.hostname is not None
    return http.client.HTTPConnection(url.hostname, url.port, timeout=_TIMEOUT_S)


@pytest.fixture
def dial_raw() -> Iterator[Callable[[str], socket.socket]]:
    """Open plain sockets to an address, which close with the test."""
    with ExitStack() as stack:

        def dial(address: str) -> socket.socket:
            url = urlsplit(address)
            made = socket.create_connection((url.hostname, url.port), _TIMEOUT_S)
            return stack.enter_context(made)

        yield dial


@pytest.fixture
def get() -> Iterator[Get]:
    """Make requests on connections of their own, which close with the test."""
    with ExitStack() as stack:

        def get(
            address: str, path: str = "/", method: str = "GET", **settings: Any
        ) -> http.client.HTTPResponse:
            connection = connect(address)
            stack.callback(connection.close)
            connection.request(method, path, **settings)
            return connection.getresponse()

        yield get


# One request


@pytest.mark.parametrize("path", ["/", "/?at=now"])
def test_a_page_comes_with_what_a_browser_should_know(
    path: str, address: str, get: Get
) -> None:
    """Its type and length, and that it is neither to be kept nor to load others'."""
    answer = get(address, path)

    assert (answer.status, answer.read()) == (200, b"<p>hello")
    assert dict(answer.headers) == {
        "Server": "asyncps",
        "Date": answer.headers["Date"],
        "Content-Type": "text/html",
        "Content-Length": "8",
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'self'",
        "X-Content-Type-Options": "nosniff",
    }


def test_a_page_learns_what_the_client_accepts(address: str, get: Get) -> None:
    """A client that does not say accepts the empty text."""
    told = get(address, "/accept", headers={"Accept": "application/x"}).read()
    untold = get(address, "/accept").read()

    assert (told, untold) == (b"application/x", b"")


def test_head_is_get_without_the_body(
    address: str, dial_raw: Callable[[str], socket.socket]
) -> None:
    """The length is that of the body which GET would bring; nothing follows."""
    raw = dial_raw(address)
    raw.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n")

    answer = b"".join(iter(lambda: raw.recv(2**16), b""))

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/nothing", "/broken/", "/%2e%2e/etc/passwd"])
def test_an_unknown_path_is_told_the_known_ones(
    path: str, address: str, get: Get
) -> None:
    """In plain text, without a word of what was asked for."""
    answer = get(address, path)

    assert (answer.status, answer.headers["Content-Type"]) == (404, _TEXT)
    assert answer.read() == b"path: expected one of /, /accept, /broken\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_nothing_can_be_done_but_read(method: str, address: str, get: Get) -> None:
    """Whatever the path and the body."""
    answer = get(address, method=method, body=b"step=0")

    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.read() == b"method: expected GET or HEAD\n"


def test_a_page_that_fails_harms_no_other(
    start_web: Callable[..., Web], get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is for the server's owner, in the log: once, not for each request."""
    address = start_web().address

    answers = [get(address, "/broken") for _ in range(2)]

    assert [answer.status for answer in answers] == [500, 500]
    assert answers[0].read() == b"failed; the server's log says why\n"
    assert caplog.text.count("RuntimeError: the disk is gone") == 1
    assert get(address).status == 200


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / what HTTP/1.1", 400),
        (b"GET /" + b"x" * 2**16, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 2**16, 431),
    ],
    ids=["words", "long path", "long header"],
)
def test_what_is_no_http_is_refused_in_text(
    request_head: bytes,
    status: int,
    address: str,
    dial_raw: Callable[[str], socket.socket],
) -> None:
    """And the connection is closed."""
    raw = dial_raw(address)

    raw.sendall(request_head + b"\r\n\r\n")
    answer = http.client.HTTPResponse(raw)
    answer.begin()

    assert (answer.status, answer.headers["Content-Type"]) == (status, _TEXT)
    assert answer.headers["Connection"] == "close"


def test_requests_are_not_logged(
    address: str,
    get: Get,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither those that are answered nor those that are refused."""
    with caplog.at_level(logging.INFO):
        get(address).read()
        get(address, "/nothing").read()

    assert not caplog.records
    assert capfd.readouterr() == ("", "")


# Names


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:7071", 200),
        ("127.9.9.9", 200),
        ("[::1]:7071", 200),
        ("evil.example", 403),
        ("localhost.evil.example:7071", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example@127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_on_loopback_only_its_own_names_are_answered(
    host: str, status: int, address: str, get: Get
) -> None:
    """A web page from elsewhere can make its own name mean this machine."""
    answer = get(address, headers={"Host": host})

    assert answer.status == status
    assert (b"expected a loopback name" in answer.read()) == (status == 403)


def test_beyond_loopback_any_name_is_answered(get: Get) -> None:
    """What others call this machine is not known here."""
    web = Web("0.0.0.0", 0, PAGES, ANYBODY)

    try:
        status = get(web.address, headers={"Host": "my.machine"}).status
    finally:
        web.stop()

    assert status == 200


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
def test_any_loopback_host_can_be_listened_on(
    host: str, start_web: Callable[..., Web], get: Get
) -> None:
    """IPv6 as well; its address is one that can be typed into a browser."""
    address = start_web(host).address

    assert address.startswith(f"http://{'[::1]' if ':' in host else host}:")
    assert get(address).status == 200


# Connections


def test_a_connection_serves_many_requests(start_web: Callable[..., Web]) -> None:
    """As a browser that asks each second wants it; a refusal ends it."""
    connection = connect(start_web().address)

    for _ in range(3):
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.read(), answer.will_close) == (b"<p>hello", False)
    connection.request("GET", "/nothing")
    refused = connection.getresponse()

    assert (refused.status, refused.will_close) == (404, True)
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=["before", "within", "after"],
)
def test_a_silent_client_is_hung_up_on(
    sent: bytes,
    start_web: Callable[..., Web],
    dial_raw: Callable[[str], socket.socket],
) -> None:
    """Before its request, within it, or after the answer; no time-out of its own."""
    raw = dial_raw(start_web(patience_s=0.2).address)

    raw.sendall(sent)

    with suppress(ConnectionError):
        while raw.recv(2**16):
            pass


def test_a_client_that_trickles_is_hung_up_on(
    start_web: Callable[..., Web], dial_raw: Callable[[str], socket.socket]
) -> None:
    """A byte now and then is no reason to wait for ever."""
    raw = dial_raw(start_web(patience_s=0.2).address)
    raw.settimeout(0.01)
    raw.sendall(b"GET / HTTP/1.1\r\nX: ")

    assert any(_has_ended(raw) for _ in range(int(_TIMEOUT_S / 0.01)))


def _has_ended(raw: socket.socket) -> bool:
    """Send a byte more, and wait a moment for the end of the connection."""
    try:
        raw.sendall(b"x")
        return raw.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_connections_are_bounded(
    start_web: Callable[..., Web],
    dial_raw: Callable[[str], socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One too many is closed at once; those that are there go on."""
    monkeypatch.setattr("psserver.web.web._MAX_CONNECTIONS", 2)
    address = start_web().address
    first = connect(address)
    first.request("GET", "/")
    assert first.getresponse().read()
    dial_raw(address)

    refused = dial_raw(address).recv(1)
    first.request("GET", "/")

    assert refused == b""
    assert first.getresponse().status == 200
    first.close()


def test_a_connection_that_is_refused_is_not_reset(
    start_web: Callable[..., Web],
    dial_raw: Callable[[str], socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client sees an end, although its request has come and is not read."""
    has_sent = threading.Event()

    def refuse(*about: Any) -> bool:
        has_sent.wait(_TIMEOUT_S)
        return False

    monkeypatch.setattr(Listener, "verify_request", refuse)
    raw = dial_raw(start_web().address)

    raw.sendall(HEAD)
    has_sent.set()

    assert raw.recv(1) == b""


def test_a_connection_without_a_thread_is_closed_and_the_port_goes_on(
    start_web: Callable[..., Web],
    dial_raw: Callable[[str], socket.socket],
    get: Get,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The log says so once, without a traceback."""
    address = start_web(patience_s=0.2).address
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "psserver http connection":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        refused = [dial_raw(address).recv(1) for _ in range(2)]
    waiting = dial_raw(address)  # Its end comes after those of the refused.

    assert refused == [b"", b""]
    assert waiting.recv(1) == b""
    assert get(address).status == 200
    assert [record.getMessage() for record in caplog.records] == [
        "an HTTP connection cannot be taken: can't start new thread"
    ]
    assert capfd.readouterr() == ("", "")


def test_without_descriptors_a_connection_waits(
    start_web: Callable[..., Web],
    dial_raw: Callable[[str], socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is answered when there are some again; the log says so once."""
    web = start_web()
    pauses: list[float] = []
    has_paused = threading.Event()

    def fail(listener: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            patch.undo()
            has_paused.set()

    with monkeypatch.context() as patch:
        patch.setattr("psserver.web.web.time.sleep", pause)
        patch.setattr(socket.socket, "accept", fail)
        raw = dial_raw(web.address)
        raw.sendall(HEAD)
        assert has_paused.wait(_TIMEOUT_S)
    answer = raw.recv(2**16)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert len(pauses) == 2
    assert min(pauses) > 0
    assert caplog.text.count("cannot be taken: [Errno 24] Too many open files") == 1


def test_stopping_waits_for_no_client(
    start_web: Callable[..., Web], dial_raw: Callable[[str], socket.socket]
) -> None:
    """One that is silent and one that keeps its connection; the port is closed."""
    web = Web("127.0.0.1", 0, PAGES, ANYBODY)
    silent, kept = dial_raw(web.address), connect(web.address)
    kept.request("GET", "/")
    kept.getresponse().read()

    web.stop()

    assert silent.recv(1) == b""
    kept.close()
    with pytest.raises(ConnectionRefusedError):
        dial_raw(web.address)


# A server's


def test_a_server_shows_its_figures(start_server: StartServer, get: Get) -> None:
    """The same as `status`, as of one moment, and what the run has been so far."""
    server = start_server(http_port=0, max_staleness=0)
    assert server.http_address is not None
    with psworker.connect(server.address) as client:
        client.initialize({"w": np.zeros(2, np.float32)})
        for _ in range(2):
            client.push({"w": np.ones(2, np.float32)}, step_read=0)

    shown = json.loads(get(server.http_address, "/status.json").read())
    history = json.loads(get(server.http_address, "/history.json").read())

    expected = server.status().to_json()
    assert (shown["applied"], shown["dropped"]) == (1, 1)
    assert shown.keys() == {"time", *expected}
    assert {k: shown[k] for k in ("step", "staleness", "received", "rule")} == {
        k: expected[k] for k in ("step", "staleness", "received", "rule")
    }
    assert history["incarnation"] == shown["incarnation"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml; charset=utf-8"),
        ("/metrics", "text/plain; version="),
        ("/status.json", "application/json"),
        ("/history.json", "application/json"),
    ],
)
def test_a_server_shows_its_page(
    path: str, kind: str, start_server: StartServer, get: Get
) -> None:
    """Each file by its type."""
    server = start_server(http_port=0)
    assert server.http_address is not None

    answer = get(server.http_address, path)

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith(kind)


def test_a_server_opens_no_http_port_unasked(start_server: StartServer) -> None:
    """A program that only trains needs none."""
    assert start_server().http_address is None


def test_a_server_whose_http_port_is_taken_does_not_start(
    start_web: Callable[..., Web],
) -> None:
    """It leaves no thread and no open port behind, and says what to do."""
    port = urlsplit(start_web().address).port

    with pytest.raises(OSError, match=f"^http_port: expected .*:{port} to be free"):
        psserver.Server(optax.sgd(1.0), port=0, http_port=port)


def test_a_server_whose_port_is_taken_closes_its_http_port(
    start_server: StartServer,
) -> None:
    """Both are there, or none."""
    port = int(start_server().address.rpartition(":")[2])

    with pytest.raises(OSError, match=f"^port: expected .*:{port} to be free"):
        psserver.Server(optax.sgd(1.0), port=port, http_port=0)


def test_a_server_whose_last_step_fails_closes_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both its ports, and all threads."""

    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("psserver.server.Recorder", fail)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        psserver.Server(optax.sgd(1.0), port=0, http_port=0)


def test_a_scrape_in_an_unknown_version_gets_the_default(
    start_server: StartServer, get: Get
) -> None:
    """What a client accepts is anybody's text."""
    server = start_server(http_port=0)
    assert server.http_address is not None
    accept = {"Accept": "application/openmetrics-text; version=x.y"}

    answer = get(server.http_address, "/metrics", headers=accept)

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"\nasyncps_step 0.0\n" in answer.read()
