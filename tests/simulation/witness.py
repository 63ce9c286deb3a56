"""Who asks a server, and checks all that it says and keeps against the model."""

from dataclasses import dataclass
from random import Random
from typing import Any

from psserver.checkpoint import Checkpoint
from psserver.durability.errors import DataDirectoryError
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
from simulation.requests import Join, Pull, Push, Request
from simulation.server import Server, Settings
from simulation.tasks import CLOCK, Task

_MANY = 7  # Others who ask for a checkpoint, when nobody else may.

Answers = list[tuple[Any, Any]]


@dataclass(eq=False, slots=True)
class _Asked:
    """A request that is being answered.

    Attributes:
        request: What was asked.
        sender: By whom.
        expected: The answer, or its type.
        task: Finds it.
    """

    request: Request
    sender: Any
    expected: Any
    task: Task


@dataclass(eq=False, slots=True)
class _Saving:
    """A checkpoint that is being saved.

    Attributes:
        task: Saves it.
        shown: The step that was seen before.
        joinings: Who had joined before.
        had_model: Whether there were variables before.
    """

    task: Task
    shown: int
    joinings: dict[str, int]
    had_model: bool


class Witness:
    """Starts servers on one disk, one after another.

    Attributes:
        server: The one that runs; None: there is none.
        model: What it must be.
        promise: What its disk must bring back.
    """

    def __init__(self, faults: Faults, random: Random, width: int) -> None:
        self.server: Server | None = None
        self.model = self._kept = Model("", None, width)
        self.promise = Promise()
        self._faults = faults
        self._random = random
        self._width = width
        self._told: dict[int, bool] = {}
        self._clear()

    def _clear(self) -> None:
        self._asked: list[_Asked] = []
        self._saving: list[_Saving] = []
        self._looking: list[Task] = []
        self._stopping: Task | None = None
        self._times_back = 0

    # What is asked

    def ask(self, request: Request, sender: Any) -> Any:
        """Return a server's answer; None: there is none, or not yet."""
        if self.server is None or self.has_failed:
            return None
        expected = self._expect(self.server, request)
        asked = _Asked(request, sender, expected, self.server.ask(request))
        self._asked.append(asked)
        answers = self._look_round()
        return answers[0][1] if answers else None

    def look(self) -> None:
        """Check what somebody sees who has not joined."""
        if self.server and self.model.initializer:
            self.ask(Pull(""), None)

    @property
    def has_failed(self) -> bool:
        """Whether a server must end, because its disk has failed."""
        return bool(self.server and self.server.failure)

    @property
    def waits(self) -> bool:
        """Whether a server has begun something that is not over."""
        return bool(self.server and len(self.server.tasks))

    def advance(self) -> Answers:
        """Let a server go on with something; return its answers, by sender."""
        if self.server is None or not self.waits:
            return []
        self.server.tasks.go_on()
        return self._look_round()

    def rest(self) -> Answers:
        """Let a server go on until nothing is left to do; return its answers."""
        answers: Answers = []
        while self.waits:
            answers += self.advance()
        return answers

    def _expect(self, server: Server, request: Request) -> Any:
        model, members = self.model, self.model.members
        model.has_room = not server.refuses
        assert model.has_room or self._has_trouble, "refused for no reason"
        if isinstance(request, Join):
            entered = members.join(
                *(request, model.step, CLOCK.now, server.busy),
                has_room=model.has_room,
            )
            return entered or Joined
        if request.session or not isinstance(request, Pull):
            refusal = members.see(request.session, CLOCK.now)
            if refusal:
                return refusal
        if isinstance(request, Push):
            return model.push(request)
        if isinstance(request, Pull):
            return Snapshot if model.initializer else NotInitializedError
        model.candidates.add(request.session)
        return bool

    @property
    def _has_trouble(self) -> bool:
        return bool(self._faults.troubles or self._stopping)

    def _look_round(self) -> Answers:
        """Check what has become of a server, and return the answers it has found."""
        server = self.server
        assert server
        self._follow(server)
        over = [asked for asked in self._asked if asked.task.is_over]
        self._asked = [asked for asked in self._asked if not asked.task.is_over]
        answers: Answers = []
        for asked in over:
            answer = _result(asked.task, ParameterServerError)
            if not server.failure:
                self._compare(asked, answer)
                self._hear(asked.request, answer)
                answers.append((asked.sender, answer))
        if self._mode == "log" and self.model.initializer:
            self.promise.show(self.model.shown)
            self.model.members.keep(self.model.members.told)
        self._look_after_saves()
        for task in [task for task in self._looking if task.is_over]:
            self._looking.remove(task)
            _result(task, ())
        if self._stopping and self._stopping.is_over:
            self._end_with_grace(server, self._stopping)
        return answers

    def _follow(self, server: Server) -> None:
        model = self.model
        if server.failure:
            return  # Nobody is answered, and all that was under way may be lost.
        if server.initializer and not model.initializer:
            model.initialize(server.initializer)
            if self._mode == "log":
                self.promise.keep("log", 0)
        if server.times_back > self._times_back:
            self._roll_back(server)
        assert model.shown <= server.step <= model.step
        model.shown = server.step

    def _roll_back(self, server: Server) -> None:
        assert self._has_trouble
        self._times_back = server.times_back
        kept = server.checkpoint()
        if kept is None:
            return
        self.model.shown = server.step
        self.model.roll_back(kept)
        for asked in self._asked:
            if isinstance(asked.request, Push):
                row = self.model.members.rows.get(asked.request.session)
                if row is None or row.last_seq < asked.request.header.seq:
                    asked.expected = ServerUnavailableError

    def _compare(self, asked: _Asked, got: Any) -> None:
        expected = asked.expected
        if isinstance(got, ServerUnavailableError):
            assert self._has_trouble, got
        elif isinstance(expected, type):
            assert isinstance(got, expected), f"expected {expected}, got {got!r}"
        else:
            assert got == expected, f"expected {expected}, got {got!r}"

    def _hear(self, request: Request, answer: Any) -> None:
        model = self.model
        if isinstance(answer, bool):
            assert answer == (model.initializer == request.session)
        elif isinstance(answer, Joined):
            assert isinstance(request, Join)
            model.members.acknowledge(request.session)
        elif isinstance(answer, Snapshot):
            assert answer.step == model.shown
            assert answer.generation == model.generation
            model.require_state(answer.params, answer.step)
        elif isinstance(answer, Verdict) and isinstance(request, Push):
            model.members.tell(request.session, request.header.seq)
            first = self._told.setdefault(request.number, answer.applied)
            assert answer.applied == first, "another verdict than at first"

    @property
    def _mode(self) -> str:
        assert self.server
        return self.server.settings.mode

    def _require_trouble(self, error: Exception) -> None:
        assert self._faults.troubles, error
        assert not isinstance(error, DataDirectoryError), error

    # What is kept

    def save(self) -> None:
        """Let a server begin to save a checkpoint."""
        server, model = self.server, self.model
        if server and server.archive and not self._stopping:
            shown, joinings = model.shown, model.members.joinings()
            had_model = bool(model.initializer)
            saving = _Saving(server.save(), shown, joinings, had_model)
            self._saving.append(saving)

    def look_after_disk(self) -> None:
        """Let a server look whether its disk answers, and has room again."""
        server = self.server
        if server and self._mode == "log" and not self._stopping:
            if self._asked:
                self._faults.troubles += 1  # The disk may seem to give no answer.
            self._looking.append(server.look())

    def _look_after_saves(self) -> None:
        for saving in [saving for saving in self._saving if saving.task.is_over]:
            self._saving.remove(saving)
            result = _result(saving.task, (ParameterServerError, OSError))
            if isinstance(result, NotInitializedError):
                assert not saving.had_model
            elif isinstance(result, OSError):
                self._require_trouble(result)
            elif isinstance(result, ServerUnavailableError):
                assert len(self._saving) >= _MANY, result
            else:
                assert result[1] >= saving.shown, "what was seen is not saved"
                self.promise.show(result[1])
                if self._mode == "checkpoint":
                    self.model.members.keep(saving.joinings)

    def start(self, settings: Settings, generation: str) -> None:
        """Start a server; there is none if the disk keeps it from starting."""
        if settings.mode != "none":
            self.promise.attempt(settings, generation)
        try:
            self.server = self._started(settings, generation)
        except OSError as error:
            self._require_trouble(error)
            self.end()
        else:
            self._go_on(self.server)

    def stop(self) -> None:
        """Let the server begin to stop with grace."""
        if self.server and not self._stopping:
            own = [*self._looking, *(saving.task for saving in self._saving)]
            self._stopping = self.server.stop(own)
            self._look_round()

    def end(self, *, cut_off: bool = False) -> None:
        """End the server at once; see `Faults.end`."""
        server, self.server, self.model = self.server, None, self._kept
        self._faults.end(cut_off=cut_off)
        if server:
            self.promise.end(server)
            server.tasks.kill()
        self._clear()

    def wipe(self) -> None:
        """Let there be nothing on the disk, between two servers."""
        self.model = self._kept = Model("", None, self._width)
        self.promise = Promise()
        self._faults.wipe()

    # What must come back from a copy of the disk

    def refuse(self, settings: Settings) -> None:
        """Check that no server starts."""
        try:
            self._started(settings, "refused")
        except DataDirectoryError:
            return
        raise AssertionError("damage is not seen")

    def bring_back(self, settings: Settings) -> None:
        """Check that a server has all that the last one had."""
        kept = self._started(settings, "none").checkpoint()
        assert kept
        assert (kept.generation, kept.step) == (
            self.model.generation,
            self.promise.step,
        )
        self.model.require_state(kept.variables, kept.step)

    def _started(self, settings: Settings, generation: str) -> Server:
        return Server(
            self._faults.disk,
            settings,
            generation=generation,
            width=self._width,
            random=self._random,
        )

    def _end_with_grace(self, server: Server, stopping: Task) -> None:
        result = _result(stopping, OSError)
        if server.failure:
            assert result is server.failure
        elif result:
            self._require_trouble(result)
        elif server.archive and self.model.initializer:
            self.promise.stop(server.step)
            self.model.members.keep(self.model.members.joinings())
        self.end()

    def _go_on(self, server: Server) -> None:
        # What was dropped may be forgotten, and be judged anew.
        self._told = {push: True for push, applied in self._told.items() if applied}
        kept, limit = server.checkpoint(), server.settings.limit
        if self._mode != "none":
            self.promise.require(kept, self.model, self._mode)
        if kept is None:
            self.model = Model(server.generation, limit, self._width)
        else:
            _require_sums(kept)
            self.model.restart(kept, limit, CLOCK.now)
            self.promise.keep(self._mode, kept.step)
        if self._mode != "none":
            self._kept = self.model


def _result(task: Task, expected: type[Exception] | tuple[Any, ...]) -> Any:
    """Return what a task has found, or else the error that it ended with."""
    if task.failure and not isinstance(task.failure, expected):
        raise task.failure
    return task.failure or task.result


def _require_sums(kept: Checkpoint) -> None:
    total = kept.counters.total
    assert total.applied == kept.step, "applied pushes are counted otherwise"
