"""A server, its disk, its workers and all that can go wrong, one event at a time."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from kit.virtualdisk import Crashed, Operation, VirtualDisk
from psserver.checkpoint import Checkpoint
from psserver.durability.errors import DataDirectoryError, DiskFailedError
from psserver.store import Joined
from pswire.errors import (
    NotInitializedError,
    ParameterServerError,
    ServerUnavailableError,
)
from pswire.values import Snapshot, Verdict
from simulation.model import Model
from simulation.network import Network
from simulation.promise import Promise
from simulation.requests import Initialize, Join, Push, Request, layout
from simulation.server import FOLDER, Server, Settings
from simulation.turns import WaitingError
from simulation.worker import Call, Worker

Event = Callable[[], None]

_WRITES = {"create", "rename", "remove", "sync", "sync_folder", "truncate", "write"}
_MODES = ("log", "log", "log", "checkpoint", "checkpoint", "none")
_LIMITS = (0, 1, 3, 8, None)
_NAMES = ("ann", "bob", "cleo", "dora")
_AN_HOUR_S = 3601.0


class World:
    """One run: the same seed always does the same.

    Attributes:
        trace: What has happened so far, in short.
    """

    def __init__(self, seed: int) -> None:
        self.trace: list[str] = []
        self._random = Random(seed)
        self._width = self._random.choice((16, 400))
        self._disk = VirtualDisk(self._random)
        self._disk.make_folder(FOLDER)
        self._disk.sync_folder(FOLDER.parent)
        self._server: Server | None = None
        self._promise = Promise()
        self._model = self._kept = Model("", None, self._width)
        self._network: Network[tuple[Call, Any]] = Network(self._random)
        self._acked: dict[str, int] = {}
        self._told: dict[tuple[str, int], bool] = {}
        self._now = 0.0
        self._count = 0
        self._fuse: tuple[int, BaseException] | None = None
        self._io_errors = 0
        self._foreign = 0  # Good checkpoints of a history that the log is not of.
        self._saving: Iterator[None] | None = None
        self._is_writing = self._has_failed = False
        self._workers = [self._worker(name) for name in _NAMES]
        self._up: dict[Event, float] = {
            self._deliver: 40,
            self._ask: 25,
            self._advance: 20,
            self._save: 4,
            self._probe: 1,
            self._fill: 0.3,
            self._free: 0.6,
            self._arm: 0.8,
            self._end: 0.6,
            self._stop: 0.6,
            self._replace_worker: 0.8,
            self._sleep: 0.1,
        }
        self._down: dict[Event, float] = {
            self._start: 6,
            self._deliver: 2,
            self._ask: 2,
            self._damage: 1,
            self._free: 1,
        }

    def run(self, events: int) -> None:
        """Let things happen, then let all come to rest."""
        for _ in range(events):
            self._step()
        self._come_to_rest()

    def _step(self) -> None:
        events = self._up if self._server else self._down
        (event,) = self._random.choices([*events], [*events.values()])
        self._do(event)

    def _do(self, event: Event) -> None:
        self._now += 1
        self._note(event.__name__)
        try:
            event()
        except Crashed:
            self._end()
        if self._has_failed:
            self._end()

    def _note(self, what: str) -> None:
        self.trace.append(what)

    # Calls

    def _worker(self, name: str) -> Worker:
        return Worker(name, f"{name}-{self._next()}", layout(self._width), self._acked)

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _ask(self) -> None:
        worker = self._random.choice(self._workers)
        if not worker.is_over:
            self._network.send((worker.ask(self._random, self._next()), None))

    def _deliver(self) -> None:
        if not len(self._network):
            return
        message = self._network.receive()
        if message is None:
            return
        call, answer = message
        if answer is None:
            self._serve(call)
        else:
            call.worker.hear(call, answer)

    def _serve(self, call: Call) -> None:
        if self._server is None or self._has_failed:
            return
        expected = self._expect(call.request)
        try:
            answer = self._server.answer(call.request, call, self._now)
        except WaitingError as waiting:
            self._compare(call.request, expected, waiting.pending.verdict)
            return
        except ParameterServerError as error:
            answer = error
        self._compare(call.request, expected, answer)
        self._answer(call, answer)

    def _expect(self, request: Request) -> Any:
        model = self._model
        if isinstance(request, Join):
            return model.join(request, self._now) or Joined
        refusal = model.see(request.session, self._now)
        if refusal or isinstance(request, Initialize):
            return refusal
        if isinstance(request, Push):
            return model.push(request)
        return Snapshot if model.is_initialized else NotInitializedError

    def _compare(self, request: Request, expected: Any, got: Any) -> None:
        assert self._server
        self._note(f"  {request}: {got!r:.200}")
        if isinstance(request, Initialize) and not expected:
            self._require_initialized(got)
        elif isinstance(expected, type):
            assert isinstance(got, expected), f"expected {expected}, got {got!r}"
        else:
            assert got == expected, f"expected {expected}, got {got!r}"
        self._see_step()
        if isinstance(got, Snapshot):
            assert (got.step, got.generation) == (
                self._model.shown,
                self._model.generation,
            )
            self._model.require_state(got.params, got.step)

    def _require_initialized(self, got: Any) -> None:
        if isinstance(got, bool):
            if not self._model.is_initialized and self._mode == "log":
                self._promise.start("log", 0)
            self._model.is_initialized = True
        else:
            assert isinstance(got, ServerUnavailableError)
            self._require_trouble(got)

    def _answer(self, call: Call, answer: Any) -> None:
        if isinstance(answer, Verdict) and isinstance(call.request, Push):
            name = call.request.name
            assert self._told.setdefault(name, answer.applied) == answer.applied
        self._network.send((call, answer))

    def _see_step(self) -> None:
        assert self._server
        shown = self._server.step
        assert self._model.shown <= shown <= self._model.step
        self._model.shown = shown
        if self._mode == "log" and self._model.is_initialized:
            self._promise.step = max(self._promise.step, shown)

    # The server's turns

    @property
    def _mode(self) -> str:
        assert self._server
        return self._server.settings.mode

    def _advance(self) -> None:
        server = self._server
        if server is None or self._has_failed or not server.waiting:
            return
        answers = server.advance()
        if answers is None:
            return
        if isinstance(server.refusal, DiskFailedError):
            self._require_trouble(server.refusal)
            self._has_failed = True
            return
        if server.refusal:
            self._require_trouble(server.refusal)
            self._roll_back(server)
        self._see_step()
        for call, answer in answers:
            self._answer(call, answer)

    def _roll_back(self, server: Server) -> None:
        kept = server.checkpoint()
        assert kept
        assert kept.step == self._model.shown
        self._model.go_on(kept)
        self._model.has_room = False

    def _probe(self) -> None:
        assert self._server
        if self._server.refusal:
            try:
                self._server.probe()
            except OSError as error:
                self._require_trouble(error)
            else:
                self._model.has_room = True

    def _save(self) -> None:
        assert self._server
        if self._server.archive is None:
            return
        if self._saving is None:
            self._saving = self._save_steps(self._server)
        if next(self._saving, True):
            self._saving = None

    def _save_steps(self, server: Server) -> Iterator[None]:
        assert server.archive
        server.archive.turn()
        yield
        kept = server.checkpoint()
        if kept is None:
            return
        _require_sums(kept)
        yield
        with self._writing():
            try:
                server.save(kept)
            except OSError as error:
                self._require_trouble(error)
            else:
                self._promise.step = max(self._promise.step, kept.step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False

    def _watch(self, operation: Operation) -> None:
        if self._fuse and operation.number >= self._fuse[0]:
            failure = self._fuse[1]
            if isinstance(failure, Crashed) or operation.kind in _WRITES:
                self._fuse = None
                self._io_errors += isinstance(failure, OSError)
                self._note(f"  {operation}: {failure!r}")
                raise failure
        if self._is_writing and self._random.random() < 0.2:
            self._is_writing = False
            event = self._random.choice((self._deliver, self._ask, self._advance))
            self._note(f"  meanwhile {event.__name__}")
            event()
            self._is_writing = True

    # What goes wrong

    def _fill(self) -> None:
        self._disk.capacity = self._disk.used + self._random.randrange(2000)

    def _free(self) -> None:
        self._disk.capacity = None

    def _arm(self, most: int = 60) -> None:
        failure: BaseException = Crashed()
        if self._random.random() < 0.3:
            failure = OSError(errno.EIO, "by plan")
        number = self._disk.operations + self._random.randint(1, most)
        self._fuse = number, failure

    def _end(self) -> None:
        """Kill the server, or lose power."""
        if self._server and self._server.archive:
            good = self._server.archive.checkpoints.good
            self._promise.good = good[: len(good) - self._foreign]
        is_killed = self._random.random() < 0.5
        self._note("  killed" if is_killed else "  no power")
        self._disk = self._disk.kill() if is_killed else self._disk.crash()
        self._disk.on_operation = self._watch
        self._server = self._saving = self._fuse = None
        self._is_writing = self._has_failed = False
        self._model = self._kept

    def _stop(self) -> None:
        server = self._server
        while self._server and self._server.waiting and not self._has_failed:
            self._advance()
        if server is None or self._has_failed:
            return
        try:
            server.finish()
        except OSError as error:
            self._require_trouble(error)
        else:
            self._note_stop(server)
        self._end()

    def _note_stop(self, server: Server) -> None:
        if server.archive and self._model.is_initialized:
            self._promise.same_generation = True
            self._promise.step = server.step

    def _damage(self) -> None:
        if len(self._promise.good) < 2:
            return
        self._promise.damage()
        folder = FOLDER / "checkpoints"
        newest = max(n for n in self._disk.names(folder) if n[0].isdigit() and not n.endswith("broken"))
        path = folder / newest / self._random.choice(self._disk.names(folder / newest))
        data = bytearray(self._disk.read(path, 0, self._disk.nbytes(path)))
        data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        self._disk.remove(path)
        writer = self._disk.create(path)
        writer.write([bytes(data)])
        writer.sync()
        self._disk.sync_folder(path.parent)

    def _replace_worker(self) -> None:
        """Start a process in place of another, which may not know that it is over."""
        at = self._random.randrange(len(self._workers))
        worker = self._worker(self._workers[at].name)
        if self._random.random() < 0.5 or len(self._workers) > 2 * len(_NAMES):
            self._workers[at] = worker
        else:
            self._workers.append(worker)

    def _sleep(self) -> None:
        self._now += _AN_HOUR_S
        self._network.cut()

    # Starts

    def _start(self) -> None:
        random = self._random
        settings = Settings(
            random.choice(_MODES), random.choice(_LIMITS), random.choice((2, 3))
        )
        if random.random() < 0.3:
            self._arm()
        self._start_as(settings)

    def _start_as(self, settings: Settings) -> None:
        self._note(f"  {settings}")
        must_be_same = self._promise.same_generation
        if settings.mode != "none":
            self._promise.attempt(settings.mode)
        generation = f"g{self._next()}"
        try:
            self._server = Server(
                self._disk,
                settings,
                generation=generation,
                width=self._width,
                now=self._now,
            )
        except OSError as error:
            assert not isinstance(error, DataDirectoryError), error
            self._require_trouble(error)
            self._end()
        else:
            self._go_on(self._server, generation, must_be_same)

    def _go_on(self, server: Server, generation: str, must_be_same: bool) -> None:
        limit, mode = server.settings.limit, server.settings.mode
        self._told = {name: True for name, applied in self._told.items() if applied}
        kept = server.checkpoint()
        if mode == "none" or kept is None:
            assert mode == "none" or self._promise.step == -1, "all is lost"
            self._model = Model(generation, limit, self._width)
        else:
            self._require_kept(kept, generation, must_be_same)
            self._foreign = int(kept.generation != self._model.generation)
            self._model.restart(kept, limit, self._now)
            self._promise.start(mode, kept.step)
        if mode != "none":
            self._kept = self._model

    def _require_kept(self, kept: Checkpoint, fresh: str, must_be_same: bool) -> None:
        _require_sums(kept)
        is_same = kept.generation == self._model.generation
        assert is_same or not must_be_same, "another generation"
        assert is_same or kept.generation == fresh
        floor = self._promise.step
        least = max(floor, self._model.shown) if is_same else floor
        assert kept.step >= least, f"expected step {least} or more, got {kept.step}"

    def _require_trouble(self, error: Exception) -> None:
        assert self._disk.capacity is not None or self._io_errors, error

    def _come_to_rest(self) -> None:
        """Repair all, and check that everybody is answered."""
        self._fuse = self._disk.capacity = None
        if self._server is None:
            self._do(lambda: self._start_as(Settings("log", None, 2)))
        assert self._server
        for _ in range(40):
            for worker in self._workers:
                if not worker.is_over:
                    self._network.send((worker.ask(self._random, self._next()), None))
            while len(self._network) or self._server.waiting:
                self._deliver()
                self._advance()
                self._probe()
        stuck = [worker for worker in self._workers if worker.call and not worker.is_over]
        assert len(stuck) < len(self._workers), stuck


def _require_sums(kept: Checkpoint) -> None:
    counters = kept.counters
    assert counters.total.applied == kept.step, "applied pushes are counted otherwise"
