"""How gradients become a push: laid out, made smaller, numbered, one at a time."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pswire.body import Arrays, Body
from pswire.encoding import BFLOAT16, PLAIN, Encoding
from pswire.layout import Layout
from pswire.values import PushHeader, Snapshot, Verdict
from psworker.connection import Connection
from psworker.drops import Advice
from psworker.outgoing import LaidOut, lay_out
from psworker.topk import TopK
from psworker.turns import Wait
from psworker.wire import Wire

Exchanged = tuple[Verdict, Snapshot[Body] | Wait | None]
"""A push's verdict, and what came with it; None: the snapshot is still the same one."""

_Call = Callable[[PushHeader, Layout, Arrays], Exchanged]


class Origin(NamedTuple):
    """Which snapshot gradients were computed from.

    Attributes:
        generation: The history that its step counts in.
        step_read: Its step, in steps.
        value: The loss there; None: unknown.
    """

    generation: str
    step_read: int
    value: float | None


class Pushes:
    """A session's pushes, in the order of their numbers."""

    def __init__(self, connection: Connection, wire: Wire) -> None:
        """Start with none.

        Args:
            connection: The session's.
            wire: What may be lost of gradients on their way.
        """
        self._connection = connection
        self._encoding = rounding(wire.narrow_pushes)
        self._top_k = None if wire.fraction is None else TopK(wire.fraction)
        # Guards `_seq`, `_top_k` and `_advice`, and keeps one push at a time: the
        # server remembers the last.
        self._pushing = threading.Lock()
        self._seq = 0
        self._advice = Advice()

    def laid_out(self, gradients: Mapping[str, Any]) -> LaidOut:
        """Lay gradients out: in the variables' order, whatever theirs.

        Raises:
            VariableMismatchError: One is of no variable, or of another shape or type.
        """
        if self._connection.layout is None:
            self._connection.join()  # It may have come since we joined.
        return lay_out(gradients, self._usual())

    def push(self, gradients: Mapping[str, Any], origin: Origin) -> Verdict:
        """Offer gradients."""

        def call(header: PushHeader, layout: Layout, sent: Arrays) -> Exchanged:
            return self._connection.push(header, layout, sent), None

        return self._send(gradients, origin, call)[0]

    def exchange(self, gradients: Mapping[str, Any], origin: Origin) -> Exchanged:
        """Offer gradients, then pull, in one call."""
        return self._send(gradients, origin, self._connection.exchange)

    def _send(
        self, gradients: Mapping[str, Any], origin: Origin, call: _Call
    ) -> Exchanged:
        variables, rows, layout, arrays = self.laid_out(gradients)
        with self._pushing:
            encoding, choice = self._encoding, None
            if self._top_k:
                wire = encoding.layout(layout)
                choice = self._top_k.choose(arrays, wire, origin.generation)
                encoding = replace(encoding, counts=choice.counts)
                arrays = encoding.encode(choice.arrays, choice.indices)
            body_layout = encoding.layout(layout)
            self._seq += 1
            header = PushHeader(
                session=self._connection.session,
                seq=self._seq,
                generation=origin.generation,
                step_read=origin.step_read,
                nbytes=body_layout.nbytes,
                # What the server expects need not be sent.
                layout=None if variables is self._usual() else variables,
                value=origin.value,
                encoding=encoding,
                snapshot_encoding=self._connection.pull_encoding,
                rows=rows,
            )
            verdict, new = call(header, body_layout, arrays)
            self._advice.heed(verdict)
            # Of a push that was dropped, nothing has arrived: all is as it was.
            if self._top_k and choice and verdict.applied:
                self._top_k.keep(choice, wire, verdict.left_out)
            return verdict, new

    def _usual(self) -> Layout | None:
        """Return the layout of all gradients; None: there are no variables yet."""
        variables = self._connection.layout
        return variables.trainable if variables else None


def rounding(narrow: bool) -> Encoding:
    """Return how arrays travel whose float32 may be narrowed, or not."""
    return Encoding(BFLOAT16) if narrow else PLAIN
