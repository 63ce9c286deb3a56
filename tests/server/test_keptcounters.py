"""The counters as JSON."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from psserver.checkpoint import Checkpoint
from psserver.counters import Counters
from psserver.durability import keptcounters
from pswire.values import Verdict


def told(counters: Counters) -> list[Any]:
    """Return all that a status tells of counters but the last seconds."""
    rows = counters.workers(now=1e6, uptime_s=1e6)
    totals = [counters.total.freeze(), counters.unjoined.freeze()]
    sums = [counters.staleness_sum, counters.withheld, counters.dropped_variables]
    return [*totals, counters.staleness, *sums, *rows]


def through_json(counters: Counters, now: float) -> Counters:
    """Return what JSON's text keeps of counters."""
    text = json.dumps(keptcounters.to_json(counters), allow_nan=False)
    return keptcounters.from_json(json.loads(text), now)


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_back_goes_on_as_if_nothing_had_happened(
    seed: int, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    """Every figure is the same, then and after more pushes; all were seen just now."""
    counters = make_checkpoint(seed).counters
    for worker in counters.rows:
        counters.see(worker, now=500.0)

    back = through_json(counters, now=500.0)

    before = told(counters)
    assert told(back) == before
    for each in (counters, back):
        each.join("new", now=501.0)
        each.judge("ann", Verdict(applied=False, staleness=9, step=1), 0.5, 502.0)
        each.judge("new", Verdict(applied=True, staleness=0, step=2), None, 503.0)
    assert told(back) == told(counters) != before


def test_the_last_seconds_begin_anew() -> None:
    """A rate of pushes that came before a crash would be none of this server's."""
    counters = Counters()
    counters.join("ann", now=0.0)
    counters.judge("ann", Verdict(applied=True, staleness=0, step=1), None, now=9.0)

    back = through_json(counters, now=9.0)

    assert counters.recent.rates(9.0, 9.0).pushes_per_s > 0
    assert back.recent.rates(9.0, 9.0).pushes_per_s == 0
    assert [row.pushes_per_s for row in back.workers(9.0, 9.0)] == [0.0]


def test_what_was_kept_before_there_were_factors_counted_in_full() -> None:
    """Of a checkpoint of an older server."""
    counters = Counters()
    counters.join("ann", now=0.0)
    verdict = Verdict(True, 0, 1, factor=0.5, dropped_variables=2)
    counters.judge("ann", verdict, None, now=0.0)
    data = keptcounters.to_json(counters)
    del data["withheld"], data["dropped_variables"]

    back = keptcounters.from_json(data, now=0.0)

    assert (back.withheld, back.dropped_variables) == (0, 0)


def test_a_loss_that_is_no_number_is_refused() -> None:
    """Python's JSON reads infinities, though no program should write them."""
    counters = Counters()
    counters.join("ann", now=0.0)
    data = keptcounters.to_json(counters)
    data["workers"]["ann"]["loss"] = json.loads("1e999")

    with pytest.raises(ValueError, match=r"^loss: expected a finite number, got inf$"):
        keptcounters.from_json(data, now=0.0)
