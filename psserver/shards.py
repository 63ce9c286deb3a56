"""Which session goes through which part of the data."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from pswire.errors import InvalidRequestError

_MAX_COUNT = 2**16


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

    The part that has waited longest is next. The rows end with the server: nobody needs
    them to train, and at worst a part is gone through twice.
    """

    def __init__(self) -> None:
        self._cuts: dict[int, _Cut] = {}  # By into how many parts the data are cut.

    def lease(
        self,
        session: str,
        count: int,
        finished: Lease | None,
        is_here: Callable[[str], bool],
    ) -> Lease:
        """Return what a session holds, or give it the next part if it holds none.

        Args:
            session: Who asks; what it holds of another cut it gives back.
            count: Into how many parts the data are cut.
            finished: What the session has gone through, and gives back; None: nothing.
            is_here: Whether a session is still expected to go through its part.

        Raises:
            InvalidRequestError: There cannot be so many parts, or not that one.
        """
        if not 0 < count <= _MAX_COUNT:
            raise InvalidRequestError(
                f"shard: expected 1 to {_MAX_COUNT} parts, got {count}"
            )
        if finished and finished.index >= count:
            raise InvalidRequestError(
                f"shard: expected to have finished one of {count} parts, got "
                f"{finished.index}"
            )
        cut = self._cuts.setdefault(count, _Cut(count))
        if finished:
            cut.finish(session, finished)
        for other in self._cuts.values():
            for holder in list(other.held):
                if not is_here(holder) or (holder == session and other is not cut):
                    other.give_back(holder)
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

    def __init__(self, count: int) -> None:
        self.held: dict[str, Lease] = {}
        self._free = deque(range(count))  # The next one first.
        self._epochs = [0] * count

    def lease(self, session: str) -> Lease:
        if session not in self.held:
            index = self._free.popleft() if self._free else self._least_shared()
            self.held[session] = Lease(index, self._epochs[index])
            self._epochs[index] += 1
        return self.held[session]

    def finish(self, session: str, finished: Lease) -> None:
        if self.held.get(session) == finished:
            self._let_go(session, self._free.append)
        # It may have been leased by a server before this one.
        index = finished.index
        self._epochs[index] = max(self._epochs[index], finished.epoch + 1)

    def give_back(self, session: str) -> None:
        """Have a part that was not gone through be the next one."""
        self._let_go(session, self._free.appendleft)

    def _let_go(self, session: str, put: Callable[[int], None]) -> None:
        index = self.held.pop(session).index
        if all(lease.index != index for lease in self.held.values()):
            put(index)

    def _least_shared(self) -> int:
        """Return what a session gets where there are more sessions than parts."""
        holders = Counter(lease.index for lease in self.held.values())
        return min(holders, key=holders.__getitem__)
