"""Parts of the data are leased, to one session at a time if there are enough."""

from collections.abc import Callable

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
    """Lease from one `Shards`, in 3 parts by default."""
    shards = Shards()

    def lease(session: str, finished: Lease | None = None, count: int = 3) -> Lease:
        got = shards.lease(session, count, finished, lambda each: each not in gone)
        assert shards.held()[session] == f"{got.index}/{count}"
        return got

    return lease


Leasing = Callable[..., Lease]


def test_each_session_gets_another_part(lease: Leasing) -> None:
    """In order, all of them for the first time."""
    assert [lease(name) for name in "abc"] == [Lease(i, 0) for i in range(3)]


def test_who_asks_again_gets_the_same(lease: Leasing) -> None:
    """A reply may have been lost."""
    assert lease("a") == lease("a") == Lease(0, 0)
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


def test_what_nobody_goes_through_any_more_is_next(
    lease: Leasing, gone: set[str]
) -> None:
    """It counts as another lease, so it may be gone through in another order."""
    part = lease("a")
    lease("b")
    gone.add("b")

    assert lease("a", part) == Lease(1, 1)


def test_sessions_share_where_there_are_more_of_them_than_parts(
    lease: Leasing,
) -> None:
    """As few as can be, no two of them on the same lease, and no longer than needed."""
    leases = {name: lease(name) for name in "abcde"}

    assert sorted(each.index for each in leases.values()) == [0, 0, 1, 1, 2]
    assert len(set(leases.values())) == 5

    (alone,) = (name for name in leases if leases[name].index == 2)
    sharing = [name for name in leases if leases[name].index == 0]
    assert lease(sharing[0], leases[sharing[0]]).index == 2  # None is free: 0 has one.
    assert lease(alone, leases[alone]).index == 0


def test_who_cuts_the_data_anew_gives_back_what_it_had(lease: Leasing) -> None:
    """Into more parts, say; the others' are as they were."""
    lease("a")
    lease("b")

    assert lease("a", count=5) == Lease(0, 0)
    assert lease("c") == Lease(0, 1)
    assert lease("b") == Lease(1, 0)


def test_a_lease_of_a_server_before_counts_as_one(lease: Leasing) -> None:
    """Its session goes on; it has the part no second time as the first."""
    assert lease("a", Lease(2, 6)) == Lease(0, 0)
    assert [lease(name) for name in "bc"] == [Lease(1, 0), Lease(2, 7)]


@pytest.mark.parametrize("count", [0, 2**16 + 1])
def test_there_cannot_be_any_number_of_parts(lease: Leasing, count: int) -> None:
    """Each takes memory of the server's."""
    with pytest.raises(InvalidRequestError, match=f"1 to 65536 parts, got {count}"):
        lease("a", count=count)


def test_a_part_that_there_is_not_cannot_be_finished(lease: Leasing) -> None:
    """Nor is anything leased then."""
    with pytest.raises(InvalidRequestError, match="finished one of 3 parts, got 3"):
        lease("a", Lease(3, 0))
    assert lease("b") == Lease(0, 0)


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
    part = store.lease_shard("a1", 3, None, now=0.0)
    other = store.lease_shard("b1", 3, None, now=50.0)

    assert store.lease_shard("c1", 3, None, now=60.0).index == 2
    assert store.lease_shard("b1", 3, other, now=60.1) == Lease(0, 1)
    assert store.lease_shard("a1", 3, part, now=61.0) == Lease(1, 1)
    assert shards(store, 61.0) == ["1/3", "0/3", "2/3"]


def test_a_process_that_takes_over_a_name_has_the_part_of_the_one_before_at_once(
    store: Store,
) -> None:
    """That one is told so if it is still there."""
    first = store.lease_shard("a1", 3, None, now=0.0)
    store.lease_shard("b1", 3, None, now=0.0)
    assert shards(store, 0.0) == ["0/3", "1/3", ""]

    store.join("a", "a2", now=1.0)

    assert shards(store, 1.0) == ["", "1/3", ""]
    assert store.lease_shard("a2", 3, None, now=1.0) == Lease(first.index, 1)
    assert shards(store, 1.0) == ["0/3", "1/3", ""]
    with pytest.raises(SessionSupersededError):
        store.lease_shard("a1", 3, first, now=1.0)


def test_nobody_leases_who_has_not_joined(store: Store) -> None:
    """As with any call of a session."""
    with pytest.raises(SessionUnknownError):
        store.lease_shard("nobody", 3, None, now=0.0)
