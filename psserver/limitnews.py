"""The line that says by which other limits pushes are judged from now on."""

import logging

from psserver.checkpoint import Checkpoint
from pswire.status import Limits

_log = logging.getLogger("psserver")


def tell_limits(now: Limits, before: Limits | Checkpoint) -> None:
    """Log what has changed, if anything has."""
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
            "going on with other limits: %s",
            "; ".join(news),
            extra={
                "event": "limits_changed",
                "limit": now.max_staleness,
                "limit_before": before.max_staleness,
                "staleness_policy": now.staleness_policy,
                "staleness_policy_before": before.staleness_policy,
                "max_grad_norm": now.max_grad_norm,
                "max_grad_norm_before": before.max_grad_norm,
            },
        )


def _told(limit: str | float | None, unit: str) -> str:
    return "off" if limit is None else f"{limit}{unit}"
