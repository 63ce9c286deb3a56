"""A simulated worker: it asks, waits, asks again, and checks what it is told."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from psserver.store import Joined
from pswire import errors
from pswire.errors import ParameterServerError
from pswire.layout import Layout
from pswire.values import PushHeader, Snapshot, Verdict
from simulation.requests import Initialize, Join, Pull, Push, Request

_FLAWED = 0.05
_PULLS = 0.4


@dataclass(eq=False, slots=True)
class Call:
    """One attempt at a request.

    Attributes:
        worker: Whose.
        request: What is asked.
        known: The newest step that anybody had been told of before, by generation.
    """

    worker: "Worker"
    request: Request
    known: dict[str, int]


@dataclass(eq=False)
class Worker:
    """One process of a worker.

    Attributes:
        name: The worker's.
        session: The process's.
        acked: The newest step of an applied push that any worker was told of, by
            generation; all workers share it.
        is_over: Whether a newer process has taken the name over.
        call: What it waits for.
        answers: How many it has got.
    """

    name: str
    session: str
    layout: Layout
    acked: dict[str, int]
    is_over: bool = False
    call: Call | None = None
    answers: int = 0
    _seq: int = 0
    _has_joined: bool = False
    _rejoins: bool = False
    _initializes: bool = True
    _snapshot: Snapshot[Any] | None = None
    _push: Push | None = None
    _known: dict[str, int] = field(default_factory=dict)
    _pulled: dict[str, int] = field(default_factory=dict)

    def ask(self, random: Random, number: int) -> Call:
        """Ask for something, or once more for what was not answered.

        Args:
            random: Chooses what.
            number: Of the push, if it is one.
        """
        request = self.call.request if self.call else self._choose(random, number)
        self.call = Call(self, request, dict(self.acked))
        return self.call

    def hear(self, call: Call, answer: Any) -> None:
        """Take the answer to a call, unless it comes too late."""
        if call is not self.call:
            return
        self.call = None
        self.answers += 1
        if isinstance(answer, ParameterServerError):
            self._hear_error(call.request, answer)
        elif isinstance(answer, Joined):
            self._has_joined = self._rejoins = True
        elif isinstance(answer, Snapshot):
            self._hear_snapshot(call, answer)
        elif isinstance(answer, Verdict):
            self._hear_verdict(call.request, answer)
        else:
            self._initializes = False

    def _choose(self, random: Random, number: int) -> Request:
        if not self._has_joined:
            return Join(self.name, self.session, self._rejoins)
        if self._initializes:
            return Initialize(self.session)
        if self._push:
            return self._push
        if self._snapshot is None or random.random() < _PULLS:
            return Pull(self.session)
        self._seq += 1
        header = PushHeader(
            session=self.session,
            seq=self._seq,
            generation=self._snapshot.generation,
            step_read=self._snapshot.step,
            nbytes=self.layout.nbytes,
        )
        self._known = dict(self.acked)
        if random.random() < _FLAWED:
            return self._flawed(random, header, number)
        self._push = Push(header, number)
        return self._push

    def _flawed(self, random: Random, header: PushHeader, number: int) -> Push:
        flaw: type[ParameterServerError] | None = None
        match random.randrange(6):
            case 0:
                flaw = errors.NonFiniteError
            case 1:
                flaw = errors.VariableMismatchError
                header = replace(header, nbytes=header.nbytes + 4)
            case 2:
                header = replace(header, step_read=header.step_read + 10**6)
            case 3:
                header = replace(header, step_read=-1)
            case 4:
                header = replace(header, generation="elsewhere")
            case 5:
                header = replace(header, seq=max(1, header.seq - 1))
        return Push(header, number, flaw)

    def _hear_error(self, request: Request, error: ParameterServerError) -> None:
        match error:
            case errors.SessionUnknownError():
                self._has_joined = False
            case errors.SessionSupersededError():
                self.is_over = True
            case errors.NotInitializedError():
                self._initializes = True
            case errors.GenerationError() if request is self._push:
                self._push = self._snapshot = None
            case errors.ServerUnavailableError():
                pass
            case _:
                assert isinstance(request, Push), error
                assert request is not self._push, error

    def _hear_snapshot(self, call: Call, snapshot: Snapshot[Any]) -> None:
        step, generation = snapshot.step, snapshot.generation
        assert step >= call.known.get(generation, 0), "an acknowledged step is not seen"
        assert step >= self._pulled.get(generation, 0), "a client's steps go back"
        self._pulled[generation] = step
        self._snapshot = snapshot

    def _hear_verdict(self, request: Request, verdict: Verdict) -> None:
        if not isinstance(request, Push) or request is not self._push:
            return
        self._push = None
        if not verdict.applied:
            self._snapshot = None
            return
        generation = request.header.generation
        assert verdict.step > self._known.get(generation, 0), "steps out of order"
        newest = max(verdict.step, self.acked.get(generation, 0))
        self.acked[generation] = newest
