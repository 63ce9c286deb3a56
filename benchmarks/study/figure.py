"""The figure: what a limit leaves of the last worker, drawn as SVG."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Spread
from benchmarks.study.runs import Run, Study

_WIDTH, _HEIGHT = 780, 330
_TOP, _BOTTOM = 92, 282
_PANEL_WIDTH = 310
_PANEL_GAP = 62
_LEGEND_WIDTH = 355
_MIDDLE = 'text-anchor="middle"'

# As the page has them; a card of its own is readable on whatever page it is put.
_STYLE = """
  .card { fill: #ffffff; stroke: #dddcd8 }
  text { fill: #5c626d; font: 12px system-ui, "Segoe UI", Roboto, sans-serif }
  .title { fill: #1d2025; font-weight: 600 }
  .grid { stroke: #e7e7e4 }
  .all { stroke: #1f6f8b; fill: #1f6f8b }
  .last { stroke: #b8431b; fill: #b8431b }
  path.line { fill: none; stroke-width: 2 }
  .pushes { stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #1a1d22; stroke: #2c3138 }
    text { fill: #9ba2ae }
    .title { fill: #e7e9ec }
    .grid { stroke: #272b32 }
    .all { stroke: #6cc0dc; fill: #6cc0dc }
    .last { stroke: #f0946c; fill: #f0946c }
  }
"""


@dataclass(frozen=True, slots=True)
class _Curve:
    """What is drawn of every row.

    Attributes:
        name: In the legend.
        kind: Its classes in the style.
        value: Of one run, in percent.
    """

    name: str
    kind: str
    value: Callable[[Run], float]


_CURVES = (
    _Curve("all workers' pushes applied", "all pushes", Run.applied_percent),
    _Curve(
        "the last worker's pushes applied",
        "last pushes",
        lambda run: run.applied_percent(slice(-1, None)),
    ),
    _Curve("accuracy on all digits", "all", lambda run: 100 * run.accuracy),
    _Curve(
        "accuracy on the digit that only the last worker has",
        "last",
        lambda run: 100 * run.own_accuracy,
    ),
)
_PANELS = {
    "4-equal": "4 equal workers",
    "4-unequal": "4 workers, the last 4 times slower",
}


def draw(study: Study) -> str:
    """Return the figure: medians, and bars from the least to the most."""
    left = 52
    panels: list[str] = []
    for group, title in _PANELS.items():
        panels.extend(_panel(title, study.rows(group), left))
        left += _PANEL_WIDTH + _PANEL_GAP
    label = "What each limit leaves of a slow worker"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" '
            f'height="{_HEIGHT - 1}" rx="10"/>',
            *_legend(),
            *panels,
            "</svg>\n",
        )
    )


def _legend() -> Iterator[str]:
    for number, curve in enumerate(_CURVES):
        x, y = 24 + _LEGEND_WIDTH * (number // 2), 26 + 20 * (number % 2)
        yield f'<path class="line {curve.kind}" d="M{x},{y - 4}h28"/>'
        yield _text(x + 36, y, curve.name)


def _panel(title: str, rows: Mapping[str, Sequence[Run]], left: int) -> Iterator[str]:
    right = left + _PANEL_WIDTH
    yield _text(left, _TOP - 16, title, 'class="title"')
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent)
        yield f'<path class="grid" d="M{left},{y:.1f}H{right}"/>'
        yield _text(left - 6, y + 4, f"{percent} %", 'text-anchor="end"')
    places = [
        left + _PANEL_WIDTH * (number + 0.5) / len(rows) for number in range(len(rows))
    ]
    for x, row in zip(places, rows, strict=True):
        limit = row.removeprefix("--max-staleness ")
        yield _text(x, _BOTTOM + 18, limit, _MIDDLE)
    yield _text((left + right) / 2, _BOTTOM + 37, "--max-staleness", _MIDDLE)
    for curve in _CURVES:
        spreads = [Spread.of([*map(curve.value, runs)]) for runs in rows.values()]
        yield from _draw_curve(curve.kind, places, spreads)


def _draw_curve(
    kind: str, places: Sequence[float], spreads: Sequence[Spread]
) -> Iterator[str]:
    points = [(x, _y(s.median)) for x, s in zip(places, spreads, strict=True)]
    line = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<path class="line {kind}" d="M{line}"/>'
    bars = "".join(
        f"M{x:.1f},{_y(s.min):.1f}V{_y(s.max):.1f}"
        for x, s in zip(places, spreads, strict=True)
    )
    yield f'<path class="{kind.split()[0]}" d="{bars}"/>'
    for x, y in points:
        yield f'<circle class="{kind.split()[0]}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{text}</text>'


def _y(percent: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * percent / 100
