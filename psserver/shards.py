"""Which session goes through which part of the data."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pswire.errors import InvalidRequestError

_MAX_COUNT = 2**12  # Each part takes memory of the server's.
_MAX_EPOCH = 2**31  # No worker comes to this; JAX's keys take no more.


@dataclass(frozen=True, slots=True)
class Lease:
    """A session's right to a part.

    Attributes:
        index: Which part, from 0 on.
        epoch: How many leases of it there were before.
    """

    index: int
    epoch: int


class Shards:
    """Leases parts of the data, one to a session; whoever owns this guards it.

    The part that has waited longest is next. The rows end with the server: a session
    says to the next one what it holds.
    """

    def __init__(self, first: int = 0) -> None:
        """Begin with nothing leased.

        Args:
            first: Tells which part is the first to be leased, that number modulo how
                many there are: if it were always the same, servers that do not last
                long would never come to the others.
        """
        self._first = first
        self._cuts: dict[int, _Cut] = {}  # By into how many parts the data are cut.

    def lease(
        self,
        session: str,
        count: int,
        held: Lease | None,
        is_here: Callable[[str], bool],
        *,
        finished: bool = False,
    ) -> Lease:
        """Return what a session is to go through: what it holds, unless that is done.

        Args:
            session: Who asks; what it holds of another cut it gives back.
            count: Into how many parts the data are cut.
            held: What it holds as far as it knows; None: nothing.
            is_here: Whether a session is still expected to go through its part.
            finished: Whether it has gone through that, and gives it back.

        Raises:
            InvalidRequestError: There cannot be so many parts, or not that one.
        """
        _require(count, held)
        cut = self._cuts.setdefault(count, _Cut(count, self._first))
        for other in self._cuts.values():
            for holder in list(other.held):
                if not is_here(holder) or (holder == session and other is not cut):
                    other.give_back(holder)
        if held and finished:
            cut.finish(session, held)
        elif held and session not in cut.held:
            cut.take(session, held)
        lease = cut.lease(session)
        self._cuts = {n: other for n, other in self._cuts.items() if other.held}
        return lease

    def held(self) -> dict[str, str]:
        """Return {session: its part, as `I/N`}."""
        return {
            session: f"{lease.index}/{count}"
            for count, cut in self._cuts.items()
            for session, lease in cut.held.items()
        }


class _Cut:
    """The parts that some sessions cut the data into.

    Attributes:
        held: {session: its lease}.
    """

    def __init__(self, count: int, first: int) -> None:
        self.held: dict[str, Lease] = {}
        # A dict for its order: the next one first.
        self._free = {(first + place) % count: None for place in range(count)}
        self._epochs = Counter[int]()

    def lease(self, session: str) -> Lease:
        if session not in self.held:
            index = next(iter(self._free), None)
            index = self._least_shared() if index is None else index
            self.take(session, Lease(index, self._epochs[index]))
        return self.held[session]

    def take(self, session: str, lease: Lease) -> None:
        """Have a session hold this, and no free part."""
        self._free.pop(lease.index, None)
        self.held[session] = lease
        self._count(lease)

    def finish(self, session: str, lease: Lease) -> None:
        """Have a part be the last one to be leased again; a session went through it."""
        if self.held.get(session) == lease:
            self.give_back(session)
        elif lease.index in self._free:  # Leased by another server, or too long ago.
            self._put_last(lease.index)
        self._count(lease)

    def give_back(self, session: str) -> None:
        """Have a session hold nothing."""
        index = self.held.pop(session).index
        if all(lease.index != index for lease in self.held.values()):
            self._put_last(index)

    def _put_last(self, index: int) -> None:
        self._free.pop(index, None)
        self._free[index] = None

    def _count(self, lease: Lease) -> None:
        self._epochs[lease.index] = max(self._epochs[lease.index], lease.epoch + 1)

    def _least_shared(self) -> int:
        """Return what a session gets where there are more sessions than parts."""
        holders = Counter(lease.index for lease in self.held.values())
        return min(holders, key=holders.__getitem__)


def _require(count: int, held: Lease | None) -> None:
    if not 0 < count <= _MAX_COUNT:
        raise InvalidRequestError(
            f"shard: expected 1 to {_MAX_COUNT} parts, got {count}"
        )
    if held and not (held.index < count and held.epoch < _MAX_EPOCH):
        raise InvalidRequestError(
            f"shard: expected to hold one of {count} parts, leased less than "
            f"{_MAX_EPOCH} times, got {held.index}, leased {held.epoch} times"
        )
