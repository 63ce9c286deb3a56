"""Who starts servers, and checks all that they say and keep against the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from psserver.checkpoint import Checkpoint
from psserver.durability.errors import DataDirectoryError
from psserver.policies.terms import Terms
from pswire.errors import NotInitializedError, ServerUnavailableError
from simulation.asking import Answers, Asking
from simulation.clock import CLOCK
from simulation.faults import Faults
from simulation.model import Model
from simulation.promise import Promise
from simulation.requests import Pull, Request
from simulation.server import Server, Settings
from simulation.tasks import Task, result

_MANY = 8  # Who ask for a checkpoint, when nobody else may.


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
        self.model = self._kept = Model("", Terms(None), width)
        self.promise = Promise()
        self._faults = faults
        self._random = random
        self._width = width
        self._told: dict[int, bool] = {}
        self._saving: list[_Saving] = []
        self._looking: list[Task] = []
        self._stopping: Task | None = None

    # What is asked

    def ask(self, request: Request, sender: Any) -> Any:
        """Return a server's answer; None: there is none, or not yet."""
        if self.server is None or self.has_failed:
            return None
        self._asking.ask(request, sender)
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

    # What is kept

    def save(self) -> None:
        """Let a server begin to save a checkpoint."""
        server, model = self.server, self.model
        if server and server.archive and not self._stopping:
            before = model.shown, model.members.joinings(), bool(model.initializer)
            self._saving.append(_Saving(server.save(), *before))

    def set(self, settings: Mapping[str, str]) -> None:
        """Let a server judge pushes by other terms from now on."""
        if self.server:
            self.model.terms = self.model.terms.changed(settings)
            assert self.server.set(settings) == self.model.terms

    def look_after_disk(self) -> None:
        """Let a server look whether its disk answers, and has room again."""
        server = self.server
        if server and self._mode == "log" and not self._stopping:
            if len(self._asking):
                self._faults.troubles += 1  # The disk may seem to give no answer.
            self._looking.append(server.look())

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

    def close(self) -> None:
        """Let no thread of a server wait for ever, whatever has gone wrong."""
        if self.server:
            self.server.tasks.kill()

    def wipe(self) -> None:
        """Let there be nothing on the disk, between two servers."""
        self.model = self._kept = Model("", Terms(None), self._width)
        self.promise = Promise()
        self._faults.wipe()

    # What must come back from a disk that is not as it was left

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
        assert kept.generation == self.model.generation
        assert kept.step == self.promise.step
        self.model.require_state(kept.variables, kept.step)

    @property
    def _mode(self) -> str:
        assert self.server
        return self.server.settings.mode

    def _has_trouble(self) -> bool:
        return bool(self._faults.troubles or self._stopping)

    def _require_trouble(self, error: Exception) -> None:
        assert self._faults.troubles, error
        assert not isinstance(error, DataDirectoryError), error

    def _started(self, settings: Settings, generation: str) -> Server:
        return Server(
            self._faults.disk,
            settings,
            generation=generation,
            width=self._width,
            random=self._random,
        )

    def _go_on(self, server: Server) -> None:
        # What was dropped may be forgotten, and be judged anew.
        self._told = {push: True for push, applied in self._told.items() if applied}
        kept, terms = server.checkpoint(), server.settings.terms
        if self._mode != "none":
            self.promise.require(kept, self.model, self._mode)
        if kept is None:
            self.model = Model(server.generation, terms, self._width)
        else:
            _require_sums(kept)
            self.model.restart(kept, terms, CLOCK.now)
            self.promise.keep(self._mode, kept.step)
        if self._mode != "none":
            self._kept = self.model
        self._asking = Asking(server, self.model, self._told, self._has_trouble)
        self._saving, self._looking, self._stopping = [], [], None

    def _look_round(self) -> Answers:
        """Check what has become of a server, and return the answers it has found."""
        server, model = self.server, self.model
        assert server
        answers = self._asking.answers()
        if self._mode == "log" and model.initializer:
            if not self.promise.has_log:
                self.promise.keep("log", 0)
            self.promise.show(model.shown)
            model.members.keep(model.members.told)
        for saving in [saving for saving in self._saving if saving.task.is_over]:
            self._saving.remove(saving)
            self._note_saving(saving)
        for task in [task for task in self._looking if task.is_over]:
            self._looking.remove(task)
            result(task)
        if self._stopping and self._stopping.is_over:
            self._end_with_grace(server, self._stopping)
        return answers

    def _note_saving(self, saving: _Saving) -> None:
        saved = result(
            saving.task, NotInitializedError, ServerUnavailableError, OSError
        )
        if isinstance(saved, NotInitializedError):
            assert not saving.had_model
        elif isinstance(saved, ServerUnavailableError):
            assert len(self._saving) >= _MANY - 1, saved
        elif isinstance(saved, OSError):
            self._require_trouble(saved)
        else:
            assert saved[1] >= saving.shown, "what was seen is not saved"
            self.promise.show(saved[1])
            if self._mode == "checkpoint":
                self.model.members.keep(saving.joinings)

    def _end_with_grace(self, server: Server, stopping: Task) -> None:
        failure = result(stopping, OSError)
        members = self.model.members
        if server.failure:
            assert failure is server.failure
        elif failure:
            self._require_trouble(failure)
        elif server.archive and self.model.initializer:
            self.promise.stop(server.step)
            members.keep(members.joinings())
        self.end()


def _require_sums(kept: Checkpoint) -> None:
    total = kept.counters.total
    assert total.applied == kept.step, "applied pushes are counted otherwise"
