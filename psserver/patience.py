"""Callers that neither send nor take what is theirs to: after a while they are let go.

Every call holds a thread for as long as it lasts, and gRPC has no limit of its own to
how long a message may be on its way.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

PATIENCE_S = 30.0
"""How long a message may take from its caller or to it, in seconds."""
_LOOK_EVERY_S = 1.0


class Patience(grpc.ServerInterceptor):
    """Cancels calls whose caller is waited for too long, from `start` until `stop`."""

    def __init__(self, patience_s: float) -> None:
        """Begin.

        Args:
            patience_s: How long to wait for each message, in seconds.
        """
        self._patience_s = patience_s
        # Guards the dictionary: whose caller is waited for, and until when.
        self._lock = threading.Lock()
        self._waiting: dict[grpc.ServicerContext, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._look, name="psserver patience", daemon=True
        )

    def start(self) -> None:
        """Look at who is waited for, now and then."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for ever from now on."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        answer = (
            handler.stream_stream
            or handler.stream_unary
            or handler.unary_stream
            or handler.unary_unary
        )
        # It holds no thread.
        if getattr(answer, "experimental_non_blocking", False):
            return handler
        if not handler.request_streaming:
            # gRPC would wait for the message itself, and for ever.
            answer = _of_one(answer)
        coders = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._answers(answer), *coders)
        return grpc.stream_unary_rpc_method_handler(self._answer(answer), *coders)

    def _answer(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def patient(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return answer(self._arriving(requests, context), context)

        return patient

    def _answers(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def patient(
            requests: Iterator[Any], context: grpc.ServicerContext
        ) -> Iterator[Any]:
            for reply in answer(self._arriving(requests, context), context):
                with self._wait_for(context):
                    yield reply

        return patient

    def _arriving(
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        while True:
            with self._wait_for(context):
                try:
                    request = next(requests)
                except StopIteration:
                    return
            yield request

    @contextmanager
    def _wait_for(self, context: grpc.ServicerContext) -> Iterator[None]:
        with self._lock:
            self._waiting[context] = time.monotonic() + self._patience_s
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(context, None)

    def _look(self) -> None:
        while not self._stopped.wait(min(_LOOK_EVERY_S, self._patience_s)):
            now = time.monotonic()
            with self._lock:
                late = [c for c, deadline in self._waiting.items() if deadline <= now]
            for context in late:
                context.cancel()


def _of_one(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Return what answers a single request, for one that comes as a stream."""

    def answer_one(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        request = next(requests, None)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: got none")
        return answer(request, context)

    return answer_one
