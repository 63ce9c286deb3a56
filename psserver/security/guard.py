"""Calls over gRPC that show no good token never reach what answers them."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from psserver.metrics.meter import Meter
from psserver.security.access import Access
from psserver.security.roles import ROLES
from pswire.errors import ParameterServerError, code, to_status


class Guard(grpc.ServerInterceptor):
    """Answers in place of the service those who may not call it."""

    def __init__(self, access: Access, meter: Meter | None) -> None:
        """Begin.

        Args:
            access: Who may call.
            meter: Counts the refused calls; None: nobody asks.
        """
        self._access = access
        self._meter = meter

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        try:
            self._access.require_call(_authorization(handler_call_details), method)
        except ParameterServerError as error:
            self._count(method, error)
            return _refusal(error)
        return continuation(handler_call_details)

    def _count(self, method: str, error: ParameterServerError) -> None:
        if self._meter:
            # What strangers make up is not counted by its name.
            name = method.rpartition("/")[2] if method in ROLES else "other"
            self._meter.answered("grpc", name, code(error), 0.0)


def _authorization(details: grpc.HandlerCallDetails) -> str:
    for key, value in details.invocation_metadata:
        if key == "authorization":
            return str(value)
    return ""


def _refusal(error: ParameterServerError) -> Any:
    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        with to_status(context):
            raise error

    # Whatever the method is: of this kind, nothing of the request is read.
    return grpc.stream_unary_rpc_method_handler(refuse)
