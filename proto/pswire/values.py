"""The frozen values that pushes and pulls are about, and their messages."""

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Generic, Self, TypeVar

from pswire._generated import parameter_server_pb2 as pb
from pswire.encoding import PLAIN, Encoding
from pswire.layout import Layout
from pswire.rows import Rows, travelling

Params = TypeVar("Params")


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[Params]):
    """All variables at one step: one cut, never torn.

    Attributes:
        params: The variables, as a pytree or as {name: array}.
        step: How many pushes had been applied, in steps.
        generation: The history that the step counts in.
        rows: Those of tables that were asked for, by the tables' names.
    """

    params: Params
    step: int
    generation: str
    rows: Mapping[str, Rows] = field(default_factory=dict)


class Reason(enum.Enum):
    """Why a push was dropped."""

    STALE = pb.STALE
    SNAPSHOT_GONE = pb.SNAPSHOT_GONE
    OTHER = pb.REASON_UNSPECIFIED
    """One that this version of the contract does not know."""

    @classmethod
    def _missing_(cls, value: object) -> "Reason":
        return cls.OTHER


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a push.

    Attributes:
        applied: True: it changed the variables. False: it was dropped.
        staleness: How old its gradients were when it was judged, in steps.
        step: The step after it, in steps.
        reason: Why it was dropped; None if it was applied.
        duplicate: True: it had been judged before, and this repeats that verdict.
        factor: What its update was multiplied by, for its staleness; 1: nothing, as
            where it was dropped.
        consecutive_drops: How many of the worker's pushes in a row were dropped, this
            one included; 0 after an applied one. It tells of the pushes before, so
            verdicts are equal whatever it is.
        dropped_variables: How many of its variables it was applied without, being too
            stale for them.
        left_out: The names of these, in the push's order. A server that goes on where
            another had been remembers but how many they were, so verdicts are equal
            whatever they are.
    """

    applied: bool
    staleness: int
    step: int
    reason: Reason | None = None
    duplicate: bool = False
    factor: float = 1.0
    consecutive_drops: int = field(default=0, compare=False)
    dropped_variables: int = 0
    left_out: tuple[str, ...] = field(default=(), compare=False)

    def repeated(self) -> Self:
        """Return the verdict for a retry of the same push."""
        return replace(self, duplicate=True)

    @classmethod
    def from_proto(cls, message: pb.PushReply) -> Self:
        return cls(
            applied=message.applied,
            staleness=message.staleness,
            step=message.step,
            reason=None if message.applied else Reason(message.reason),
            duplicate=message.duplicate,
            factor=message.factor if message.HasField("factor") else 1.0,
            consecutive_drops=message.consecutive_drops,
            dropped_variables=message.dropped_variables,
            left_out=tuple(message.left_out),
        )

    def to_proto(self) -> pb.PushReply:
        return pb.PushReply(
            applied=self.applied,
            staleness=self.staleness,
            step=self.step,
            reason=self.reason.value if self.reason else pb.REASON_UNSPECIFIED,
            duplicate=self.duplicate,
            factor=None if self.factor == 1.0 else self.factor,
            consecutive_drops=self.consecutive_drops,
            dropped_variables=self.dropped_variables,
            left_out=self.left_out,
        )


@dataclass(frozen=True, slots=True)
class PushHeader:
    """All of a push but its gradients.

    Attributes:
        session: The session that pushes.
        seq: The push's number in its session: 1 or more, rising; a retry keeps it.
        generation: Of the snapshot that the gradients were computed from.
        step_read: That snapshot's step, in steps.
        nbytes: The size of the gradients' body, in bytes.
        layout: Of the gradients; None: of all trainable variables.
        value: The loss at that snapshot; None: unknown.
        encoding: How the gradients travel.
        snapshot_encoding: How the snapshot is to travel that answers an exchange.
        served_at: When the server had sent that snapshot, by its own clock, in seconds;
            None: unknown.
        held_s: How long the worker had it before it pushed, in seconds.
        rows: How many rows of each table in the layout travel; empty: none of any.
    """

    session: str
    seq: int
    generation: str
    step_read: int
    nbytes: int
    layout: Layout | None = None
    value: float | None = None
    encoding: Encoding = PLAIN
    snapshot_encoding: Encoding = PLAIN
    served_at: float | None = None
    held_s: float = 0.0
    rows: tuple[int, ...] = ()

    @classmethod
    def from_proto(cls, message: pb.PushHeader) -> Self:
        """Read a header from anyone at all: what it says of arrays is checked here.

        Raises:
            VariableMismatchError: The layout is none.
            InvalidRequestError: A wire dtype is none.
        """
        has_layout = message.HasField("layout")
        return cls(
            session=message.session,
            seq=message.seq,
            generation=message.generation,
            step_read=message.step_read,
            nbytes=message.nbytes,
            layout=Layout.from_proto(message.layout) if has_layout else None,
            value=message.value if message.HasField("value") else None,
            encoding=Encoding.from_proto(message.wire_dtype, message.counts),
            snapshot_encoding=Encoding.from_proto(message.snapshot_wire_dtype),
            served_at=message.served_at if message.HasField("served_at") else None,
            held_s=message.held_s,
            rows=tuple(message.rows),
        )

    def decoded_layout(self, trainable: Layout) -> Layout:
        """Return the layout of the gradients, and of the ids of those of rows.

        Args:
            trainable: Of all that has a gradient.

        Raises:
            VariableMismatchError: It says of more rows, or of other tables, than there
                can be.
        """
        return travelling(self.layout or trainable, self.rows)

    def body_layout(self, trainable: Layout) -> Layout:
        """Return the layout of the body, which has what the encoding leaves of them.

        Args:
            trainable: See `decoded_layout`.

        Raises:
            VariableMismatchError: See there; or the encoding is of other arrays.
        """
        return self.encoding.layout(self.decoded_layout(trainable))

    def brought(self, trainable: Layout) -> Set[str]:
        """Return the names of the variables that it brings gradients of.

        Args:
            trainable: See `decoded_layout`.
        """
        brought = self.layout or trainable
        if not brought.tables:
            return brought.places.keys()
        travel = self.decoded_layout(trainable).places
        return {name: None for name in brought.places if name in travel}.keys()

    def to_proto(self) -> pb.PushHeader:
        return pb.PushHeader(
            session=self.session,
            seq=self.seq,
            generation=self.generation,
            step_read=self.step_read,
            nbytes=self.nbytes,
            layout=self.layout.to_proto() if self.layout else None,
            value=self.value,
            wire_dtype=self.encoding.wire_dtype_number,
            counts=self.encoding.counts,
            snapshot_wire_dtype=self.snapshot_encoding.wire_dtype_number,
            served_at=self.served_at,
            held_s=self.held_s,
            rows=self.rows,
        )
