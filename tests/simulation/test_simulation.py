"""The simulation, seed after seed; `python -m simulation SEED` in tests/ shows one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulation.server import simulated
from simulation.world import World, play

EVENTS = 1000
CORPUS = [
    int(line.split("#")[0])
    for line in Path(__file__).with_name("seeds.txt").read_text().splitlines()
    if line[0].isdigit()
]


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.soak
def test_no_promise_is_broken_whatever_goes_wrong(
    size: Callable[[int, int], int],
) -> None:
    """Losses, doubles, kills, power cuts, full and failing disks, damage, zombies."""
    for seed in range(size(300, 20_000)):
        play(seed, EVENTS)


@pytest.mark.parametrize("seed", CORPUS)
def test_a_seed_that_has_found_something_finds_it_no_more(seed: int) -> None:
    """What it was, seeds.txt says."""
    play(seed, EVENTS, has_policies=False)


def test_a_seed_always_does_the_same() -> None:
    """Or else nobody could look at a run again."""
    worlds = [World(seed) for seed in (7, 7, 8)]

    for world in worlds:
        world.run(EVENTS)

    first, again, other = (world.story() for world in worlds)
    assert first == again
    assert first != other
