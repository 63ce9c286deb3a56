"""One server's RPCs, each with a deadline, repeated while that can help."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire.body import Arrays, Body
from pswire.credentials import ANONYMOUS, Credentials
from pswire.encoding import PLAIN, Encoding
from pswire.errors import (
    CallCancelledError,
    DeadlineError,
    InternalError,
    OverloadedError,
    ParameterServerError,
    ServerUnavailableError,
    SessionUnknownError,
    TlsError,
    TooFewPushesError,
    TooLargeError,
)
from pswire.inspection import Inspection
from pswire.layout import Layout
from pswire.methods import PullPiece
from pswire.rows import Ids, Rows, with_rows
from pswire.status import Status
from pswire.tlsprobe import complaint
from pswire.values import PushHeader, Snapshot, Verdict
from psworker.arrivals import Arrivals
from psworker.outage import Notices, Outage
from psworker.remote import Remote
from psworker.samehost import SameHost
from psworker.task import Shard
from psworker.transport import Transport
from psworker.turns import Queueing, Wait

_log = logging.getLogger("psworker")

Known = Snapshot[Any] | None
"""The snapshot that the caller holds already, if any."""

Answer = TypeVar("Answer")
Attempt = Callable[[Transport, float], Answer]

_SLOWEST_LINK = 1e6  # Bytes a second: a deadline leaves a body that much time.
_UNKNOWN_NBYTES = 3 * 10**8  # Left time for, where nobody has told the model's size.
_LEAVE_S = 1.0  # No longer than this does an end take that others are to know of.
_MAX_REJOINS = 3  # During one call: a server may restart more than once.
_PAUSE_S = 0.1  # Once the server itself has waited long enough.
_COMPILE_S = 120.0  # Left to the server, which compiles its rule for new variables.


class Connection:
    """One worker process's session with one server.

    It speaks of named arrays and knows no JAX. Calls may come from several threads,
    but for pushes: a session pushes one after another.
    """

    def __init__(
        self,
        address: str,
        *,
        worker: str = "",
        session: str = "",
        timeout_s: float,
        outage_s: float,
        credentials: Credentials = ANONYMOUS,
        same_host: bool = False,
        pull_encoding: Encoding = PLAIN,
    ) -> None:
        """Prepare to call; `join` is the first call.

        Args:
            address: HOST:PORT.
            worker: The name to join under; empty: this one only reads, and never
                joins.
            session: The id of this process's life, never used before; empty likewise.
            timeout_s: How long one attempt may take, in seconds, and a second more
                for every megabyte it moves.
            outage_s: How long to repeat a call that finds no server, in seconds.
            credentials: What to show the server, and by what to know it.
            same_host: Whether to go past gRPC if the server is on this host.
            pull_encoding: How snapshots are to travel.
        """
        self.address = address
        self.worker = worker
        self.session = session
        self.layout: Layout | None = None
        """Of the variables; None: not known yet."""
        self.pull_encoding = pull_encoding
        self.generation = ""
        """The server's when this session first joined; empty: it has not."""
        self._arrivals = Arrivals()
        self._max_model_nbytes = 0
        self._timeout_s = timeout_s
        self._outage_s = outage_s
        self._notices = Notices()
        self._closed = threading.Event()
        self._credentials = credentials
        self._remote = Remote(address, credentials)
        self._has_answered = False
        self._may_be_near = same_host
        self._near: SameHost | None = None
        self._nearing = threading.Lock()  # Guards `_near`, but for reading it.
        self._rejoining = threading.Lock()  # Guards `_joins`, but for reading it.
        self._joins = 0
        self._leased: Shard | None = None
        self._is_paced = False  # Others may wait for this session to push.
        self._incarnation = ""  # That this session has joined last.
        self._has_restarted = False  # Since then, a snapshot says.

    def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        self._closed.set()
        self._replace_near(self._near, None)
        if self._is_paced:
            request = pb.LeaveRequest(session=self.session)
            # If it fails others wait for a minute; gRPC's own error: closed before.
            with suppress(ParameterServerError, ValueError):
                self._remote.leave(request, _LEAVE_S)
        self._remote.close()

    def join(self) -> None:
        """Introduce this session, waiting for a server that is not there yet.

        Raises:
            ServerUnavailableError: None came within `outage_s`.
            TlsError: One came, but it and this client do not trust one another.
            UnauthenticatedError: It asks for another token.
            PermissionDeniedError: Likewise, for this.
            SessionSupersededError: A newer process has joined under the name.
        """
        request = pb.JoinRequest(
            worker=self.worker, session=self.session, rejoin=bool(self._incarnation)
        )
        reply = self._call(lambda _, timeout: self._remote.join(request, timeout))
        has_layout = reply.HasField("layout")
        self.layout = Layout.from_proto(reply.layout) if has_layout else None
        self.generation = self.generation or reply.generation
        self._max_model_nbytes = reply.limits.max_model_nbytes
        if self._incarnation not in ("", reply.incarnation):
            _log.info("the server at %s has started anew", self.address)
        self._incarnation, self._has_restarted = reply.incarnation, False
        # What was near may have been a server before this one.
        self._replace_near(self._near, self._find_near(reply))

    def initialize(self, arrays: Arrays, layout: Layout) -> bool:
        """Offer the first variables.

        Args:
            arrays: They.
            layout: Theirs.

        Returns:
            True: they were taken. False: another session had been first.

        Raises:
            TooLargeError: They are larger than the server takes; nothing is sent.
        """
        if layout.nbytes > self._max_model_nbytes:
            raise TooLargeError(
                f"variables: expected at most {self._max_model_nbytes} bytes, which "
                f"is the server's memory, got {layout.nbytes}"
            )
        header = pb.InitializeHeader(session=self.session, layout=layout.to_proto())

        allowance = layout.nbytes + _COMPILE_S * _SLOWEST_LINK
        return self._call_in_session(
            lambda carrier, timeout: carrier.initialize(
                header, layout, arrays, timeout
            ),
            allowance,
        ).initialized

    def pull(
        self,
        known: Known,
        rows: Mapping[str, Ids] = MappingProxyType({}),
        wait: Wait | None = None,
    ) -> Snapshot[Body] | None:
        """Return the newest snapshot, in turn; None: it is the known one.

        Args:
            known: The one that the caller has.
            rows: The ids of the rows that are wanted, rising, by table. With some there
                always is a snapshot: the known one's variables, if they are still so.
            wait: For its turn, as an exchange has told; None: nothing has.

        Raises:
            NotInitializedError: There are no variables yet.
            CallCancelledError: The connection was closed while it waited.
            VariableMismatchError: There are no such rows, or too many are wanted.
        """
        request = pb.PullRequest(
            session=self.session,
            generation=known.generation if known else "",
            step=known.step if known else 0,
            wire_dtype=self.pull_encoding.wire_dtype_number,
            rows=(pb.RowIds(name=n, ids=ids.tobytes()) for n, ids in rows.items()),
        )

        def attempt(carrier: Transport, timeout: float) -> Snapshot[Body] | Wait | None:
            layout = self.layout
            carried = carrier.pull(request, self._snapshot_nbytes(rows), timeout)
            return self._read_snapshot(carried, layout, known, rows)

        queueing = Queueing(self.worker)
        while True:
            if wait:
                queueing.note(wait)
                if self._closed.wait(wait.wait_s):
                    raise CallCancelledError(f"{self.address}: closed")
            pulled = self._call_in_session(attempt, self._snapshot_nbytes(rows))
            if not isinstance(pulled, Wait):
                return pulled
            wait = pulled

    def push(self, header: PushHeader, layout: Layout, arrays: Arrays) -> Verdict:
        """Offer gradients; a repeated attempt is the same push.

        Args:
            header: Of the push.
            layout: Of the body, which the header makes of the gradients' own.
            arrays: What the body is made of.
        """
        message = self._stamped(header)
        reply = self._call_in_session(
            lambda carrier, timeout: carrier.push(message, layout, arrays, timeout),
            layout.nbytes,
        )
        return Verdict.from_proto(reply)

    def exchange(
        self, header: PushHeader, layout: Layout, arrays: Arrays
    ) -> tuple[Verdict, Snapshot[Body] | Wait | None]:
        """Push, then pull, in one call.

        Args:
            header: See `push`.
            layout: See there.
            arrays: See there.

        Returns:
            The verdict, and the newest snapshot; None: it is still the one that the
            gradients were computed from. A wait: it is to be pulled after that.
        """
        if self.layout is None:
            self.join()  # It may have come since we joined.
        message = self._stamped(header)

        def attempt(
            carrier: Transport, timeout: float
        ) -> tuple[Verdict, Snapshot[Body] | Wait | None]:
            known = self.layout
            push, pulled = carrier.exchange(
                message, layout, arrays, self._snapshot_nbytes(), timeout
            )
            return Verdict.from_proto(push), self._read_snapshot(pulled, known)

        return self._call_in_session(attempt, layout.nbytes + self._snapshot_nbytes())

    def lease_shard(self, count: int) -> Shard:
        """Lease a part of the data, and give back the one before.

        Args:
            count: Into how many parts they are cut.

        Raises:
            InvalidRequestError: There cannot be so many.
        """
        request = self._lease_request(count, finished=True)
        lease = self._call_in_session(
            lambda _, timeout: self._remote.lease_shard(request, timeout)
        ).lease
        self._leased = Shard(lease.index, count, lease.epoch)
        return self._leased

    def inspect(self, names: Sequence[str] = (), nbytes: int = 0) -> Inspection:
        """Return what the server keeps of the model, and some of it.

        Args:
            names: Of the arrays that are wanted.
            nbytes: Their size, in bytes.

        Raises:
            NotInitializedError: There are no variables yet.
            VariableMismatchError: There is no such array.
        """
        request = pb.InspectRequest(names=names)
        return self._call(
            lambda _, timeout: Inspection.read(
                self._remote.inspect(request, timeout), names
            ),
            nbytes,
        )

    def status(self) -> Status:
        """Return the server's counters."""
        return Status.from_proto(
            self._call(lambda carrier, timeout: carrier.status(timeout))
        )

    def _stamped(self, header: PushHeader) -> pb.PushHeader:
        message = header.to_proto()
        self._arrivals.stamp(message)
        return message

    def _read_snapshot(
        self,
        pieces: Iterator[PullPiece],
        layout: Layout | None,
        known: Known = None,
        rows: Mapping[str, Ids] = MappingProxyType({}),
    ) -> Snapshot[Body] | Wait | None:
        """Put a snapshot together; its layout is this one unless it brings its own."""
        first = next(pieces, None)
        if first is None or first.header is None:
            raise InternalError(f"{self.address}: expected a header, got none")
        header = first.header
        if self._incarnation not in ("", header.incarnation):
            self._has_restarted = True
        self._is_paced = header.paced
        if header.wait_s:
            return Wait(header.wait_s, header.waits_for)
        if header.HasField("layout"):
            self.layout = layout = Layout.from_proto(header.layout)
        if header.not_modified and not rows:
            self._arrivals.note(header)
            return None
        if layout is None:
            raise InternalError(f"{self.address}: expected a layout, got none")
        layout = with_rows(layout, rows, has_dense=not header.not_modified)
        encoding = Encoding.from_proto(header.wire_dtype)
        assembly = body.Assembly(encoding.layout(layout))
        assembly.add(first.offset, first.data)
        for piece in pieces:
            assembly.add(piece.offset, piece.data)
        arrays = encoding.decode(layout, assembly.finish()).freeze()
        self._arrivals.note(header)
        found = {name: Rows(ids, arrays[name]) for name, ids in rows.items()}
        if header.not_modified:
            assert known is not None  # The server leaves out only what we know.
            return replace(known, rows=found)
        variables = arrays.part(layout.dense)
        return Snapshot(variables, header.step, header.generation, found)

    def _snapshot_nbytes(self, rows: Mapping[str, Ids] = MappingProxyType({})) -> int:
        layout = self.layout  # Read once: another thread may join meanwhile.
        if layout is None:
            return _UNKNOWN_NBYTES
        layout = with_rows(layout, rows, has_dense=True)
        return self.pull_encoding.layout(layout).nbytes

    def _call_in_session(self, attempt: Attempt[Answer], nbytes: float = 0) -> Answer:
        joins = self._joins
        if self._has_restarted:  # It knows the session still, but we not the way to it.
            self._rejoin(joins)
        rejoins = 0
        while True:
            joins = self._joins
            try:
                return self._call(attempt, nbytes)
            except SessionUnknownError:
                if rejoins == _MAX_REJOINS:
                    raise
                rejoins += 1
                # A server that has forgotten us: it judges the call once we joined.
                self._rejoin(joins)

    def _rejoin(self, joins: int) -> None:
        """Join, unless another thread has since there were so many joins."""
        with self._rejoining:
            if self._joins == joins:  # Else that thread knows more.
                self.join()
                self._claim()
                self._joins += 1

    def _claim(self) -> None:
        """Say to another server which part of the data this session goes through."""
        leased = self._leased
        if leased:
            request = self._lease_request(leased.count, finished=False)
            with suppress(SessionUnknownError):  # Another one: it will be told.
                self._call(
                    lambda _, timeout: self._remote.lease_shard(request, timeout)
                )

    def _lease_request(self, count: int, *, finished: bool) -> pb.LeaseShardRequest:
        request = pb.LeaseShardRequest(session=self.session, count=count)
        leased = self._leased
        if leased and leased.count == count:
            request.held.index = leased.index
            request.held.epoch = leased.epoch or 0
            request.finished = finished
        return request

    def _call(self, attempt: Attempt[Answer], nbytes: float = 0) -> Answer:
        timeout = self._timeout_s + nbytes / _SLOWEST_LINK
        outage = Outage(self.address, self._outage_s, self._notices)
        while True:
            # Nearby, a body needs memory of its size, which the layout tells.
            near = self._near if self.layout else None
            carrier: Transport = near or self._remote
            try:
                answer = attempt(carrier, timeout)
                self._has_answered = True
                return answer
            except (ServerUnavailableError, DeadlineError, OverloadedError) as error:
                failure: ParameterServerError = error
            except TooFewPushesError as error:
                if self._notices.take(time.monotonic()):
                    _log.warning("trying again at %s: %s", self.address, error)
                if self._closed.wait(_PAUSE_S):
                    raise CallCancelledError(f"{self.address}: closed") from error
                # A server that answers is not away.
                outage = Outage(self.address, self._outage_s, self._notices)
                continue
            except CallCancelledError as error:
                if self._closed.is_set():
                    raise
                # Not by us: a server that stops cancels what reaches it too late.
                failure = ServerUnavailableError(str(error))
            if self._closed.is_set():
                raise CallCancelledError(f"{self.address}: closed") from failure
            if near and near.has_ended:
                # The same push has the same number whichever way it goes.
                if self._replace_near(near, None):
                    _log.info("the same-host path is gone, trying gRPC: %s", failure)
                continue
            self._require_trust(failure)
            pause_s = outage.next_pause_s(failure)
            if isinstance(failure, OverloadedError):
                pause_s = failure.retry_s  # It knows better than we do.
            if self._closed.wait(pause_s):
                raise failure

    def _require_trust(self, failure: ParameterServerError) -> None:
        """Check that TLS is not why no server has answered yet.

        Raises:
            TlsError: It is, and so it will be the next time.
        """
        if not self._has_answered and isinstance(failure, ServerUnavailableError):
            said = complaint(self.address, self._credentials)
            if said:
                raise TlsError(said) from failure

    def _find_near(self, reply: pb.JoinReply) -> SameHost | None:
        if not (self._may_be_near and reply.same_host):
            return None
        try:
            return SameHost(
                *(reply.same_host, reply.incarnation, self._credentials.authorization)
            )
        except OSError as error:
            _log.debug("staying with gRPC: %s", error)
            return None

    def _replace_near(self, old: SameHost | None, new: SameHost | None) -> bool:
        """Put one in place of another, unless some other thread has been first."""
        with self._nearing:
            is_first = self._near is old
            wanted = is_first and not self._closed.is_set()
            if is_first:
                self._near = new if wanted else None
        for end in (old, None if wanted else new):
            if end:
                end.close()
        return is_first
