"""All of a checkpoint but its arrays, as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any, Self

from psserver.checkpoint import Checkpoint, Slots
from psserver.decision import Session
from psserver.durability import keptcounters
from psserver.durability.arrayfile import DTYPES, Digests
from psserver.durability.jsonfields import count, get, number, optional
from pswire.body import Body
from pswire.layout import ArraySpec, Layout
from pswire.values import Reason, Verdict

FORMAT = 1
"""Rises when an older program cannot read what a newer one writes."""

_PACKAGES = ("asyncps", "jax", "optax", "numpy")


@cache
def _versions() -> Mapping[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        checkpoint: All of it; of its arrays the manifest has digests alone, so one
            that was read has none.
        digests: Of its arrays, by their specs in the file.
        saved: When, in UTC, for people.
        versions: Of the packages that wrote it, by name.
    """

    checkpoint: Checkpoint
    digests: Digests
    saved: str
    versions: Mapping[str, str] = field(default_factory=_versions)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], now: float) -> Self:
        """Read what `to_json` has returned.

        Args:
            data: It, or anything else that JSON can say.
            now: Seconds.

        Raises:
            ValueError: It is something else, or of another format; the message begins
                with the field.
        """
        if (got := get(data, "format", int)) != FORMAT:
            raise ValueError(
                f"format: expected {FORMAT}, got {got}, of another asyncps"
            )
        versions = get(data, "versions", dict)
        return cls(
            checkpoint=_checkpoint(data, now),
            digests=_digests(get(data, "arrays", list)),
            saved=get(data, "saved", str),
            versions={name: get(versions, name, str) for name in versions},
        )

    def to_json(self) -> dict[str, Any]:
        kept = self.checkpoint
        sessions = kept.sessions.items()
        return {
            "format": FORMAT,
            "saved": self.saved,
            "versions": dict(self.versions),
            "generation": kept.generation,
            "step": kept.step,
            "rule": kept.rule,
            "max_staleness": kept.max_staleness,
            "max_grad_norm": kept.max_grad_norm,
            "staleness_policy": kept.staleness_policy,
            "server": kept.server,
            "tables": list(kept.tables),
            "initializer": kept.initializer,
            "sessions": {name: _session_to_json(session) for name, session in sessions},
            "counters": keptcounters.to_json(kept.counters),
            "log_from": kept.log_from,
            "weak": sorted(kept.slots.weak),
            "arrays": [_digest_to_json(*pair) for pair in self.digests.items()],
        }


def _checkpoint(data: Mapping[str, Any], now: float) -> Checkpoint:
    sessions = get(data, "sessions", dict)
    return Checkpoint(
        generation=get(data, "generation", str),
        step=count(data, "step"),
        variables=Body(Layout(()), ()),
        slots=Slots({}, frozenset(map(str, get(data, "weak", list)))),
        initializer=get(data, "initializer", str),
        rule=get(data, "rule", str),
        max_staleness=optional(data, "max_staleness", int),
        max_grad_norm=number(data, "max_grad_norm"),
        sessions={name: _session(get(sessions, name, dict)) for name in sessions},
        counters=keptcounters.from_json(get(data, "counters", dict), now),
        log_from=count(data, "log_from"),
        staleness_policy=optional(data, "staleness_policy", str) or "drop",
        server=optional(data, "server", str) or "",
        tables=tuple(map(str, optional(data, "tables", list) or ())),
    )


def _digest_to_json(spec: ArraySpec, digest: str) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype.name,
        "shape": list(spec.shape),
        "sha256": digest,
    }


def _digests(data: list[Any]) -> Digests:
    found = dict(map(_digest, data))
    if len({spec.name for spec in found}) != len(data):
        raise ValueError("arrays: expected each name once, got one twice")
    return found


def _digest(data: Any) -> tuple[ArraySpec, str]:
    name, dtype = get(data, "name", str), get(data, "dtype", str)
    if dtype not in DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {dtype}")
    shape = tuple(get(data, "shape", list))
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name}: expected dimensions of 0 or more, got {shape}")
    return ArraySpec(name, DTYPES[dtype], shape), get(data, "sha256", str)


def _session_to_json(session: Session) -> dict[str, Any]:
    verdict = session.last_verdict
    return {
        "worker": session.worker,
        "last_seq": session.last_seq,
        "last_verdict": _verdict_to_json(verdict) if verdict else None,
        "superseded": session.superseded,
        "since": session.since,
    }


def _session(data: Mapping[str, Any]) -> Session:
    verdict = optional(data, "last_verdict", dict)
    return Session(
        worker=get(data, "worker", str),
        last_seq=count(data, "last_seq"),
        last_verdict=_verdict(verdict) if verdict else None,
        superseded=get(data, "superseded", bool),
        since=count(data, "since"),
    )


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "applied": verdict.applied,
        "staleness": verdict.staleness,
        "step": verdict.step,
        "reason": verdict.reason.name if verdict.reason else None,
        "factor": verdict.factor,
        "consecutive_drops": verdict.consecutive_drops,
        "dropped_variables": verdict.dropped_variables,
    }


def _verdict(data: Mapping[str, Any]) -> Verdict:
    reason, factor = optional(data, "reason", str), number(data, "factor")
    if reason is not None and reason not in Reason.__members__:
        raise ValueError(
            f"reason: expected {', '.join(Reason.__members__)}, got {reason}"
        )
    return Verdict(
        applied=get(data, "applied", bool),
        staleness=count(data, "staleness"),
        step=count(data, "step"),
        reason=None if reason is None else Reason[reason],
        factor=1.0 if factor is None else factor,
        consecutive_drops=optional(data, "consecutive_drops", int) or 0,
        dropped_variables=count({"dropped_variables": 0, **data}, "dropped_variables"),
    )
