"""All of a checkpoint but its arrays, as JSON."""

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from psserver import keptcounters
from psserver.checkpoint import Checkpoint, Slots
from psserver.decision import Session
from psserver.durability import sealed
from psserver.durability.arrayfile import DTYPES, Digests
from psserver.jsonfields import count, field, number, optional
from pswire.body import Arrays, Body
from pswire.layout import ArraySpec
from pswire.values import Reason, Verdict

FORMAT = 1
"""Rises when an older program cannot read what a newer one writes."""

_PACKAGES = ("asyncps", "jax", "optax", "numpy")


def encode(checkpoint: Checkpoint, digests: Digests, saved: str) -> bytes:
    """Write a checkpoint down.

    Args:
        checkpoint: What is kept.
        digests: Of its arrays, by their specs in the file.
        saved: When, in UTC, for people.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    data = {
        "format": FORMAT,
        "saved": saved,
        "versions": _versions(),
        "generation": checkpoint.generation,
        "step": checkpoint.step,
        "rule": checkpoint.rule,
        "max_staleness": checkpoint.max_staleness,
        "max_grad_norm": checkpoint.max_grad_norm,
        "initializer": checkpoint.initializer,
        "sessions": {
            name: _session_to_json(session)
            for name, session in checkpoint.sessions.items()
        },
        "counters": keptcounters.to_json(checkpoint.counters),
        "weak": sorted(checkpoint.slots.weak),
        "arrays": [
            {
                "name": spec.name,
                "dtype": spec.dtype.name,
                "shape": list(spec.shape),
                "sha256": digest,
            }
            for spec, digest in digests.items()
        ],
    }
    return sealed.encode(data)


def decode(text: bytes) -> dict[str, Any]:
    """Return a manifest's fields, which nobody has changed since it was written.

    Raises:
        ValueError: Somebody has, or it is of a newer format.
    """
    data = sealed.decode(text)
    if (got := field(data, "format", int)) != FORMAT:
        raise ValueError(f"format: expected {FORMAT}, got {got}, of another asyncps")
    return data


def digests(data: Mapping[str, Any]) -> Digests:
    """Return the digests of a checkpoint's arrays, by their specs in the file.

    Raises:
        ValueError: An array is none, or there are two of a name.
    """
    found = dict(map(_digest, field(data, "arrays", list)))
    if len({spec.name for spec in found}) != len(data["arrays"]):
        raise ValueError("arrays: expected each name once, got one twice")
    return found


def checkpoint(
    data: Mapping[str, Any], variables: Body, slots: Arrays, now: float
) -> Checkpoint:
    """Read a checkpoint; `now` is in seconds.

    Raises:
        ValueError: A field is of another type.
    """
    sessions = field(data, "sessions", dict)
    return Checkpoint(
        generation=field(data, "generation", str),
        step=count(data, "step"),
        variables=variables,
        slots=Slots(slots, frozenset(map(str, field(data, "weak", list)))),
        initializer=field(data, "initializer", str),
        rule=field(data, "rule", str),
        max_staleness=optional(data, "max_staleness", int),
        max_grad_norm=number(data, "max_grad_norm"),
        sessions={name: _session(field(sessions, name, dict)) for name in sessions},
        counters=keptcounters.from_json(field(data, "counters", dict), now),
    )


@cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}


def _digest(data: Any) -> tuple[ArraySpec, str]:
    name, dtype = field(data, "name", str), field(data, "dtype", str)
    if dtype not in DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {dtype}")
    shape = tuple(field(data, "shape", list))
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name}: expected dimensions of 0 or more, got {shape}")
    return ArraySpec(name, DTYPES[dtype], shape), field(data, "sha256", str)


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
        worker=field(data, "worker", str),
        last_seq=count(data, "last_seq"),
        last_verdict=_verdict(verdict) if verdict else None,
        superseded=field(data, "superseded", bool),
        since=count(data, "since"),
    )


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "applied": verdict.applied,
        "staleness": verdict.staleness,
        "step": verdict.step,
        "reason": verdict.reason.name if verdict.reason else None,
    }


def _verdict(data: Mapping[str, Any]) -> Verdict:
    reason = optional(data, "reason", str)
    if reason is not None and reason not in Reason.__members__:
        raise ValueError(
            f"reason: expected {', '.join(Reason.__members__)}, got {reason}"
        )
    return Verdict(
        applied=field(data, "applied", bool),
        staleness=count(data, "staleness"),
        step=count(data, "step"),
        reason=None if reason is None else Reason[reason],
    )
