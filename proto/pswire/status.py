"""A server's counters and settings at one moment, and their messages."""

import enum
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pswire._generated import parameter_server_pb2 as pb
from pswire.counts import STALENESS_BOUNDS, Counts, WorkerStatus

SILENT_S = 60.0
"""After so long without a call a worker is taken to be gone, in seconds."""

_MANY_DROPS = 10  # In a row.
_MOST_DROPS = 18  # Of the last twenty.
_CHANCE = 0.001


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server accepts.

    Attributes:
        max_staleness: The largest staleness applied, in steps; None: any.
        max_grad_norm: The largest global L2 norm of a push; None: any.
        max_model_nbytes: The largest body that Initialize takes, in bytes.
        max_unary_nbytes: The largest body that one message carries, in bytes.
        staleness_policy: What becomes of the pushes that the limit admits, as
            `psserver serve --staleness-policy` takes it.
    """

    max_staleness: int | None
    max_grad_norm: float | None
    max_model_nbytes: int
    max_unary_nbytes: int
    staleness_policy: str = "drop"

    @classmethod
    def from_proto(cls, message: pb.Limits) -> Self:
        has = message.HasField
        return cls(
            max_staleness=message.max_staleness if has("max_staleness") else None,
            max_grad_norm=message.max_grad_norm if has("max_grad_norm") else None,
            max_model_nbytes=message.max_model_nbytes,
            max_unary_nbytes=message.max_unary_nbytes,
            staleness_policy=message.staleness_policy,
        )

    def to_proto(self) -> pb.Limits:
        return pb.Limits(
            max_staleness=self.max_staleness,
            max_grad_norm=self.max_grad_norm,
            max_model_nbytes=self.max_model_nbytes,
            max_unary_nbytes=self.max_unary_nbytes,
            staleness_policy=self.staleness_policy,
        )


@dataclass(frozen=True, slots=True)
class Durability:
    """How far the variables outlast the server.

    Attributes:
        mode: `none`, `checkpoint` or `log`.
        saved_step: The step of the newest checkpoint; None: there is none.
        saved_s: How long ago it was saved, in seconds; None: there is none.
        saves: Checkpoints saved since the server's start.
        failures: Those that could not be.
        log_nbytes: Of the log since the newest checkpoint was begun, in bytes.
        log_syncs: How often the log has waited for the disk since the server's start.
        corrupt: Checkpoints that the server's start has set aside as corrupt.
    """

    mode: str = "none"
    saved_step: int | None = None
    saved_s: float | None = None
    saves: int = 0
    failures: int = 0
    log_nbytes: int = 0
    log_syncs: int = 0
    corrupt: int = 0

    @classmethod
    def from_proto(cls, message: pb.Durability) -> Self:
        return cls(
            mode=message.mode,
            saved_step=_optional(message, "saved_step"),
            saved_s=_optional(message, "saved_s"),
            saves=message.saves,
            failures=message.failures,
            log_nbytes=message.log_nbytes,
            log_syncs=message.log_syncs,
            corrupt=message.corrupt,
        )

    def to_proto(self) -> pb.Durability:
        return pb.Durability(**asdict(self))

    def to_json(self) -> dict[str, Any]:
        saved_s = None if self.saved_s is None else round(self.saved_s, 3)
        return {**asdict(self), "saved_s": saved_s}


class WorkerState(enum.StrEnum):
    """What a worker seems to be up to."""

    ACTIVE = "active"
    STARVED = "starved"
    """It pushes in vain: the drop rate of all does not explain so many drops of one."""
    SILENT = "silent"
    """It has not called for a minute, or not this start of the server."""


@dataclass(frozen=True, slots=True)
class Status:
    """A server at one moment: every number is of the same cut.

    Attributes:
        generation: The history that the step counts in.
        incarnation: This start of the server.
        step: Updates made so far, in steps.
        limits: What the server accepts.
        rule: The update rule, as its owner named it.
        initialized: Whether there are variables.
        uptime_s: Since the server's start, in seconds.
        pushes_per_s: Pushes judged in the last ten seconds, a second.
        counts: What became of all pushes.
        staleness: {staleness in steps: pushes judged at it}, ascending; from 1,000
            steps on, rounded down to three digits.
        workers: Every worker that has joined and is not forgotten, by name.
        unjoined: What became of the pushes of callers that never joined, or are
            forgotten.
        steps_per_s: Made by pushes of the last ten seconds, a second.
        recent_drop_rate: Dropped pushes among those judged in the last ten seconds,
            0 to 1; None: none was judged.
        loss: The mean of the newest finite losses that the pushes judged in the last
            ten seconds told, twenty or more if there are so many; None: none did.
        staleness_sum: The staleness of all judged pushes, in steps, exact.
        durability: How far the variables outlast the server.
        policy_limit: A limit that the policy sets now, in steps; None: none.
        withheld: What the factors of all applied pushes left out of them: the sum of
            1 - factor, in pushes.
        name: The server's, as its owner chose it.
        dropped_variables: How many variables applied pushes were applied without, being
            too stale for them, in sum.
        waited_s: How long workers have waited for their turns to pull since the
            server's start, in seconds, in sum.
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
    unjoined: Counts = field(default_factory=Counts)
    steps_per_s: float = 0.0
    recent_drop_rate: float | None = None
    loss: float | None = None
    staleness_sum: int = 0
    durability: Durability = field(default_factory=Durability)
    policy_limit: int | None = None
    withheld: float = 0.0
    name: str = "asyncps"
    dropped_variables: int = 0
    waited_s: float = 0.0

    @property
    def limit_now(self) -> int | None:
        """The largest staleness applied now, in steps; None: any."""
        limits = (self.limits.max_staleness, self.policy_limit)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def mean_factor(self) -> float | None:
        """Of the applied pushes, 0 to 1; None: none was applied."""
        applied = self.counts.applied
        return 1 - self.withheld / applied if applied else None

    @property
    def parting(self) -> int | None:
        """The limit that parts all judged pushes into applied and dropped ones.

        None: there is none; or it has changed, so that it does not part them so.
        """
        limit = self.limit_now
        if limit is None:
            return None
        over = sum(pushes for age, pushes in self.staleness.items() if age > limit)
        return limit if over == self.counts.dropped else None

    @property
    def mean_staleness(self) -> float | None:
        """Of all judged pushes, in steps; None: none has been judged."""
        judged = self.counts.judged
        return self.staleness_sum / judged if judged else None

    @property
    def steps_at_risk(self) -> int:
        """What would be lost with the server now, in steps."""
        if self.durability.mode == "log":
            return 0
        # A checkpoint may be newer than the rest of the figures.
        return max(0, self.step - (self.durability.saved_step or 0))

    @property
    def staleness_buckets(self) -> tuple[int, ...]:
        """All judged pushes by staleness, as in a `WorkerStatus`."""
        buckets = Counter[int]()
        for steps, pushes in self.staleness.items():
            buckets[bisect_left(STALENESS_BOUNDS, steps)] += pushes
        return tuple(buckets[number] for number in range(len(STALENESS_BOUNDS) + 1))

    def state(self, worker: WorkerStatus) -> WorkerState:
        """Say what one of the workers seems to be up to.

        Starved is one whose last ten pushes or more were all dropped, or nearly all of
        the last twenty, although with the drop rate of all so many drops would be
        chance only once in a thousand.
        """
        if worker.last_seen_s > min(SILENT_S, self.uptime_s):
            return WorkerState.SILENT
        drops = worker.consecutive_drops
        if worker.recent_drops >= _MOST_DROPS:  # One applied push ends no starvation.
            drops = max(drops, worker.recent_drops)
        if drops >= _MANY_DROPS and self.counts.drop_rate**drops < _CHANCE:
            return WorkerState.STARVED
        return WorkerState.ACTIVE

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
            unjoined=Counts.from_proto(message.unjoined),
            steps_per_s=message.steps_per_s,
            recent_drop_rate=_optional(message, "recent_drop_rate"),
            loss=_optional(message, "loss"),
            staleness_sum=message.staleness_sum,
            durability=Durability.from_proto(message.durability),
            policy_limit=_optional(message, "policy_limit"),
            withheld=message.withheld,
            name=message.name,
            dropped_variables=message.dropped_variables,
            waited_s=message.waited_s,
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
            unjoined=self.unjoined.to_proto(),
            steps_per_s=self.steps_per_s,
            recent_drop_rate=self.recent_drop_rate,
            loss=self.loss,
            staleness_sum=self.staleness_sum,
            durability=self.durability.to_proto(),
            policy_limit=self.policy_limit,
            withheld=self.withheld,
            name=self.name,
            dropped_variables=self.dropped_variables,
            waited_s=self.waited_s,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON types, for scripts."""
        return {
            "name": self.name,
            "generation": self.generation,
            "incarnation": self.incarnation,
            "step": self.step,
            "limit": self.limits.max_staleness,
            "limit_now": self.limit_now,
            "staleness_policy": self.limits.staleness_policy,
            "max_grad_norm": self.limits.max_grad_norm,
            "rule": self.rule,
            "initialized": self.initialized,
            "uptime_s": round(self.uptime_s, 3),
            "pushes_per_s": round(self.pushes_per_s, 3),
            "steps_per_s": round(self.steps_per_s, 3),
            "recent_drop_rate": self.recent_drop_rate,
            "loss": self.loss,
            **self.counts.to_json(),
            "withheld": self.withheld,
            "dropped_variables": self.dropped_variables,
            "waited_s": round(self.waited_s, 3),
            "mean_staleness": self.mean_staleness,
            "staleness": {str(age): n for age, n in self.staleness.items()},
            "workers": [
                {**worker.to_json(), "state": self.state(worker)}
                for worker in self.workers
            ],
            "unjoined": self.unjoined.to_json(),
            "durability": self.durability.to_json(),
        }


def limited(limit: int | None, policy: str) -> str:
    """Say up to which staleness pushes are applied, and how if not in full."""
    told = f"limit {'off' if limit is None else f'{limit} steps'}"
    # An older server names no policy.
    return told if policy in ("", "drop") else f"{told}, policy {policy}"


def _optional(message: pb.StatusReply | pb.Durability, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None
