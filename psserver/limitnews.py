"""The lines that say by what pushes are judged from now on."""

import logging

from psserver.checkpoint import Checkpoint
from psserver.policies.policy import Policy
from pswire.layout import Layout, some
from pswire.status import Limits

_log = logging.getLogger("psserver")


def tell_limits(
    now: Limits, before: Limits | Checkpoint, peer: str | None = None
) -> None:
    """Log what has changed, if anything has.

    Args:
        now: What is accepted.
        before: What had been.
        peer: Who has asked for it; None: nobody, the server begins so.
    """
    limits = (
        ("limit", " steps", now.max_staleness, before.max_staleness),
        ("policy", "", now.staleness_policy, before.staleness_policy),
        ("max_grad_norm", "", now.max_grad_norm, before.max_grad_norm),
    )
    news = [
        f"{name} {_told(to, unit)}, was {_told(was, unit)}"
        for name, unit, to, was in limits
        if to != was
    ]
    if news:
        _log.info(
            "going on with other limits%s: %s",
            f", as {peer} has asked" if peer else "",
            "; ".join(news),
            extra={
                "event": "limits_changed",
                "peer": peer,
                "limit": now.max_staleness,
                "limit_before": before.max_staleness,
                "staleness_policy": now.staleness_policy,
                "staleness_policy_before": before.staleness_policy,
                "max_grad_norm": now.max_grad_norm,
                "max_grad_norm_before": before.max_grad_norm,
            },
        )


def tell_idle(policy: Policy, variables: Layout) -> None:
    """Warn of patterns that no variable goes by, as one with a slip of the pen does."""
    idle = policy.idle(variables.trainable.places)
    if idle:
        _log.warning(
            "staleness_policy: no variable is of %s: none has such a name, or each is "
            "of an earlier group",
            some(idle),
            extra={"event": "groups_idle", "patterns": idle},
        )


def _told(limit: str | float | None, unit: str) -> str:
    return "off" if limit is None else f"{limit}{unit}"
