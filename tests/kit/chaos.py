"""Calls that are lost by plan: by a client's channel, or by a server."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Self, TypeVar

import grpc

from psserver.calls import Calls, PulledSnapshot
from psserver.store import Store
from pswire._generated import parameter_server_pb2 as pb
from pswire.errors import ServerUnavailableError
from pswire.methods import InitializePiece, PushPiece
from pswire.values import PushHeader, Verdict

Answer = TypeVar("Answer")

ANSWERED = "answered"
REQUEST, REPLY, FLIGHT = "request lost", "reply lost", "cut off in flight"

# Too short for an answer, long enough to reach the server now and then.
_FLIGHT_S = 0.004


class Lost(grpc.RpcError):
    """What a caller sees of a connection that broke."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "lost by plan"

    def trailing_metadata(self) -> tuple[()]:
        return ()


@dataclass
class Odds:
    """How the calls of a method fare.

    Attributes:
        failures: How many may still fail; less than 0: any number.
        request: How many percent lose their request.
        reply: How many lose their reply, once the call has been answered.
        flight: How many are cut off, wherever they may be then.
    """

    failures: int
    request: float
    reply: float
    flight: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read Ray's notation: `MAX:REQUEST%:REPLY%:FLIGHT%`."""
        failures, *shares = text.split(":")
        return cls(int(failures), *(float(share.rstrip("%")) for share in shares))

    def choose(self, random: Random) -> str:
        """Choose what becomes of a call."""
        shares = self.request, self.reply, self.flight
        rest = 100 - sum(shares)
        (fate,) = random.choices((REQUEST, REPLY, FLIGHT, ANSWERED), (*shares, rest))
        if fate == ANSWERED or self.failures == 0:
            return ANSWERED
        self.failures -= 1
        return fate


class Chaos(grpc.UnaryUnaryClientInterceptor):
    """Loses some of a channel's calls.

    Attributes:
        fates: What became of every attempt of the methods in the plan, in order.

    References:
        Ray's RAY_testing_rpc_failure.
    """

    def __init__(self, plan: str, seed: int) -> None:
        """Prepare to lose calls.

        Args:
            plan: `METHOD=MAX:REQUEST%:REPLY%:FLIGHT%`, with a comma before the next:
                `Push=-1:10:10:0` loses the requests of a tenth of all pushes, and the
                replies of another.
            seed: Of what is chosen.
        """
        parts = (part.split("=") for part in plan.split(","))
        self._odds = {method: Odds.parse(odds) for method, odds in parts}
        self._random = Random(seed)
        self.fates: list[str] = []

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        odds = self._odds.get(details.method.rpartition("/")[2])
        if odds is None:
            return continuation(details, request)
        fate = odds.choose(self._random)
        self.fates.append(fate)
        if fate == REQUEST:
            raise Lost
        if fate == FLIGHT:
            timeout = self._random.uniform(0.0, _FLIGHT_S)
            details = details._replace(timeout=timeout)
        call = continuation(details, request)
        call.result()
        if fate == REPLY:
            raise Lost
        self.fates[-1] = ANSWERED  # Whatever it was to be.
        return call


class DroppingCalls(Calls):
    """Calls of a server that drops some messages, whatever carries them.

    Attributes:
        dropped: How many requests and replies of each method have been.

    References:
        ps-lite's PS_DROP_MSG.
    """

    def __init__(self, store: Store, *, percent: float, seed: int) -> None:
        """Prepare to drop messages.

        Args:
            store: Decides what the others mean.
            percent: Of the requests, and of the replies to those that are left.
            seed: Of what is chosen.
        """
        super().__init__(store)
        self.dropped: Counter[tuple[str, str]] = Counter()
        self._share = percent / 100
        self._random = Random(seed)

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        return self._drop("join", lambda: super(DroppingCalls, self).join(request))

    def initialize(self, pieces: Iterator[InitializePiece]) -> pb.InitializeReply:
        return self._drop(
            "initialize", lambda: super(DroppingCalls, self).initialize(pieces)
        )

    def pull(self, request: pb.PullRequest) -> PulledSnapshot:
        return self._drop("pull", lambda: super(DroppingCalls, self).pull(request))

    def push(
        self,
        pieces: Iterator[PushPiece],
        is_wanted: Callable[[], bool],
        require: Callable[[PushHeader], None] = lambda header: None,
    ) -> tuple[PushHeader, Verdict]:
        return self._drop(
            "push",
            lambda: super(DroppingCalls, self).push(pieces, is_wanted, require),
        )

    def _drop(self, method: str, answer: Callable[[], Answer]) -> Answer:
        self._perhaps(method, REQUEST)
        answered = answer()
        self._perhaps(method, REPLY)
        return answered

    def _perhaps(self, method: str, what: str) -> None:
        if self._random.random() < self._share:
            self.dropped[method, what] += 1
            raise ServerUnavailableError(f"{method}: {what} by plan")
