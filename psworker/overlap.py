"""The calls that a worker makes for each gradient, at once or while it computes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

from pswire.body import Body
from pswire.values import Snapshot, Verdict


class Exchanger(Protocol):
    """What training needs of a client."""

    def initialize(self, params: Any, *, tables: Sequence[str] = ()) -> bool: ...

    def pull_body(self, *, rows: Mapping[str, Any] | None = None) -> Snapshot[Body]: ...

    def push(
        self,
        gradients: Any,
        snapshot: Snapshot[Body],
        *,
        value: float | None,
    ) -> Verdict: ...

    def exchange(
        self,
        gradients: Any,
        snapshot: Snapshot[Body],
        *,
        value: float | None,
    ) -> tuple[Verdict, Snapshot[Body]]: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one push.

    Attributes:
        verdict: The server's.
        loss: The loss that belongs to it.
    """

    verdict: Verdict
    loss: float


class Overlap:
    """One worker's pushes and pulls, by turns; at most one of each is in flight.

    Closed by `with`, which does not wait for a call in flight: nobody wants what it
    brings any more, and it ends with the client.
    """

    def __init__(
        self,
        client: Exchanger,
        *,
        prefetch: bool,
        background_push: bool,
        exchanges: bool = True,
    ) -> None:
        """Prepare; `start` is the first call.

        Args:
            client: The server, or anything that behaves like it.
            prefetch: Whether to begin each pull where the last one ends.
            background_push: Whether to wait for a push only when the next one comes.
            exchanges: Whether what the next pull brings may come with a push, if
                neither of these is wanted.
        """
        self._client = client
        self._prefetch = prefetch
        self._background = background_push
        self._exchanges = exchanges and not prefetch
        self._pool = ThreadPoolExecutor(2, "psworker")
        self._pulled: Snapshot[Body] | None = None
        self._pulling: Future[Snapshot[Body]] | None = None
        self._pushing: Future[Judged] | None = None

    def start(self) -> Snapshot[Body]:
        """Pull, and forget what was being pulled."""
        if self._pulling:
            self._pulling.exception()
        self._pulling = self._pulled = None
        return self.pull()

    def pull(self) -> Snapshot[Body]:
        """Return what to compute the next gradient from.

        Raises:
            ParameterServerError: As from `Client.pull_body`.
        """
        pulled, self._pulled = self._pulled, None
        pulling, self._pulling = self._pulling, None
        if pulling:
            pulled = pulling.result()
        snapshot = pulled or self._client.pull_body()
        if self._prefetch:
            self._pulling = self._pool.submit(self._client.pull_body)
        return snapshot

    def pull_rows(self, rows: Mapping[str, Any]) -> Snapshot[Body]:
        """Return what to compute a gradient of some rows from; see `Client.pull`.

        Raises:
            ParameterServerError: As from `Client.pull_body`.
        """
        return self._client.pull_body(rows=rows)

    def push(
        self, gradients: Any, snapshot: Snapshot[Body], loss: float
    ) -> Judged | None:
        """Offer gradients.

        Returns:
            What became of them or, in the background, of those before; None: those
            were the first.

        Raises:
            ParameterServerError: As from `Client.push`: of this push or, in the
                background, of the one before, and then this one is not made.
        """
        if self._background:
            judged = self.settle()
            self._pushing = self._pool.submit(self._push, gradients, snapshot, loss)
            return judged
        if not self._exchanges:
            return self._push(gradients, snapshot, loss)
        verdict, self._pulled = self._client.exchange(gradients, snapshot, value=loss)
        return Judged(verdict, loss)

    def settle(self) -> Judged | None:
        """Wait for the push in flight; None: there is none.

        Raises:
            ParameterServerError: As from `Client.push`.
        """
        pushing, self._pushing = self._pushing, None
        return pushing.result() if pushing else None

    def _push(self, gradients: Any, snapshot: Snapshot[Body], loss: float) -> Judged:
        return Judged(self._client.push(gradients, snapshot, value=loss), loss)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
