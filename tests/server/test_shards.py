"""Parts of the data are leased, to one session at a time if there are enough."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import optax
import pytest

from psserver.shards import Lease, Shards
from psserver.store import Store
from pswire.errors import (
    InvalidRequestError,
    SessionSupersededError,
    SessionUnknownError,
)
from pswire.status import Limits


@pytest.fixture
def gone() -> set[str]:
    """Hold the sessions that are not expected any more; a test may add some."""
    return set()


@pytest.fixture
def lease(gone: set[str]) -> Callable[..., Lease]:
    """Lease from one `Shards`, in 3 parts by default; what is held is finished."""
    shards = Shards()

    def lease(
        session: str, held: Lease | None = None, count: int = 3, finished: bool = True
    ) -> Lease:
        got = shards.lease(
            session, count, held, lambda each: each not in gone, finished=finished
        )
        assert shards.held()[session] == f"{got.index}/{count}"
        assert not gone & shards.held().keys()
        return got

    return lease


Leasing = Callable[..., Lease]


def test_each_session_gets_another_part(lease: Leasing) -> None:
    """In order, all of them for the first time."""
    assert [lease(name) for name in "abc"] == [Lease(i, 0) for i in range(3)]


def test_each_start_begins_at_a_part_of_its_own() -> None:
    """Else servers that do not last long would never come to the last ones."""
    shards = Shards(first=16 * 7 + 14)

    leases = [shards.lease(name, 16, None, lambda each: True) for name in "abcd"]

    assert [lease.index for lease in leases] == [14, 15, 0, 1]


def test_who_asks_again_gets_the_same(lease: Leasing) -> None:
    """A reply may have been lost."""
    assert lease("a") == lease("a") == Lease(0, 0)
    assert lease("a", Lease(0, 0), finished=False) == Lease(0, 0)
    assert lease("b") == Lease(1, 0)


def test_the_part_that_has_waited_longest_is_next(lease: Leasing) -> None:
    """What was finished is last; a fast session goes round the part of a slow one."""
    slow, part = lease("slow"), lease("fast")

    went = [part := lease("fast", part) for _ in range(5)]

    assert slow == Lease(0, 0)
    assert went == [Lease(2, 0), Lease(1, 1), Lease(2, 1), Lease(1, 2), Lease(2, 2)]
    assert lease("slow", slow) == Lease(1, 3)
    assert lease("fast", part) == Lease(0, 1)


def test_to_finish_twice_is_to_finish_once(lease: Leasing) -> None:
    """The first reply was lost: the retry finds what that had leased."""
    first = lease("a")

    assert lease("a", first) == lease("a", first) == Lease(1, 0)
    assert lease("b") == Lease(2, 0)


def test_what_nobody_goes_through_any_more_waits_for_its_turn(
    lease: Leasing, gone: set[str]
) -> None:
    """It counts as another lease, so it may be gone through in another order."""
    part = lease("a")
    lease("b")
    gone.add("b")

    assert (part := lease("a", part)) == Lease(2, 0)
    assert (part := lease("a", part)) == Lease(1, 1)
    assert lease("a", part) == Lease(0, 1)


def test_slow_sessions_are_not_given_each_other_s_parts(
    lease: Leasing, gone: set[str]
) -> None:
    """All of them seem to be gone before they have finished; each part has its turn."""
    held: dict[str, Lease] = {}
    seen = []

    for number in range(40):
        session = "ab"[number % 2]
        gone.clear()
        gone.update({"a", "b"} - {session})
        held[session] = lease(session, held.get(session), count=10)
        seen.append(held[session].index)

    assert {seen.count(index) for index in range(10)} == {4}
    assert all(a != b for a, b in pairwise(seen))


def test_sessions_share_where_there_are_more_of_them_than_parts(
    lease: Leasing,
) -> None:
    """As few as can be, and no two of them have the same lease."""
    leases = {name: lease(name) for name in "abcde"}

    assert sorted(each.index for each in leases.values()) == [0, 0, 1, 1, 2]
    assert len(set(leases.values())) == 5

    for name in "abcdeacbed":
        leases[name] = lease(name, leases[name])

        shared = Counter(each.index for each in leases.values())
        assert sorted(shared.values()) == [1, 2, 2]
        assert len(set(leases.values())) == 5


def test_who_cuts_the_data_anew_gives_back_what_it_had(lease: Leasing) -> None:
    """Into more parts, say; the others' are as they were."""
    first = lease("a")
    lease("b")

    assert lease("a", count=5) == Lease(0, 0)
    assert lease("c") == Lease(2, 0)
    assert lease("d") == Lease(first.index, 1)
    assert lease("b") == Lease(1, 0)


def test_a_cut_that_nobody_has_a_part_of_is_forgotten(
    lease: Leasing, gone: set[str]
) -> None:
    """Else whoever asks for one after another would fill the server's memory."""
    lease("a", count=5)
    lease("b", count=4)
    gone.add("b")

    lease("a", count=3)

    assert lease("c", count=5) == lease("d", count=4) == Lease(0, 0)


def test_what_another_server_has_leased_is_taken_over(lease: Leasing) -> None:
    """Sessions say what they hold; the part is nobody else's, and its count goes on."""
    assert lease("a", Lease(0, 6), finished=False) == Lease(0, 6)
    assert lease("b") == Lease(1, 0)
    assert lease("c", Lease(2, 3)) == Lease(2, 4)  # None else is free.
    assert lease("a", Lease(0, 6)) == Lease(0, 7)


def test_what_was_finished_for_another_server_is_last(lease: Leasing) -> None:
    """Nobody had it here."""
    assert lease("a", Lease(0, 6)) == Lease(1, 0)
    assert [lease(name) for name in "bc"] == [Lease(2, 0), Lease(0, 7)]


def test_two_may_hold_what_they_got_from_two_servers(lease: Leasing) -> None:
    """The one that comes later does not lose what it is in the midst of."""
    assert lease("new") == Lease(0, 0)
    assert lease("old", Lease(0, 4), finished=False) == Lease(0, 4)
    assert lease("new", Lease(0, 0)) == Lease(1, 0)
    assert lease("old", Lease(0, 4)) == Lease(2, 0)


@pytest.mark.parametrize("count", [0, 2**12 + 1, 2**32 - 1])
def test_there_cannot_be_any_number_of_parts(lease: Leasing, count: int) -> None:
    """Each takes memory of the server's."""
    with pytest.raises(InvalidRequestError, match=f"1 to 4096 parts, got {count}"):
        lease("a", count=count)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("held", [Lease(3, 0), Lease(1, 2**31), Lease(1, 2**32 - 1)])
def test_a_lease_that_there_cannot_have_been_is_refused(
    lease: Leasing, held: Lease, finished: bool
) -> None:
    """Nor is anything leased then, to anybody, any differently."""
    with pytest.raises(InvalidRequestError, match="to hold one of 3 parts"):
        lease("a", held, finished=finished)
    assert [lease(name) for name in "bcd"] == [Lease(i, 0) for i in range(3)]


@pytest.fixture
def store() -> Store:
    """Make a server's store, which three workers join at second 0."""
    store = Store(
        optax.sgd(1.0),
        rule_name="sgd",
        limits=Limits(None, None, max_model_nbytes=1000, max_unary_nbytes=1000),
        generation="g",
        incarnation="i",
        now=0.0,
    )
    for worker in "abc":
        store.join(worker, f"{worker}1", now=0.0)
    return store


def shards(store: Store, now: float) -> list[str]:
    """Return what the status says of the workers, in the order of their names."""
    return [worker.shard for worker in store.status(now).workers]


def test_the_part_of_a_worker_that_is_silent_for_a_minute_is_leased_again(
    store: Store,
) -> None:
    """Not before; when it comes back it gets another one."""
    lost = store.lease_shard("a1", 3, None, now=0.0)
    part = store.lease_shard("b1", 3, None, now=50.0)
    last = store.lease_shard("c1", 3, None, now=60.0)
    assert len({lost.index, part.index, last.index}) == 3

    # None is free, so what it has finished is next.
    part = store.lease_shard("b1", 3, part, now=60.0, finished=True)
    assert part.epoch == 1
    part = store.lease_shard("b1", 3, part, now=60.1, finished=True)

    assert part == Lease(lost.index, 1)
    back = store.lease_shard("a1", 3, lost, now=61.0, finished=True)
    assert back.index not in (lost.index, last.index)
    assert shards(store, 61.0) == [f"{p.index}/3" for p in (back, part, last)]


def test_a_process_that_takes_over_a_name_frees_the_part_of_the_one_before(
    store: Store,
) -> None:
    """That one is told so if it is still there."""
    first = store.lease_shard("a1", 2, None, now=0.0)
    other = store.lease_shard("b1", 2, None, now=0.0)
    assert shards(store, 0.0) == [f"{first.index}/2", f"{other.index}/2", ""]

    store.join("a", "a2", now=1.0)

    assert shards(store, 1.0) == ["", f"{other.index}/2", ""]
    assert store.lease_shard("a2", 2, None, now=1.0) == Lease(first.index, 1)
    assert shards(store, 1.0) == [f"{first.index}/2", f"{other.index}/2", ""]
    with pytest.raises(SessionSupersededError):
        store.lease_shard("a1", 2, first, now=1.0)


def test_nobody_leases_who_has_not_joined(store: Store) -> None:
    """As with any call of a session."""
    with pytest.raises(SessionUnknownError):
        store.lease_shard("nobody", 3, None, now=0.0)
