"""A status to make others of, with `dataclasses.replace`."""

from pswire.counts import Counts
from pswire.status import Limits, Status

QUIET = Status(
    generation="g",
    incarnation="i",
    step=0,
    limits=Limits(2, None, 1, 1),
    rule="sgd",
    initialized=True,
    uptime_s=100.0,
    pushes_per_s=0.0,
    counts=Counts(),
    staleness={},
    workers=(),
)
