"""What became of pushes, in all and of one worker, and their messages."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pswire._generated import parameter_server_pb2 as pb

STALENESS_BOUNDS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""The buckets that staleness is told in, in steps, inclusive; one more has the rest."""
STALENESS_BUCKETS = (*map(str, STALENESS_BOUNDS), "+Inf")
"""Their names."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of pushes, in pushes.

    Attributes:
        applied: Pushes that changed the variables.
        dropped: Pushes that were too stale, or that the policy could not apply.
        duplicate: Retries of pushes that had their verdict.
        rejected: Pushes that broke the contract, by the error's reason.
        snapshot_gone: Those of the dropped ones whose snapshot the policy needed, and
            the server had no more.
    """

    applied: int = 0
    dropped: int = 0
    duplicate: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    snapshot_gone: int = 0

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

    def since(self, earlier: "Counts") -> "Counts":
        """Return what has come since; a number that is less than before: nothing."""
        return Counts(
            applied=max(0, self.applied - earlier.applied),
            dropped=max(0, self.dropped - earlier.dropped),
            duplicate=max(0, self.duplicate - earlier.duplicate),
            rejected=Counter(self.rejected) - Counter(earlier.rejected),
            snapshot_gone=max(0, self.snapshot_gone - earlier.snapshot_gone),
        )

    @classmethod
    def from_proto(cls, message: pb.Counts) -> Self:
        return cls(
            applied=message.applied,
            dropped=message.dropped,
            duplicate=message.duplicate,
            rejected=dict(sorted(message.rejected.items())),
            snapshot_gone=message.snapshot_gone,
        )

    def to_proto(self) -> pb.Counts:
        return pb.Counts(
            applied=self.applied,
            dropped=self.dropped,
            duplicate=self.duplicate,
            rejected=self.rejected,
            snapshot_gone=self.snapshot_gone,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "applied": self.applied,
            "dropped": self.dropped,
            "snapshot_gone": self.snapshot_gone,
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
        last_seen_s: How long ago its last call came, in seconds; where none has come
            since the server's start, a second more than that is ago.
        longest_drops: Its longest run of drops, in pushes.
        pushes_per_s: Its pushes judged in the last ten seconds, a second.
        loss: The loss of its last judged push that told a finite one; None: none did.
        staleness_buckets: Its judged pushes by staleness, one number for each of
            `STALENESS_BOUNDS`, less those of the bounds before, and one for the rest.
        staleness_sum: The staleness of all of them, in steps.
        recent_drops: Dropped pushes among its last twenty judged ones.
        shard: The part of the data that it has leased, as `I/N`; empty: none.
        waiting: Whether it waits for its turn to pull.
        waited_s: How long it has done so since the server's start, in seconds.
    """

    name: str
    counts: Counts
    consecutive_drops: int
    last_seen_s: float
    longest_drops: int = 0
    pushes_per_s: float = 0.0
    loss: float | None = None
    staleness_buckets: tuple[int, ...] = (0,) * (len(STALENESS_BOUNDS) + 1)
    staleness_sum: int = 0
    recent_drops: int = 0
    shard: str = ""
    waiting: bool = False
    waited_s: float = 0.0

    @property
    def mean_staleness(self) -> float | None:
        """Of its judged pushes, in steps; None: none has been judged."""
        judged = self.counts.judged
        return self.staleness_sum / judged if judged else None

    @classmethod
    def from_proto(cls, message: pb.WorkerStatus) -> Self:
        return cls(
            name=message.name,
            counts=Counts.from_proto(message.counts),
            consecutive_drops=message.consecutive_drops,
            last_seen_s=message.last_seen_s,
            longest_drops=message.longest_drops,
            pushes_per_s=message.pushes_per_s,
            loss=message.loss if message.HasField("loss") else None,
            staleness_buckets=tuple(message.staleness_buckets),
            staleness_sum=message.staleness_sum,
            recent_drops=message.recent_drops,
            shard=message.shard,
            waiting=message.waiting,
            waited_s=message.waited_s,
        )

    def to_proto(self) -> pb.WorkerStatus:
        return pb.WorkerStatus(
            name=self.name,
            counts=self.counts.to_proto(),
            consecutive_drops=self.consecutive_drops,
            last_seen_s=self.last_seen_s,
            longest_drops=self.longest_drops,
            pushes_per_s=self.pushes_per_s,
            loss=self.loss,
            staleness_buckets=self.staleness_buckets,
            staleness_sum=self.staleness_sum,
            recent_drops=self.recent_drops,
            shard=self.shard,
            waiting=self.waiting,
            waited_s=self.waited_s,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shard": self.shard or None,
            **self.counts.to_json(),
            "consecutive_drops": self.consecutive_drops,
            "longest_drops": self.longest_drops,
            "recent_drops": self.recent_drops,
            "waiting": self.waiting,
            "waited_s": round(self.waited_s, 3),
            "last_seen_s": round(self.last_seen_s, 3),
            "pushes_per_s": round(self.pushes_per_s, 3),
            "loss": self.loss,
            "mean_staleness": self.mean_staleness,
            "staleness": dict(
                zip(STALENESS_BUCKETS, self.staleness_buckets, strict=True)
            ),
        }
