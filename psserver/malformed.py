"""Requests that are no messages at all, answered as the caller's error."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pswire.errors import InvalidRequestError


class _Malformed:
    """Stands in for a request that did not decode: to read any field is an error."""

    def __init__(self, error: DecodeError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self.refusal() from self._error

    def refusal(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"request: expected a message of ps.v1, {self._error}"
        )


def require_message(request: object) -> None:
    """Check a request that has no field, and whose reading would tell nothing.

    Raises:
        InvalidRequestError: It did not decode.
    """
    if isinstance(request, _Malformed):
        raise request.refusal()


class RefuseMalformed(grpc.ServerInterceptor):
    """Makes bytes that do not decode the caller's error, where the handler reads them.

    Left alone, gRPC answers INTERNAL, which would say that the server has a bug, and
    nobody would count the push.
    """

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = continuation(handler_call_details)
        ours = handler_call_details.method.startswith("/ps.v1.")
        if handler is None or not ours:
            return handler
        return handler._replace(
            request_deserializer=marking(handler.request_deserializer)
        )


def marking(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Let what does not decode stand for itself, until somebody reads it."""

    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return _Malformed(error)

    return decode_or_mark
