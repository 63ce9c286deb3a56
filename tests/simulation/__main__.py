"""Run one seed, with policies unless `drop` is said, and tell all that happens."""

import sys

from simulation.server import simulated
from simulation.test_simulation import EVENTS
from simulation.world import World

with simulated():
    world = World(int(sys.argv[1]), has_policies="drop" not in sys.argv[2:])
    try:
        world.run(EVENTS)
    finally:
        print(*world.story(), sep="\n")
