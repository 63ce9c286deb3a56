"""The decision on a push: a pure function of its header and of what the server is."""

from collections.abc import Sequence
from dataclasses import dataclass

from psserver.policies.terms import Terms
from pswire.errors import (
    GenerationError,
    InvalidRequestError,
    SequenceError,
    SessionSupersededError,
    StepReadError,
    VariableMismatchError,
)
from pswire.layout import Layout
from pswire.values import PushHeader, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Session:
    """What the server remembers of one worker process.

    A session pushes one after another, so its last push is all that a retry can be of.

    Attributes:
        worker: The worker's name.
        last_seq: The number of its last judged push; 0: none yet.
        last_verdict: What became of that push.
        superseded: Whether a newer session has joined under the worker's name.
        since: The step when it joined again, forgotten; 0: all of it is remembered.
    """

    worker: str
    last_seq: int = 0
    last_verdict: Verdict | None = None
    superseded: bool = False
    since: int = 0


@dataclass(frozen=True, slots=True)
class Present:
    """The server's side of a decision.

    Attributes:
        generation: The history that steps count in.
        step: Updates made so far, in steps.
        layout: What a push may bring.
        recent: The staleness of the last judged pushes, in steps.
        drops: How many pushes of the worker were dropped since its last applied one.
        oldest: The oldest step whose snapshot there is, if the policy needs it; else 0.
    """

    generation: str
    step: int
    layout: Layout
    recent: Sequence[int] = ()
    drops: int = 0
    oldest: int = 0


def mismatch(header: PushHeader, layout: Layout) -> VariableMismatchError | None:
    """Return what is amiss with the arrays that a push announces; None: nothing.

    Beside a model of thousands this takes longer than all of `decide`, and what is
    expected never changes: so it is found out once, by whoever decides later.

    Args:
        header: The push's.
        layout: What it may bring.
    """
    try:
        if header.layout is not None:
            layout.require_some(header.layout)
        if not header.brought(layout):
            return VariableMismatchError(
                "rows: expected some of a table, got none of any"
            )
        expected = header.body_layout(layout).nbytes
    except VariableMismatchError as error:
        return error
    if header.nbytes != expected:
        return VariableMismatchError(
            f"nbytes: expected {expected} bytes, got {header.nbytes}"
        )
    return None


def decide(
    header: PushHeader,
    session: Session,
    present: Present,
    terms: Terms,
    amiss: VariableMismatchError | None = None,
) -> Verdict:
    """Return the verdict that a push gets if its gradients are sound.

    The order matters. A duplicate is known before its staleness is looked at: a push
    that was applied has aged by its own step when its retry comes. What is invalid
    is an error, never a drop, so staleness comes last.

    Args:
        header: The push's.
        session: Who pushes.
        present: What the server is now.
        terms: By what pushes are judged.
        amiss: From `mismatch`.

    Raises:
        SessionSupersededError: A newer session has taken the worker's name over.
        SequenceError: The session has used a higher number already.
        GenerationError: The gradients belong to another history, or to a part of this
            one whose pushes of the session are forgotten.
        StepReadError: step_read is negative or ahead of the step.
        VariableMismatchError: The gradients are not those of variables.
        InvalidRequestError: They are some, where the policy takes none but all.
    """
    if session.superseded:
        raise superseded(session.worker, header.session)
    if session.last_verdict and header.seq == session.last_seq:
        return session.last_verdict.repeated()
    if header.seq <= session.last_seq:
        raise SequenceError(
            f"seq: expected more than {session.last_seq}, got {header.seq}"
        )
    if header.generation != present.generation:
        raise GenerationError(
            f"generation: expected {present.generation}, got {header.generation[:64]}"
        )
    if not 0 <= header.step_read <= present.step:
        raise StepReadError(
            f"step_read: expected 0 to {present.step} steps, got {header.step_read}"
        )
    if header.step_read < session.since:  # It may be a retry of what was applied.
        raise GenerationError(
            f"step_read: expected {session.since} or more, the step when session "
            f"{header.session} joined again, got {header.step_read}; what it pushed "
            "before is not known any more"
        )
    if amiss:
        raise amiss
    if terms.policy.pushes_a_step > 1:
        _require_all(header, present.layout, terms.policy.spec)
    staleness = present.step - header.step_read
    factor = terms.factor(staleness, present.recent)
    brought = header.brought(present.layout)
    left_out = terms.policy.left_out(staleness, brought)
    reason = None
    if factor is None or len(left_out) == len(brought):
        reason = Reason.STALE
    elif header.step_read < present.oldest:
        reason = Reason.SNAPSHOT_GONE
    if factor is None or reason:
        return Verdict(
            applied=False,
            staleness=staleness,
            step=present.step,
            reason=reason,
            consecutive_drops=present.drops + 1,
        )
    return Verdict(
        applied=True,
        staleness=staleness,
        step=present.step + 1,
        factor=factor,
        dropped_variables=len(left_out),
        left_out=tuple(filter(left_out.__contains__, brought)) if left_out else (),
    )


def superseded(worker: str, session: str) -> SessionSupersededError:
    """Return the error for a session whose worker's name another one has taken."""
    return SessionSupersededError(
        f"session: expected the newest of worker {worker}, got {session}; another "
        "process has joined under that name"
    )


def _require_all(header: PushHeader, layout: Layout, spec: str) -> None:
    brought = (header.layout or layout).arrays
    if len(brought) < len(layout.arrays):
        raise InvalidRequestError(
            f"layout: expected all {len(layout.arrays)} trainable variables, as {spec} "
            f"takes the mean of whole pushes, got {len(brought)}"
        )
