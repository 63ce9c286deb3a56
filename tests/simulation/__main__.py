"""Run one seed, and tell all that happens."""

import sys

from simulation.server import simulated
from simulation.test_simulation import EVENTS
from simulation.world import World

with simulated():
    world = World(int(sys.argv[1]))
    try:
        world.run(EVENTS)
    finally:
        print(*world.story(), sep="\n")
