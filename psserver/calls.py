"""What each call means, whatever carries it: the store is asked and answers."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np

from psserver.malformed import require_message
from psserver.shards import Lease
from psserver.store import Store
from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import AnyArrays, Body
from pswire.encoding import Encoding
from pswire.errors import InvalidRequestError, ParameterServerError
from pswire.layout import MAX_KEPT_NAME_NBYTES, Layout
from pswire.methods import InitializePiece, PushPiece
from pswire.pieces import Header, Piece
from pswire.rows import IDS_DTYPE, Ids, with_rows
from pswire.values import PushHeader, Snapshot, Verdict

Headed = TypeVar("Headed", InitializePiece, PushPiece)


@dataclass(frozen=True, slots=True)
class Pulled(Generic[Header]):
    """What is to travel of one step.

    Attributes:
        header: What comes before its body.
        layout: Of the body.
        variables: What the body is made of; None: the caller has them already, or has
            to wait for them.
    """

    header: Header
    layout: Layout
    variables: AnyArrays | None


PulledSnapshot = Pulled[pb.SnapshotHeader]


class Calls:
    """Answers calls from a `Store`, which decides what every one of them means.

    Bodies arrive as pieces; one that comes in a single message is a single piece.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self.same_host = ""
        """Where workers on this host may call instead; empty: nowhere."""

    @property
    def pushes_wait(self) -> bool:
        """Whether an applied push waits until it is kept, or for others."""
        return self._store.pushes_wait

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        joined = self._store.join(
            request.worker, request.session, self._clock(), request.rejoin
        )
        return pb.JoinReply(
            generation=joined.generation,
            incarnation=joined.incarnation,
            step=joined.step,
            layout=joined.layout.to_proto() if joined.layout else None,
            limits=joined.limits.to_proto(),
            same_host=self.same_host,
        )

    def initialize(self, pieces: Iterator[InitializePiece]) -> pb.InitializeReply:
        first = _first(pieces)
        assert first.header is not None
        initialized = self._store.initialize(
            first.header.session,
            Layout.from_proto(first.header.layout),
            lambda layout: _receive(layout, first, pieces),
            self._clock(),
            self._clock,
        )
        return pb.InitializeReply(
            initialized=initialized,
            generation=self._store.generation,
            step=self._store.pull("", self._clock())[1].step,
        )

    def pull(self, request: pb.PullRequest) -> PulledSnapshot:
        encoding = Encoding.from_proto(request.wire_dtype)
        rows = _row_ids(request.rows) if request.rows else {}
        return self._pull(
            request.session, request.generation, request.step, encoding, rows
        )

    def push(
        self,
        pieces: Iterator[PushPiece],
        is_wanted: Callable[[], bool],
        require: Callable[[PushHeader], None] = lambda header: None,
    ) -> tuple[PushHeader, Verdict]:
        """Judge a push.

        Args:
            pieces: The push; the first one has the header.
            is_wanted: Whether the caller still waits.
            require: Refuses what cannot be answered: once the push is applied it is
                too late.
        """
        session = ""
        try:
            first = _first(pieces)
            assert first.header is not None
            session = first.header.session
            header = PushHeader.from_proto(first.header)
            require(header)
        except ParameterServerError as error:
            self._store.reject(session, error)
            raise
        verdict = self._store.push(
            header,
            lambda layout: _receive(layout, first, pieces),
            self._clock(),
            is_wanted,
            self._clock,
        )
        return header, verdict

    def pull_after(self, header: PushHeader) -> PulledSnapshot:
        """Pull for one who has just pushed, and holds what it computed from."""
        known = header.generation, header.step_read
        return self._pull(header.session, *known, header.snapshot_encoding)

    def snapshot_nbytes(self, session: str, encoding: Encoding) -> int:
        """Return the size of the body that a snapshot takes to travel, in bytes."""
        layout, _ = self._store.pull(session, self._clock())
        return encoding.layout(layout.dense).nbytes

    def lease_shard(self, request: pb.LeaseShardRequest) -> pb.LeaseShardReply:
        told = request.held if request.HasField("held") else None
        lease = self._store.lease_shard(
            request.session,
            request.count,
            Lease(told.index, told.epoch) if told else None,
            self._clock(),
            finished=request.finished,
        )
        return pb.LeaseShardReply(
            lease=pb.ShardLease(index=lease.index, epoch=lease.epoch)
        )

    def leave(self, request: pb.LeaveRequest) -> pb.LeaveReply:
        self._store.leave(request.session, self._clock())
        return pb.LeaveReply()

    def inspect(self, request: pb.InspectRequest) -> Pulled[pb.InspectHeader]:
        newest = self._store.inspect()
        layout = Layout.of(newest.params, max_name_nbytes=MAX_KEPT_NAME_NBYTES)
        header = pb.InspectHeader(
            generation=newest.generation, step=newest.step, layout=layout.to_proto()
        )
        return Pulled(header, layout.chosen(request.names), newest.params)

    def status(self, request: pb.StatusRequest) -> pb.StatusReply:
        require_message(request)
        return self._store.status(self._clock()).to_proto()

    def set(self, request: pb.SetRequest, peer: str) -> pb.SetReply:
        require_message(request)
        limits = self._store.set(request.settings, peer)
        return pb.SetReply(limits=limits.to_proto())

    def _pull(
        self,
        session: str,
        generation: str,
        step: int,
        encoding: Encoding,
        rows: Mapping[str, Ids] = MappingProxyType({}),
    ) -> PulledSnapshot:
        """Pull for one who holds the snapshot of a generation and step."""
        now = self._clock()
        layout, snapshot, turn = self._store.pull_in_turn(session, now, rows)
        same = generation == snapshot.generation
        is_wait = turn.wait_s > 0
        not_modified = same and step == snapshot.step and not is_wait
        header = pb.SnapshotHeader(
            generation=snapshot.generation,
            incarnation=self._store.incarnation,
            step=snapshot.step,
            not_modified=not_modified,
            layout=None if same or is_wait else layout.to_proto(),
            wire_dtype=encoding.wire_dtype_number,
            served_at=now,
            wait_s=turn.wait_s,
            waits_for=turn.waits_for,
            paced=turn.is_paced,
        )
        if rows and not is_wait:
            travels = _with_rows(snapshot, layout, not_modified=not_modified)
            return Pulled(header, encoding.layout(travels.layout), travels)
        variables = None if not_modified or is_wait else snapshot.params
        return Pulled(header, encoding.layout(layout.dense), variables)


def _row_ids(wanted: Iterable[pb.RowIds]) -> dict[str, Ids]:
    ids: dict[str, Ids] = {}
    for each in wanted:
        if each.name in ids:
            raise InvalidRequestError(f"rows: expected {each.name} once, got it twice")
        if len(each.ids) % IDS_DTYPE.itemsize:
            raise InvalidRequestError(
                f"rows: {each.name}: expected ids of {IDS_DTYPE.itemsize} bytes each, "
                f"got {len(each.ids)} bytes"
            )
        ids[each.name] = np.frombuffer(each.ids, IDS_DTYPE)
    return ids


def _with_rows(snapshot: Snapshot[Body], layout: Layout, *, not_modified: bool) -> Body:
    """Return a snapshot's rows, behind its variables if they are modified."""
    ids = {name: np.asarray(rows.ids) for name, rows in snapshot.rows.items()}
    whole = with_rows(layout, ids, has_dense=not not_modified)
    runs = [] if not_modified else list(snapshot.params.runs)
    for name, rows in snapshot.rows.items():
        start, values = whole.places[name][1], rows.values
        runs.append((start, values.reshape(-1).view(np.uint8)))
    return Body(whole, runs)


def _first(pieces: Iterator[Headed]) -> Headed:
    for piece in pieces:
        if piece.header is not None:
            return piece
        raise InvalidRequestError("header: expected in the first message, got none")
    raise InvalidRequestError("stream: expected a message with a header, got none")


def _receive(layout: Layout, first: Piece[Any], rest: Iterable[Piece[Any]]) -> Body:
    assembly = body.Assembly(layout)
    assembly.add(first.offset, first.data)
    for piece in rest:
        if piece.header is not None:
            raise InvalidRequestError(
                "header: expected in the first message alone, got another one"
            )
        assembly.add(piece.offset, piece.data)
    return assembly.finish()
