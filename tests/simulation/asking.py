"""What one server is asked, and whether its answers are those of the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psserver.store import Joined
from pswire.errors import (
    NotInitializedError,
    ParameterServerError,
    ServerUnavailableError,
)
from pswire.values import Snapshot, Verdict
from simulation.clock import CLOCK
from simulation.model import Model
from simulation.requests import Join, Pull, Push, Request
from simulation.server import Server
from simulation.tasks import Task, result

Answers = list[tuple[Any, Any]]
"""By who has asked."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A request that is being answered.

    Attributes:
        request: What was asked.
        sender: By whom.
        expected: The answer, or its type.
        task: Finds it.
        place: Of a joining, among those of its worker; 0: it is none.
    """

    request: Request
    sender: Any
    expected: Any
    task: Task
    place: int


class Asking:
    """The requests that a server has not answered yet.

    A server whose disk has failed answers nobody, for all that is known.
    """

    def __init__(
        self,
        server: Server,
        model: Model,
        told: dict[int, bool],
        has_trouble: Callable[[], bool],
    ) -> None:
        """Start without requests.

        Args:
            server: The one that is asked.
            model: What it must be.
            told: Which pushes were said to be applied, or not to be.
            has_trouble: Says whether it has reason to refuse what can be kept.
        """
        self._server = server
        self._model = model
        self._told = told
        self._has_trouble = has_trouble
        self._asked: list[_Asked] = []
        self._times_back = 0

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, request: Request, sender: Any) -> None:
        """Begin to ask for something."""
        expected = self._expect(request)
        # Of who is forgotten before this is answered, the same may come again.
        joins = isinstance(request, Join) and expected is Joined
        place = self._model.members.place(request.session) if joins else 0
        task = self._server.ask(request)
        asked = _Asked(request, sender, expected, task, place)
        self._asked.append(asked)

    def answers(self) -> Answers:
        """Check what has become of the server, and of those that it has answered."""
        over = [asked for asked in self._asked if asked.task.is_over]
        if self._server.failure:
            return []
        self._follow()
        self._asked = [asked for asked in self._asked if not asked.task.is_over]
        return [(asked.sender, self._hear(asked)) for asked in over]

    def _expect(self, request: Request) -> Any:
        """Let the model do what is asked; return its answer, or the answer's type."""
        server, model = self._server, self._model
        model.has_room = not server.refuses
        assert model.has_room or self._has_trouble(), "refused for no reason"
        if isinstance(request, Join):
            return model.join(request, CLOCK.now, server.busy) or Joined
        if request != Pull(""):
            refusal = model.members.see(request.session, CLOCK.now)
            if refusal:
                return refusal
        if isinstance(request, Push):
            return model.push(request, server.recent)
        if isinstance(request, Pull):
            return Snapshot if model.initializer else NotInitializedError
        model.candidates.add(request.session)
        return bool

    def _follow(self) -> None:
        """Let the model be what the server has become, if it may."""
        server, model = self._server, self._model
        if server.initializer and not model.initializer:
            model.initialize(server.initializer)
        if server.times_back > self._times_back:
            self._times_back = server.times_back
            self._roll_back()
        assert model.shown <= server.step <= model.step
        model.shown = server.step

    def _roll_back(self) -> None:
        assert self._has_trouble()
        kept = self._server.checkpoint()
        if kept is None:
            return
        self._model.shown = self._server.step
        self._model.roll_back(kept)
        for asked in self._asked:
            if isinstance(asked.request, Push):
                row = self._model.members.rows.get(asked.request.session)
                if row is None or row.last_seq < asked.request.header.seq:
                    asked.expected = ServerUnavailableError

    def _hear(self, asked: _Asked) -> Any:
        answer, expected = result(asked.task, ParameterServerError), asked.expected
        if isinstance(answer, ServerUnavailableError):
            assert self._has_trouble(), answer
        elif isinstance(expected, type):
            assert isinstance(answer, expected), f"expected {expected}, got {answer!r}"
        else:
            assert answer == expected, f"expected {expected}, got {answer!r}"
        self._check(asked, answer)
        return answer

    def _check(self, asked: _Asked, answer: Any) -> None:
        model, request = self._model, asked.request
        if isinstance(answer, bool):
            assert answer == (model.initializer == request.session)
        elif isinstance(answer, Joined):
            assert isinstance(request, Join)
            model.members.acknowledge(request.worker, asked.place)
        elif isinstance(answer, Snapshot):
            assert answer.step == model.shown
            assert answer.generation == model.generation
            model.require_state(answer.params, answer.step)
        elif isinstance(answer, Verdict) and isinstance(request, Push):
            model.members.tell(request.session, request.header.seq)
            first = self._told.setdefault(request.number, answer.applied)
            assert answer.applied == first, "another verdict than at first"
