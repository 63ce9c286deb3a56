"""The health service: whoever watches it is told of the server's end, and let go."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2


class Health(health.HealthServicer):
    """Ends the calls of those who watch; by themselves they would last for ever."""

    def __init__(self) -> None:
        super().__init__()
        # Guards what follows.
        self._watching = threading.Lock()
        self._watchers: set[Callable[[Any], None]] = set()
        self._is_over = False

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Any = None,
    ) -> Any:
        super().Watch(request, context, send_response_callback)
        with self._watching:
            self._watchers.add(send_response_callback)
            is_over = self._is_over
        if not context.add_callback(lambda: self._forget(send_response_callback)):
            self._forget(send_response_callback)  # It went away meanwhile.
        if is_over:
            send_response_callback(None)

    def let_go(self) -> None:
        """End the calls of all who watch, once they have been told what there is."""
        with self._watching:
            self._is_over = True
            watchers = list(self._watchers)
        for end in watchers:
            end(None)

    def _forget(self, watcher: Callable[[Any], None]) -> None:
        with self._watching:
            self._watchers.discard(watcher)
