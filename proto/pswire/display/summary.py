"""A server's status as a person reads it."""

from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.text import Text

from pswire.counts import Counts
from pswire.display import bars, workertable
from pswire.display.workertable import span
from pswire.status import Status, limited

_ENDLESS = 10_000
_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


def show(status: Status, file: TextIO) -> None:
    """Print a status; see `put`."""
    put(draw(status), file)


def put(drawn: RenderableType, file: TextIO) -> None:
    """Print what has been drawn: in colour on a terminal, as plain text elsewhere."""
    console = Console(
        file=file,
        highlight=False,
        # Where nobody looks at columns, nothing is folded to fit them.
        width=None if file.isatty() else _ENDLESS,
    )
    console.print(drawn)


def draw(status: Status) -> RenderableType:
    """Draw the headline, a row for every worker, and the staleness distribution."""
    parts: list[RenderableType] = [_headline(status)]
    if status.workers:
        parts += ["", workertable.draw(status, status.workers)]
    if status.staleness:
        parts += ["", bars.draw(status)]
    return Group(*parts)


def settings(status: Status) -> str:
    """Say which rule there is, and how stale a push may be."""
    policy = status.limits.staleness_policy
    return f"rule {status.rule}, {limited(status.limit_now, policy)}"


def outcomes(counts: Counts) -> str:
    """Say what became of pushes."""
    rejected = sum(counts.rejected.values())
    why = ", ".join(f"{number} {name}" for name, number in counts.rejected.items())
    gone = f" ({counts.snapshot_gone} SNAPSHOT_GONE)" if counts.snapshot_gone else ""
    return (
        f"{counts.applied} applied, {counts.dropped} dropped{gone}, "
        f"{counts.duplicate} duplicate, {rejected} rejected"
    ) + (f" ({why})" if why else "")


def rates(status: Status) -> str:
    """Say how fast it goes, and the loss if one was told."""
    loss = "" if status.loss is None else f", loss {status.loss:.4g}"
    return f"{status.pushes_per_s:.1f} pushes/s, {status.steps_per_s:.1f} steps/s{loss}"


def kept(status: Status) -> Text:
    """Say what outlasts the server; its mode is not `none`."""
    now = status.durability
    newest = "no checkpoint yet"
    if now.saved_s is not None:
        newest = f"checkpoint of step {now.saved_step}, {span(now.saved_s)} old"
    if now.mode == "log":
        told = f"log, all {status.step} steps; {newest}"
    else:
        told = f"{newest}; {status.steps_at_risk} steps at risk"
    failed = f", {now.failures} failed to be saved" if now.failures else ""
    corrupt = f", {now.corrupt} set aside as corrupt" if now.corrupt else ""
    return Text.assemble(told, (failed + corrupt, "bold red"))


def quantiles(status: Status) -> str:
    """Say how stale the judged pushes were; there is one."""
    texts = [f"{n} {status.staleness_quantile(q)}" for n, q in _QUANTILES.items()]
    return f"{', '.join(texts)}, most {max(status.staleness)} steps"


def _headline(status: Status) -> Text:
    counts = status.counts
    lines: list[str | Text] = [
        f"{status.name}: step {status.step}, {settings(status)}, "
        f"generation {status.generation}",
        f"pushes: {outcomes(counts)}",
        f"drop rate {counts.drop_rate:.1%} of {counts.judged} judged pushes",
        f"last 10 s: {_recently(status)}",
    ]
    if not status.initialized:
        lines.insert(1, "no variables yet: the first worker brings them")
    if status.staleness:
        lines.append(f"staleness: {quantiles(status)}")
    if status.withheld:
        lines.append(f"factor: mean {status.mean_factor:.4g} of the applied pushes")
    if status.dropped_variables:
        lines.append(
            f"left out of applied pushes: {status.dropped_variables} variables"
        )
    if status.waited_s:
        lines.append(f"pulls have waited {span(status.waited_s)} for their turns")
    if status.durability.mode != "none":
        lines.append(Text("kept: ") + kept(status))
    return Text("\n").join(Text() + line for line in lines)


def _recently(status: Status) -> str:
    if status.recent_drop_rate is None:
        return "no push was judged"
    return f"drop rate {status.recent_drop_rate:.1%}, {rates(status)}"
