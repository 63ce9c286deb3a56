"""The audit workload: what 8 pushers and 8 pullers saw must be one history.

Push number k adds 1 to element k of A and of B, so that A counts how often every push
was applied, and brings a weight for C, whose rule has momentum: C tells slots that were
changed twice, or in another order than the steps say. Everything is judged by the
clients' own logs.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import optax
import pytest

import psserver
import psworker
from kit.audit import require_not_ahead, require_order
from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.counts import Counts
from pswire.errors import GenerationError, StepReadError
from pswire.layout import Layout
from pswire.status import Status
from pswire.values import Snapshot, Verdict

PUSHERS = 8
PUSHES = 600  # Of each pusher; a pull follows each, so 4,800 pulls are theirs.
FULL_PULLERS = 6  # These hold no snapshot, so each of their pulls brings all arrays.
FULL_PULLS = 2534  # Of each, which makes 15,204.
CLIENT_PULLERS = 2  # These are told when nothing has changed, until the pushers end.
BAD_EVERY = 50  # Pushes, after which a pusher sends two that break the contract.
SIZE = PUSHERS * PUSHES
LIMIT = 7
DECAY = 0.5  # A power of two: the product is exact, fused with the sum or not.
SEED = 20
TIMEOUT_S = 30.0

WEIGHTS = np.random.default_rng(SEED).standard_normal((SIZE, 4), np.float32)


@dataclass(frozen=True, slots=True)
class Pushed:
    """A push with a verdict, and when it was on its way, in nanoseconds."""

    worker: str
    number: int
    sent: int
    returned: int
    verdict: Verdict

    @property
    def step(self) -> int:
        return self.verdict.step


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one pull showed, and when it was on its way, in nanoseconds."""

    reader: str
    sent: int
    returned: int
    step: int
    marked: bytes
    weighed: bytes

    def marks(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self.marked, np.uint8)
        return np.unpackbits(bits, count=SIZE).astype(bool)


@dataclass(frozen=True)
class History:
    """The logs of all clients, and the server's counters at the end."""

    pushes: list[Pushed]
    pulls: list[Pulled]
    rejected: Counter[tuple[str, str]]
    joined: list[str]
    status: Status

    @property
    def calls(self) -> list[Pushed | Pulled]:
        return [*self.pushes, *self.pulls]

    @cached_property
    def applied(self) -> list[Pushed]:
        """The applied pushes in the order of their steps."""
        applied = [push for push in self.pushes if push.verdict.applied]
        return sorted(applied, key=lambda push: push.step)


@pytest.fixture(scope="module")
def history() -> History:
    """Run the workload once."""
    rule = optax.multi_transform(
        {"plain": optax.sgd(1.0), "heavy": optax.sgd(1.0, momentum=DECAY)},
        {"A": "plain", "B": "plain", "C": "heavy"},
    )
    with psserver.Server(rule, max_staleness=LIMIT, port=0) as server:
        return _Workload(server).run()


class _Workload:
    def __init__(self, server: psserver.Server) -> None:
        self._server = server
        self._pushers_done = threading.Event()
        # Appending is atomic; nobody reads these before all threads have ended.
        self._pushes: list[Pushed] = []
        self._pulls: list[Pulled] = []
        self._rejected: list[tuple[str, str]] = []
        self._joined: list[str] = []

    def run(self) -> History:
        with ThreadPoolExecutor(
            PUSHERS + FULL_PULLERS + CLIENT_PULLERS, "audit"
        ) as pool:
            with self._connect("first") as first:
                first.initialize(
                    {
                        "A": np.zeros(SIZE, np.float32),
                        "B": np.zeros(SIZE, np.float32),
                        "C": np.zeros(4, np.float32),
                    }
                )
            readers = [
                *(pool.submit(self._pull_all, i) for i in range(FULL_PULLERS)),
                *(pool.submit(self._pull_news, i) for i in range(CLIENT_PULLERS)),
            ]
            try:
                _finish([pool.submit(self._push, i) for i in range(PUSHERS)])
            finally:
                self._pushers_done.set()
            _finish(readers)
            with self._connect("last") as last:
                self._pull(last)
        return History(
            self._pushes,
            self._pulls,
            Counter(self._rejected),
            self._joined,
            self._server.status(),
        )

    def _push(self, index: int) -> None:
        with self._connect(f"pusher-{index}") as client:
            snapshot = self._pull(client)
            for number in range(index * PUSHES, (index + 1) * PUSHES):
                if number % BAD_EVERY == 0:
                    self._break_the_contract(client, number)
                marked = np.zeros(SIZE, np.float32)
                marked[number] = -1.0
                gradients = {"A": marked, "B": marked, "C": WEIGHTS[number]}
                sent = time.monotonic_ns()
                if number % 2:
                    verdict, snapshot = client.exchange(gradients, snapshot)
                    assert snapshot.step >= verdict.step
                    self._log_push(client, number, sent, verdict)
                    self._log_pull(client.name, sent, snapshot)
                else:
                    verdict = client.push(gradients, snapshot)
                    self._log_push(client, number, sent, verdict)
                    snapshot = self._pull(client)

    def _break_the_contract(self, client: psworker.Client, number: int) -> None:
        marked = np.full(SIZE, -1.0, np.float32)
        gradients = {"A": marked, "B": marked, "C": WEIGHTS[number]}
        with pytest.raises(StepReadError, match="step_read: expected 0 to"):
            client.push(gradients, step_read=2**40)
        self._rejected.append((client.name, "STEP_READ"))
        elsewhere = Snapshot(None, step=0, generation="elsewhere")
        with pytest.raises(GenerationError, match=r"^generation: .* got elsewhere"):
            client.push(gradients, elsewhere)
        self._rejected.append((client.name, "GENERATION"))

    def _pull_news(self, index: int) -> None:
        with self._connect(f"puller-{index}") as client:
            while not self._pushers_done.is_set():
                self._pull(client)

    def _pull(self, client: psworker.Client) -> Snapshot[Any]:
        sent = time.monotonic_ns()
        snapshot = client.pull()
        self._log_pull(client.name, sent, snapshot)
        return snapshot

    def _pull_all(self, index: int) -> None:
        with grpc.insecure_channel(self._server.address) as channel:
            stub = rpc.ParameterServerStub(channel)
            for _ in range(FULL_PULLS):
                sent = time.monotonic_ns()
                reply = stub.Pull(pb.PullRequest(), timeout=TIMEOUT_S)
                assembly = body.Assembly(Layout.from_proto(reply.header.layout))
                assembly.add(reply.offset, reply.data)
                snapshot = Snapshot(
                    assembly.finish(), reply.header.step, reply.header.generation
                )
                self._log_pull(f"reader-{index}", sent, snapshot)

    def _connect(self, name: str) -> psworker.Client:
        self._joined.append(name)
        return psworker.connect(self._server.address, name=name)

    def _log_push(
        self, client: psworker.Client, number: int, sent: int, verdict: Verdict
    ) -> None:
        returned = time.monotonic_ns()
        self._pushes.append(Pushed(client.name, number, sent, returned, verdict))

    def _log_pull(self, reader: str, sent: int, snapshot: Snapshot[Any]) -> None:
        returned = time.monotonic_ns()
        a, b, c = (snapshot.params[name] for name in "ABC")
        assert a.tobytes() == b.tobytes()
        assert ((a == 0) | (a == 1)).all()
        marked = np.packbits(a != 0).tobytes()
        self._pulls.append(
            Pulled(reader, sent, returned, snapshot.step, marked, c.tobytes())
        )


def _finish(results: list[Future[None]]) -> None:
    for result in results:
        result.result()


def test_the_applied_pushes_steps_are_1_to_s_without_gap_or_repeat(
    history: History,
) -> None:
    """Every push was judged, and no step belongs to two of them or to none."""
    assert len(history.pushes) == SIZE
    steps = [push.step for push in history.applied]

    assert steps == list(range(1, history.status.step + 1))


def test_every_pull_shows_the_variables_of_its_own_step(history: History) -> None:
    """20,000 pulls: the marks are those of the first pushes, C is their replay."""
    rank = np.full(SIZE, SIZE + 1)  # The step at which each push was applied.
    replayed, trace = [np.zeros(4, np.float32)], np.zeros(4, np.float32)
    for push in history.applied:
        rank[push.number] = push.step
        trace = WEIGHTS[push.number] + np.float32(DECAY) * trace
        replayed.append(replayed[-1] - trace)
    whole = [pull for pull in history.pulls if not pull.reader.startswith("puller")]
    assert len(whole) >= 20_000
    assert history.pulls[-1].step == history.status.step

    for pull in history.pulls:
        marks = pull.marks()
        assert int(marks.sum()) == pull.step
        assert (marks == (rank <= pull.step)).all()
        assert pull.weighed == replayed[pull.step].tobytes()


def test_what_one_client_pulls_never_goes_back(history: History) -> None:
    """Its steps never fall, and a push once seen is seen ever after."""
    for pulls in _by_reader(history):
        for before, after in pairwise(pulls):
            assert before.step <= after.step
            assert not (before.marks() & ~after.marks()).any()


def test_every_call_sees_what_had_been_answered_before_it_was_sent(
    history: History,
) -> None:
    """The calls of all clients fit one order that keeps to the clock."""
    require_order(
        history.calls,
        lambda call: isinstance(call, Pushed) and call.verdict.applied,
    )


def test_no_call_sees_more_steps_than_pushes_had_been_sent(history: History) -> None:
    """The step is a counter: it never runs ahead of who could have raised it."""
    require_not_ahead(history.calls, history.pushes)


def test_the_counters_are_the_sum_of_the_clients_logs(history: History) -> None:
    """In all, for every worker, and for every staleness."""
    judged = {
        name: [push.verdict for push in history.pushes if push.worker == name]
        for name in sorted(history.joined)
    }
    status = history.status

    assert status.counts == _counts(
        [push.verdict for push in history.pushes],
        {
            reason: sum(n for (_, why), n in history.rejected.items() if why == reason)
            for reason in ("GENERATION", "STEP_READ")
        },
    )
    assert {row.name: row.counts for row in status.workers} == {
        name: _counts(
            verdicts,
            {why: n for (who, why), n in history.rejected.items() if who == name},
        )
        for name, verdicts in judged.items()
    }
    assert {row.name: row.consecutive_drops for row in status.workers} == {
        name: _trailing_drops(verdicts) for name, verdicts in judged.items()
    }
    assert status.staleness == Counter(p.verdict.staleness for p in history.pushes)


def _by_reader(history: History) -> Iterator[list[Pulled]]:
    for reader in {pull.reader for pull in history.pulls}:
        yield [pull for pull in history.pulls if pull.reader == reader]


def _counts(verdicts: list[Verdict], rejected: dict[str, int]) -> Counts:
    applied = sum(verdict.applied for verdict in verdicts)
    return Counts(applied, len(verdicts) - applied, 0, rejected)


def _trailing_drops(verdicts: list[Verdict]) -> int:
    drops = 0
    for verdict in verdicts:
        drops = 0 if verdict.applied else drops + 1
    return drops
