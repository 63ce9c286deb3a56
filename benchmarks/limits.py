"""A child that is either end of a bare connection: a socket, or unary gRPC."""

import socket
import struct
import threading
from collections.abc import Callable
from concurrent import futures
from functools import cache
from typing import Any, cast

import grpc
import numpy as np

from benchmarks.commands import obey, timed

_HEADER = struct.Struct("<?Q")  # Whether to answer with as much, and how much it is.
_METHOD = "/bare.Unary/Call"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

_families = {"tcp": socket.AF_INET, "unix": socket.AF_UNIX}
_kept: list[Any] = []  # What must not be collected: servers and channels.


def listen(family: str, host: str) -> Any:
    """Take connections, each in a thread, and return the address.

    Args:
        family: "tcp" or "unix".
        host: Where to listen for TCP.
    """
    listener = socket.socket(_families[family], socket.SOCK_STREAM)
    # A Unix socket of no name gets an abstract one, which leaves no file behind.
    listener.bind((host, 0) if family == "tcp" else "")
    listener.listen()
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    address = listener.getsockname()
    return address if family == "tcp" else address.decode("latin-1")


def send(
    family: str, address: Any, nbytes: int, echo: bool, seconds: float, at_least: int
) -> list[float]:
    """Time how long a message takes to be answered, by as much or by one byte."""
    where = tuple(address) if family == "tcp" else address.encode("latin-1")
    with socket.socket(_families[family], socket.SOCK_STREAM) as connection:
        connection.connect(where)
        _hurry(connection)
        connection.sendall(_HEADER.pack(echo, nbytes))
        message, answer = _resident(nbytes), _resident(nbytes if echo else 1)

        def once() -> None:
            connection.sendall(message)
            _fill(connection, answer)

        return timed(once, seconds, at_least)


def serve_unary() -> str:
    """Answer unary calls with their own bytes, and return the address."""
    # Without serializers it is bytes in, bytes out.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda request, context: request
    )
    service, method = _METHOD.strip("/").split("/")
    server = grpc.server(futures.ThreadPoolExecutor(4), options=_OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _kept.append(server)
    return f"127.0.0.1:{port}"


def call_unary(address: str, nbytes: int, seconds: float, at_least: int) -> list[float]:
    """Time unary calls that carry so many bytes each way."""
    message = bytes(nbytes)
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        call: Callable[[bytes], bytes] = cast(Any, channel.unary_unary(_METHOD))
        return timed(lambda: call(message), seconds, at_least)


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        _hurry(connection)
        header = memoryview(bytearray(_HEADER.size))
        _fill(connection, header)
        echo, nbytes = _HEADER.unpack(header)
        message = _resident(nbytes)
        while _fill(connection, message):
            connection.sendall(message if echo else b"\1")


def _hurry(connection: socket.socket) -> None:
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@cache
def _resident(nbytes: int) -> memoryview:
    """Return memory that is there already, rather than when it is first written.

    Every turn has the same: to take a gigabyte anew may last longer than to send it.
    """
    return np.full(nbytes, 1, np.uint8).data


def _fill(connection: socket.socket, target: memoryview) -> bool:
    """Receive until the memory is full. False: the other end has gone."""
    while target:
        count = connection.recv_into(target)
        if not count:
            return False
        target = target[count:]
    return True


if __name__ == "__main__":
    obey(
        {
            "listen": listen,
            "send": send,
            "serve_unary": serve_unary,
            "call_unary": call_unary,
        }
    )
