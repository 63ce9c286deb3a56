"""Who asks a server, and checks all that it says and keeps against the model."""

from collections.abc import Iterator
from typing import Any

from psserver.checkpoint import Checkpoint
from psserver.durability.errors import DataDirectoryError, DiskFailedError
from psserver.store import Joined
from pswire.errors import (
    NotInitializedError,
    ParameterServerError,
    ServerUnavailableError,
)
from pswire.values import Snapshot, Verdict
from simulation.faults import Faults
from simulation.model import Model
from simulation.promise import Promise
from simulation.requests import Initialize, Join, Pull, Push, Request
from simulation.server import Server, Settings
from simulation.turns import WaitingError

Answers = list[tuple[Any, Any]]


class Witness:
    """Starts servers on one disk, one after another.

    Attributes:
        server: The one that runs; None: there is none.
        model: What it must be.
        promise: What its disk must bring back.
        has_failed: Whether its disk has failed, so that it must end.
    """

    def __init__(self, faults: Faults, width: int) -> None:
        self.server: Server | None = None
        self.model = self._kept = Model("", None, width)
        self.promise = Promise()
        self.has_failed = False
        self._faults = faults
        self._width = width
        self._told: dict[int, bool] = {}

    # What is asked

    def ask(self, request: Request, sender: Any, now: float) -> Any:
        """Return a server's answer; None: there is none, or not yet."""
        if self.server is None or self.has_failed:
            return None
        expected = self._expect(request, now)
        try:
            answer = self.server.answer(request, (request, sender), now)
        except WaitingError as waiting:
            self._compare(request, expected, waiting.push.verdict)
            return None
        except ParameterServerError as error:
            answer = error
        self._compare(request, expected, answer)
        self._hear(request, answer)
        return answer

    def look(self) -> None:
        """Check what somebody sees who has not joined."""
        if self.server and self.model.is_initialized:
            self._hear(Pull(""), self.server.answer(Pull(""), None, 0.0))

    @property
    def waits(self) -> bool:
        """Whether a server is to go on with something that waits."""
        has_server = self.server is not None and not self.has_failed
        return has_server and bool(self.server and self.server.waiting)

    def advance(self) -> Answers:
        """Let a server go on with what waits; return its answers, by sender."""
        if self.server is None or not self.waits:
            return []
        answers = self.server.advance()
        if answers is None:
            return []
        if self.server.refusal:
            self._require_trouble(self.server.refusal)
            if isinstance(self.server.refusal, DiskFailedError):
                self.has_failed = True
                return []
            self._roll_back()
        self._see_step()
        for (request, _), answer in answers:
            self._hear(request, answer)
        return [(sender, answer) for (_, sender), answer in answers]

    def _expect(self, request: Request, now: float) -> Any:
        members = self.model.members
        if isinstance(request, Join):
            assert self.server
            busy = {waiting.push.session for _, waiting in self.server.waiting}
            return members.join(request, self.model.step, now, busy) or Joined
        refusal = members.see(request.session, now)
        if refusal:
            return refusal
        if isinstance(request, Push):
            return self.model.push(request)
        if isinstance(request, Initialize):
            return bool
        return Snapshot if self.model.is_initialized else NotInitializedError

    def _compare(self, request: Request, expected: Any, got: Any) -> None:
        if expected is bool and isinstance(got, ServerUnavailableError):
            self._require_trouble(got)
        elif isinstance(expected, type):
            assert isinstance(got, expected), f"expected {expected}, got {got!r}"
        else:
            assert got == expected, f"expected {expected}, got {got!r}"

    def _hear(self, request: Request, answer: Any) -> None:
        self._see_step()
        if isinstance(answer, bool):
            self._initialize()
        elif isinstance(answer, Snapshot):
            assert answer.step == self.model.shown
            assert answer.generation == self.model.generation
            self.model.require_state(answer.params, answer.step)
        elif isinstance(answer, Verdict) and isinstance(request, Push):
            first = self._told.setdefault(request.number, answer.applied)
            assert answer.applied == first, "another verdict than at first"

    def _initialize(self) -> None:
        if not self.model.is_initialized and self._mode == "log":
            self.promise.keep("log", 0)
        self.model.is_initialized = True

    def _see_step(self) -> None:
        assert self.server
        assert self.model.shown <= self.server.step <= self.model.step
        self.model.shown = self.server.step
        if self._mode == "log" and self.model.is_initialized:
            self.promise.show(self.model.shown)

    def _roll_back(self) -> None:
        assert self.server
        kept = self.server.checkpoint()
        assert kept
        assert kept.step == self.model.shown
        self.model.go_on(kept)
        self.model.has_room = False

    @property
    def _mode(self) -> str:
        assert self.server
        return self.server.settings.mode

    def _require_trouble(self, error: Exception) -> None:
        assert self._faults.troubles, error
        assert not isinstance(error, DataDirectoryError), error

    # What is kept

    def probe(self) -> None:
        """Let a server look whether its disk has room again."""
        if self.server and self.server.refusal:
            try:
                self.server.probe()
            except OSError as error:
                self._require_trouble(error)
            else:
                self.model.has_room = True

    def save(self) -> Iterator[None]:
        """Let a server save a checkpoint, with a pause before each part of that."""
        server = self.server
        if server is None or server.archive is None:
            return
        server.archive.turn()
        yield
        kept = server.checkpoint()
        yield
        if kept:
            _require_sums(kept)
            try:
                server.save(kept)
            except OSError as error:
                self._require_trouble(error)
            else:
                self.promise.show(kept.step)

    def start(self, settings: Settings, generation: str, now: float) -> None:
        """Start a server; there is none if the disk keeps it from starting."""
        if settings.mode != "none":
            self.promise.attempt(settings, generation)
        try:
            self.server = Server(
                self._faults.disk,
                settings,
                generation=generation,
                width=self._width,
                now=now,
            )
        except OSError as error:
            self._require_trouble(error)
            self.end()
        else:
            self._go_on(self.server, now)

    def stop(self) -> None:
        """Stop the server with grace."""
        while self.waits:
            self.advance()
        if self.server and not self.has_failed:
            try:
                self.server.finish()
            except OSError as error:
                self._require_trouble(error)
            else:
                if self.server.archive and self.model.is_initialized:
                    self.promise.stop(self.server.step)
        self.end()

    def end(self, *, cut_off: bool = False) -> None:
        """End the server at once; see `Faults.end`."""
        if self.server:
            self.promise.end(self.server)
        self.server, self.has_failed, self.model = None, False, self._kept
        self._faults.end(cut_off=cut_off)

    def _go_on(self, server: Server, now: float) -> None:
        # What was dropped may be forgotten, and be judged anew.
        self._told = {push: True for push, applied in self._told.items() if applied}
        kept, limit = server.checkpoint(), server.settings.limit
        if self._mode != "none":
            self.promise.require(kept, self.model)
        if kept is None:
            self.model = Model(server.generation, limit, self._width)
        else:
            _require_sums(kept)
            self.model.restart(kept, limit, now)
            self.promise.keep(self._mode, kept.step)
        if self._mode != "none":
            self._kept = self.model


def _require_sums(kept: Checkpoint) -> None:
    total = kept.counters.total
    assert total.applied == kept.step, "applied pushes are counted otherwise"
