"""What operators ask over gRPC."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from psserver.calls import Calls
from psserver.malformed import require_message
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.errors import InvalidRequestError, ServerUnavailableError, to_status

Save = Callable[[], tuple[Path, int]]
"""Saves a checkpoint, and returns where and of which step."""

_log = logging.getLogger("psserver")


class Commands(rpc.AdminServicer):
    """Answers the calls of the Admin service."""

    def __init__(self, asked: threading.Event, calls: Calls, save: Save | None) -> None:
        """Prepare to answer.

        Args:
            asked: Is set when somebody asks the server to stop.
            calls: What else the calls mean.
            save: Saves a checkpoint; None: this server has no place for one.
        """
        self._asked = asked
        self._calls = calls
        self._save = save

    def Stop(
        self, request: pb.StopRequest, context: grpc.ServicerContext
    ) -> pb.StopReply:
        with to_status(context):
            require_message(request)
            _log.info(
                "asked to stop by %s",
                context.peer(),
                extra={"event": "asked_to_stop", "peer": context.peer()},
            )
            self._asked.set()
            return pb.StopReply()

    def Set(self, request: pb.SetRequest, context: grpc.ServicerContext) -> pb.SetReply:
        with to_status(context):
            return self._calls.set(request, context.peer())

    def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.SaveCheckpointReply:
        with to_status(context):
            require_message(request)
            if self._save is None:
                raise InvalidRequestError(
                    "durability: expected checkpoint or log, got none; start the "
                    "server with --durability and --data-dir"
                )
            try:
                path, step = self._save()
            except OSError as error:
                raise ServerUnavailableError(str(error)) from error
            return pb.SaveCheckpointReply(path=str(path), step=step)
