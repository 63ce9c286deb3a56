"""Requests that are no messages at all, answered as the caller's error."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pswire.errors import InvalidRequestError, to_status


@dataclass(frozen=True, slots=True)
class _Malformed:
    text: str

    def error(self) -> InvalidRequestError:
        return InvalidRequestError(f"request: expected a message of ps.v1, {self.text}")


class RefuseMalformed(grpc.ServerInterceptor):
    """Turns bytes that do not decode into INVALID_ARGUMENT.

    Left alone, gRPC answers INTERNAL, which would say that the server has a bug.
    """

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        wrap = _wrap_stream if handler.request_streaming else _wrap_unary
        kind = "_".join(
            "stream" if streaming else "unary"
            for streaming in (handler.request_streaming, handler.response_streaming)
        )
        return handler._replace(
            request_deserializer=_lenient(handler.request_deserializer),
            **{kind: wrap(getattr(handler, kind))},
        )


def _lenient(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return decode_or_mark


def _wrap_unary(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(request, _Malformed):
            with to_status(context):
                raise request.error()
        return behaviour(request, context)

    return call


def _wrap_stream(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    # The error is raised where the behaviour reads the stream, so it is counted there.
    def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return behaviour(map(_require_message, requests), context)

    return call


def _require_message(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise request.error()
    return request
