"""A server's counters and settings at one moment, and their messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pswire._generated import parameter_server_pb2 as pb


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server accepts.

    Attributes:
        max_staleness: The largest staleness applied, in steps; None: any.
        max_grad_norm: The largest global L2 norm of a push; None: any.
        max_model_nbytes: The largest body that Initialize takes, in bytes.
        max_unary_nbytes: The largest body that one message carries, in bytes.
    """

    max_staleness: int | None
    max_grad_norm: float | None
    max_model_nbytes: int
    max_unary_nbytes: int

    @classmethod
    def from_proto(cls, message: pb.Limits) -> Self:
        has = message.HasField
        return cls(
            max_staleness=message.max_staleness if has("max_staleness") else None,
            max_grad_norm=message.max_grad_norm if has("max_grad_norm") else None,
            max_model_nbytes=message.max_model_nbytes,
            max_unary_nbytes=message.max_unary_nbytes,
        )

    def to_proto(self) -> pb.Limits:
        return pb.Limits(
            max_staleness=self.max_staleness,
            max_grad_norm=self.max_grad_norm,
            max_model_nbytes=self.max_model_nbytes,
            max_unary_nbytes=self.max_unary_nbytes,
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of pushes, in pushes.

    Attributes:
        applied: Pushes that changed the variables.
        dropped: Pushes that were too stale.
        duplicate: Retries of pushes that had their verdict.
        rejected: Pushes that broke the contract, by the error's reason.
    """

    applied: int = 0
    dropped: int = 0
    duplicate: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def received(self) -> int:
        """All pushes: applied, dropped, duplicate or rejected."""
        return self.judged + self.duplicate + sum(self.rejected.values())

    @property
    def judged(self) -> int:
        """Pushes that got a verdict of their own: applied or dropped."""
        return self.applied + self.dropped

    @property
    def drop_rate(self) -> float:
        """Dropped pushes among the judged ones, 0 to 1; 0 if there are none."""
        return self.dropped / self.judged if self.judged else 0.0

    @classmethod
    def from_proto(cls, message: pb.Counts) -> Self:
        return cls(
            applied=message.applied,
            dropped=message.dropped,
            duplicate=message.duplicate,
            rejected=dict(sorted(message.rejected.items())),
        )

    def to_proto(self) -> pb.Counts:
        return pb.Counts(
            applied=self.applied,
            dropped=self.dropped,
            duplicate=self.duplicate,
            rejected=self.rejected,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "applied": self.applied,
            "dropped": self.dropped,
            "duplicate": self.duplicate,
            "rejected": dict(self.rejected),
            "drop_rate": self.drop_rate,
        }


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's counters.

    Attributes:
        name: The worker's name; its sessions share one row.
        counts: What became of its pushes.
        consecutive_drops: Its drops since its last applied push, in pushes.
        last_seen_s: How long ago its last call came, in seconds.
    """

    name: str
    counts: Counts
    consecutive_drops: int
    last_seen_s: float

    @classmethod
    def from_proto(cls, message: pb.WorkerStatus) -> Self:
        return cls(
            name=message.name,
            counts=Counts.from_proto(message.counts),
            consecutive_drops=message.consecutive_drops,
            last_seen_s=message.last_seen_s,
        )

    def to_proto(self) -> pb.WorkerStatus:
        return pb.WorkerStatus(
            name=self.name,
            counts=self.counts.to_proto(),
            consecutive_drops=self.consecutive_drops,
            last_seen_s=self.last_seen_s,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.counts.to_json(),
            "consecutive_drops": self.consecutive_drops,
            "last_seen_s": round(self.last_seen_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Status:
    """A server at one moment: every number is of the same cut.

    Attributes:
        generation: The history that the step counts in.
        incarnation: This start of the server.
        step: Pushes applied so far, in steps.
        limits: What the server accepts.
        rule: The update rule, as its owner named it.
        initialized: Whether there are variables.
        uptime_s: Since the server's start, in seconds.
        pushes_per_s: Pushes judged in the last ten seconds, a second.
        counts: What became of all pushes.
        staleness: {staleness in steps: pushes judged at it}, ascending.
        workers: Every worker that has joined, by name.
    """

    generation: str
    incarnation: str
    step: int
    limits: Limits
    rule: str
    initialized: bool
    uptime_s: float
    pushes_per_s: float
    counts: Counts
    staleness: Mapping[int, int]
    workers: tuple[WorkerStatus, ...]

    def staleness_quantile(self, share: float) -> int | None:
        """Return the least staleness that `share` of the judged pushes do not exceed.

        Args:
            share: 0 to 1; 0.5 asks for the median.

        Returns:
            In steps; None if no push has been judged.
        """
        reached, wanted = 0, share * sum(self.staleness.values())
        for staleness, pushes in self.staleness.items():
            reached += pushes
            if reached >= wanted:
                return staleness
        return None

    @classmethod
    def from_proto(cls, message: pb.StatusReply) -> Self:
        return cls(
            generation=message.generation,
            incarnation=message.incarnation,
            step=message.step,
            limits=Limits.from_proto(message.limits),
            rule=message.rule,
            initialized=message.initialized,
            uptime_s=message.uptime_s,
            pushes_per_s=message.pushes_per_s,
            counts=Counts.from_proto(message.counts),
            staleness=dict(sorted(message.staleness.items())),
            workers=tuple(map(WorkerStatus.from_proto, message.workers)),
        )

    def to_proto(self) -> pb.StatusReply:
        return pb.StatusReply(
            generation=self.generation,
            incarnation=self.incarnation,
            step=self.step,
            limits=self.limits.to_proto(),
            rule=self.rule,
            initialized=self.initialized,
            uptime_s=self.uptime_s,
            pushes_per_s=self.pushes_per_s,
            counts=self.counts.to_proto(),
            staleness=self.staleness,
            workers=[worker.to_proto() for worker in self.workers],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON types, for scripts."""
        return {
            "generation": self.generation,
            "incarnation": self.incarnation,
            "step": self.step,
            "limit": self.limits.max_staleness,
            "max_grad_norm": self.limits.max_grad_norm,
            "rule": self.rule,
            "initialized": self.initialized,
            "uptime_s": round(self.uptime_s, 3),
            "pushes_per_s": round(self.pushes_per_s, 3),
            **self.counts.to_json(),
            "staleness": {str(age): n for age, n in self.staleness.items()},
            "workers": [worker.to_json() for worker in self.workers],
        }
