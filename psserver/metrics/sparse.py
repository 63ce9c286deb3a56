"""Which samples are worth keeping: an idle server fills no disk."""

from collections.abc import Mapping, Sequence
from typing import Any

from psserver.metrics.recorder import Sample

_IDLE_S = 60.0
_CLOCKS = frozenset({"time", "uptime_s", "last_seen_s", "saved_s"})


class Sparse:
    """Admits a sample if any of its figures has changed, and one a minute if none has.

    What changes with every second, such as a worker's `last_seen_s`, is no figure.
    """

    def __init__(self) -> None:
        self._figures: Any = None
        self._kept_s = 0.0
        self._paused_s = 0.0
        self._held: Sample | None = None
        self._is_level = False  # Whether the figures of the one held had not changed.

    def admit(self, sample: Sample) -> Sequence[Sample]:
        """Return what to keep now, in order: the last one held back may come along.

        With it, a line through what is kept stays level for as long as nothing changed.
        """
        figures = _figures(sample)
        changed = figures != self._figures
        least_s = self._paused_s if changed else max(self._paused_s, _IDLE_S)
        # An uptime that has gone back is that of the next server.
        if 0 <= sample["uptime_s"] - self._kept_s < least_s:
            self._held, self._is_level = sample, not changed
            return ()
        before = [self._held] if self._held and self._is_level and changed else []
        self._figures, self._kept_s, self._held = figures, sample["uptime_s"], None
        self._paused_s = 0.0
        return (*before, sample)

    def pause(self, seconds: float) -> None:
        """Admit nothing for so long after what was kept last; pauses add up."""
        self._paused_s += seconds

    def rest(self) -> Sequence[Sample]:
        """Return the last sample if it was held back: the end is always kept."""
        held, self._held = self._held, None
        return (held,) if held else ()


def _figures(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {k: _figures(v) for k, v in part.items() if k not in _CLOCKS}
    return [*map(_figures, part)] if isinstance(part, list) else part
