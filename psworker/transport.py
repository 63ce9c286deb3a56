"""What a connection needs of whatever carries its calls."""

from collections.abc import Iterator
from typing import Protocol

from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Arrays
from pswire.layout import Layout
from pswire.methods import PullPiece


class Transport(Protocol):
    """One attempt of each call: no retries, and errors of the one table.

    Every `timeout` is in seconds. A header goes with the arrays of the layout; where
    pieces of a snapshot are returned, `nbytes` is the size of its body.
    """

    def close(self) -> None:
        """Cancel what is in flight."""

    def initialize(
        self,
        header: pb.InitializeHeader,
        layout: Layout,
        arrays: Arrays,
        timeout: float,
    ) -> pb.InitializeReply: ...

    def pull(
        self, request: pb.PullRequest, nbytes: int, timeout: float
    ) -> Iterator[PullPiece]: ...

    def push(
        self, header: pb.PushHeader, layout: Layout, arrays: Arrays, timeout: float
    ) -> pb.PushReply: ...

    def exchange(
        self,
        header: pb.PushHeader,
        layout: Layout,
        arrays: Arrays,
        nbytes: int,
        timeout: float,
    ) -> tuple[pb.PushReply, Iterator[PullPiece]]: ...

    def status(self, timeout: float) -> pb.StatusReply: ...
