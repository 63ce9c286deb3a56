"""The figures as a person reads them."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figure, Spread

_SCALES = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")),
}
_VERDICTS = {
    True: Text("met", style="green"),
    False: Text("missed", style="red"),
    None: Text(""),
}


def draw(title: str, figures: Iterable[Figure]) -> Table:
    """Draw a case's figures, a row each."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("measured", "", "against", "", "ratio", "target"):
        side: JustifyMethod = "left" if name in ("measured", "against") else "right"
        table.add_column(name, justify=side, no_wrap=True)
    table.add_column("")
    for figure in figures:
        claim = figure.claim
        table.add_row(
            claim.measured,
            _amounts(figure.measured, claim.unit),
            claim.limit,
            _amounts(figure.limit, claim.unit),
            _range(figure.ratio, 1),
            "" if claim.target is None else str(claim.target),
            _VERDICTS[figure.met],
        )
    return table


def _amounts(spread: Spread, unit: str) -> str:
    """Write a value with a unit that suits its size."""
    if unit == "yes":
        return "yes" if spread.median else "no"
    scales = _SCALES.get(unit, ((1, unit),))
    scale, name = next((s for s in scales if spread.median >= s[0]), scales[-1])
    return f"{_range(spread, scale)} {name}"


def _range(spread: Spread, scale: float) -> str:
    median, least, most = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (v / scale for v in (spread.median, spread.min, spread.max))
    )
    return median if least == most else f"{median} ({least}-{most})"
