"""A server, its workers, the network between them, and all that can go wrong."""

from collections.abc import Callable, Mapping
from contextlib import closing
from random import Random
from typing import Any

from kit.virtualdisk import Crashed
from psserver.store import Joined
from pswire.values import Snapshot
from simulation.clock import CLOCK
from simulation.damage import Damage
from simulation.faults import Faults
from simulation.network import Network
from simulation.requests import layout
from simulation.server import Settings
from simulation.witness import Witness
from simulation.worker import Call, Worker

Event = Callable[[], object]

_MODES = ("log",) * 4 + ("checkpoint",) * 3 + ("none",)
_LIMITS = (0, 1, 3, 8, None)
_POLICIES = (
    *("drop", "inverse", "hinge:0.5,1", "adaptive:0.5,0,4"),
    *("groups:A=0,C=3", "groups:C=1"),
)
_NAMES = ("ann", "bob", "cleo", "dora")
_RETRIES = 0.15
_AHEAD = (3, 20, 60)  # Operations.
_ERRORS = 0.4
_AN_HOUR_S = 3601.0
_ROUNDS = 40


class World:
    """One run: the same seed always does the same.

    Attributes:
        trace: What has happened so far: events, and requests with their answers.
    """

    def __init__(self, seed: int, *, has_policies: bool = True) -> None:
        """Let nothing have happened yet.

        Args:
            seed: Chooses all that will.
            has_policies: Whether pushes are judged by more than a limit.
        """
        self.trace: list[tuple[Any, ...]] = []
        self._terms = Random(seed) if has_policies else None
        self._random = Random(seed)
        self._width = self._random.choice((16, 400))
        self._faults = Faults(self._random)
        self._witness = Witness(self._faults, self._random, self._width)
        self._damage = Damage(self._witness, self._faults, self._random)
        self._network: Network[tuple[Call, Any]] = Network(self._random)
        self._acked: dict[str, int] = {}
        self._count = 0
        CLOCK.now = 0.0
        self._workers = [self._worker(name) for name in _NAMES]
        self._up = self._vary(
            {
                self._deliver: 40,
                self._ask: 25,
                self._advance: 40,
                self._witness.save: 2,
                self._witness.look_after_disk: 1,
                self._faults.fill: 0.6,
                self._faults.free: 0.6,
                self._arm: 0.4,
                self._end: 0.3,
                self._stop: 0.4,
                self._replace_worker: 1,
                self._sleep: 0.1,
            }
        )
        if self._terms:
            self._up[self._set] = 1
        self._down: dict[Event, float] = {
            self._start: 6,
            self._deliver: 2,
            self._ask: 2,
            self._damage.strike: 2,
            self._faults.free: 1,
            self._wipe: 0.5,
        }

    def run(self, events: int) -> None:
        """Let things happen, then repair all and check that everybody is answered."""
        with closing(self._witness):
            for _ in range(events):
                chances = self._up if self._witness.server else self._down
                (event,) = self._random.choices([*chances], [*chances.values()])
                self._do(event)
            self._come_to_rest()

    def story(self) -> list[str]:
        """Tell all that has happened, in a line each."""
        return [": ".join(map(_told, entry)) for entry in self.trace]

    def _vary(self, chances: Mapping[Event, float]) -> dict[Event, float]:
        """Give each run its own troubles."""
        choices = (0.2, 1, 1, 5)
        return {e: n * self._random.choice(choices) for e, n in chances.items()}

    def _do(self, event: Event) -> None:
        CLOCK.now += 1
        self.trace.append((event.__name__,))
        try:
            event()
            if self._witness.has_failed:
                self._fail()
        except Crashed:
            self._end()

    # Workers

    def _worker(self, name: str) -> Worker:
        return Worker(name, f"{name}-{self._next()}", layout(self._width), self._acked)

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _replace_worker(self) -> None:
        """Start a process in place of another, which may not know that it is over."""
        at = self._random.randrange(len(self._workers))
        worker = self._worker(self._workers[at].name)
        if self._random.random() < 0.5 or len(self._workers) > 2 * len(_NAMES):
            self._workers[at] = worker
        else:
            self._workers.append(worker)

    def _ask(self) -> None:
        worker = self._random.choice(self._workers)
        if worker.call is None or self._random.random() < _RETRIES:
            self._send(worker)

    def _send(self, worker: Worker) -> None:
        if not worker.is_over:
            self._network.send((worker.ask(self._random, self._next()), None))

    def _deliver(self) -> None:
        message = self._network.receive()
        if message is None:
            return
        call, answer = message
        if answer is not None:
            call.worker.hear(call, answer)
            return
        answer = self._witness.ask(call.request, call)
        self.trace.append((call.request, answer))
        if answer is not None:
            self._network.send((call, answer))

    def _sleep(self) -> None:
        """Let so much time pass that no message is still on its way."""
        CLOCK.now += _AN_HOUR_S
        self._network.cut()

    # The server

    def _advance(self) -> None:
        for call, answer in self._witness.advance():
            self.trace.append((call.request, answer))
            self._network.send((call, answer))

    def _arm(self) -> None:
        ahead = self._random.randint(1, self._random.choice(_AHEAD))
        self._faults.arm(ahead, is_last=self._random.random() > _ERRORS)

    def _end(self) -> None:
        cut_off = self._random.random() < 0.5
        self.trace.append(("cut off" if cut_off else "killed",))
        self._witness.end(cut_off=cut_off)

    def _stop(self) -> None:
        """Stop with grace: what comes meanwhile has been under way already."""
        if self._random.random() < 0.3:
            self._arm()
        self._witness.stop()

    def _fail(self) -> None:
        """End as a server does whose disk has failed, if it is not killed before."""
        if self._random.random() < 0.5:
            self._witness.stop()
            self._witness.rest()
        else:
            self._end()

    def _start(self) -> None:
        mode = self._random.choice(_MODES)
        limit, keep = self._random.choice(_LIMITS), self._random.choice((2, 3))
        if self._random.random() < 0.3:
            self._arm()
        policy = self._terms.choice(_POLICIES) if self._terms else "drop"
        self._start_as(Settings(mode, limit, keep, policy))
        if self._random.random() < 0.5:
            self._faults.disarm()

    def _start_as(self, settings: Settings) -> None:
        self.trace.append((settings,))
        self._witness.start(settings, f"g{self._next()}")

    def _set(self) -> None:
        """Judge by another limit, another policy, or both."""
        assert self._terms
        limit = self._terms.choice(_LIMITS)
        settings = {
            "max_staleness": "off" if limit is None else str(limit),
            "staleness_policy": self._terms.choice(_POLICIES),
        }
        chosen = self._terms.choice(([*settings], *([name] for name in settings)))
        settings = {name: settings[name] for name in chosen}
        self.trace.append((settings,))
        self._witness.set(settings)

    def _wipe(self) -> None:
        """Begin with another data directory."""
        self._witness.wipe()

    def _come_to_rest(self) -> None:
        self._faults.disarm()
        self._faults.free()
        before = {worker: worker.answers for worker in self._workers}
        for _ in range(_ROUNDS):
            if self._witness.server is None:
                self._start_as(Settings("log", None, 2))
            for worker in self._workers:
                self._send(worker)
            self._do(self._witness.look_after_disk)
            while len(self._network) or self._witness.waits:
                self._do(self._deliver)
                self._do(self._advance)
        for worker in self._workers:
            assert worker.is_over or worker.answers > before[worker], worker


def play(seed: int, events: int, *, has_policies: bool = True) -> None:
    """Run a world; see there.

    Raises:
        AssertionError: Something is not as it must be; the message tells the seed.
    """
    try:
        World(seed, has_policies=has_policies).run(events)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def _told(part: Any) -> str:
    if isinstance(part, Snapshot):
        return f"step {part.step} of {part.generation}"
    return f"joined {part.generation}" if isinstance(part, Joined) else str(part)
