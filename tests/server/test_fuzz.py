"""Pushes that are nearly right, and bytes that are nothing at all."""

import math
import random
import socket
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import psserver
from pswire import body
from pswire._generated import parameter_server_pb2 as pb
from pswire._generated import parameter_server_pb2_grpc as rpc
from pswire.encoding import BFLOAT16, Encoding
from pswire.layout import Layout

StartServer = Callable[..., psserver.Server]
Dial = Callable[[str], grpc.Channel]

_TIMEOUT_S = 30.0
_MESSAGES = 500  # For each of the four seeds.
_CANARY = 100
_UNKNOWN_FIELD = b"\xc2\x3e\x05\xc2\x3e\x02ab"  # Field 1000 in field 1000.
_MAY_FAIL_WITH = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}

_TWIN = unicodedata.normalize("NFD", "wé")
_VARIABLES: dict[str, Any] = {
    "wé": np.zeros((2, 3), np.float32),
    "b": np.zeros(5, np.float32),
    "n": np.arange(3, dtype=np.int32),
}
_LAYOUT = Layout.of(_VARIABLES)
_CROWD = pb.Layout(
    arrays=[pb.ArraySpec(name=f"a{n}", dtype=pb.FLOAT32) for n in range(100_000)]
)


@dataclass
class _Draft:
    """A push on its way from valid to something else.

    Attributes:
        dice: Whatever is left to chance.
        header: Its header, to be changed at will.
        data: Its body.
        step: The server's.
        edits: What to do to the message's bytes at last.
    """

    dice: random.Random
    header: pb.PushHeader
    data: bytes
    step: int
    edits: list[Callable[[bytes], bytes]] = field(default_factory=list)

    def spec(self) -> pb.ArraySpec:
        """Return one of the layout's arrays, or a stray one if none is left."""
        arrays = self.header.layout.arrays
        return self.dice.choice(arrays) if arrays else pb.ArraySpec()

    def numbers(self, *values: float) -> None:
        """Put numbers in the place of others."""
        numbers = np.frombuffer(self.data[: len(self.data) // 4 * 4], np.float32).copy()
        for value in values if len(numbers) else ():
            numbers[self.dice.randrange(len(numbers))] = value
        self.data = numbers.tobytes()

    def bytes(self) -> bytes:
        message = pb.PushRequest(header=self.header, data=self.data).SerializeToString()
        for edit in self.edits:
            message = edit(message)
        return message


def _drop(draft: _Draft) -> None:
    if arrays := draft.header.layout.arrays:
        del arrays[draft.dice.randrange(len(arrays))]


def _add(name: str) -> Callable[[_Draft], None]:
    def add(draft: _Draft) -> None:
        draft.header.layout.arrays.add(name=name, dtype=pb.FLOAT32, shape=[2])

    return add


def _double(draft: _Draft) -> None:
    draft.header.layout.arrays.append(draft.spec())


def _rename(name: str) -> Callable[[_Draft], None]:
    return lambda draft: setattr(draft.spec(), "name", name)


def _not_text(draft: _Draft) -> None:
    draft.edits.append(lambda message: message.replace("wé".encode(), b"w\xff\xfe"))


def _shape(*shape: int) -> Callable[[_Draft], None]:
    def reshape(draft: _Draft) -> None:
        draft.spec().shape[:] = shape

    return reshape


def _more_rank(draft: _Draft) -> None:
    draft.spec().shape.append(1)


def _less_rank(draft: _Draft) -> None:
    shape = draft.spec().shape
    del shape[-1:]


def _amplify(draft: _Draft) -> None:
    """Announce four terabytes and send nothing."""
    draft.spec().shape[:] = [2**40]
    draft.header.nbytes, draft.data = 2**42, b""


def _dtype(number: int) -> Callable[[_Draft], None]:
    return lambda draft: setattr(draft.spec(), "dtype", number)


def _header(**values: Any) -> Callable[[_Draft], None]:
    def change(draft: _Draft) -> None:
        for name, value in values.items():
            setattr(draft.header, name, value)

    return change


def _later(name: str, offset: int) -> Callable[[_Draft], None]:
    def change(draft: _Draft) -> None:
        base = draft.step if name == "step_read" else getattr(draft.header, name)
        setattr(draft.header, name, max(0, base + offset))

    return change


def _cut_data(size: int) -> Callable[[_Draft], None]:
    return lambda draft: setattr(draft, "data", draft.data[:size])


def _long_data(draft: _Draft) -> None:
    draft.data += b"\0"


def _noise_data(draft: _Draft) -> None:
    draft.data = draft.dice.randbytes(draft.dice.choice([1, 44, 84, 1000]))


def _numbers(*values: float) -> Callable[[_Draft], None]:
    return lambda draft: draft.numbers(*values)


def _counts(*counts: int) -> Callable[[_Draft], None]:
    return lambda draft: draft.header.counts.extend(counts)


def _encode(draft: _Draft) -> None:
    """Send some elements, or bfloat16, or both: of any indices, rising or not."""
    trainable, dice = _LAYOUT.trainable, draft.dice
    sizes = [math.prod(spec.shape) for spec in trainable]
    counts = tuple(dice.randint(0, size) for size in sizes)
    narrow = dice.choice([None, BFLOAT16])
    encoding = Encoding(narrow, dice.choice([None, counts]))
    draft.header.wire_dtype = encoding.wire_dtype_number
    draft.header.counts[:] = encoding.counts or ()
    travelling = encoding.layout(trainable)
    sent = body.Body.zeros(travelling)
    for spec in travelling:
        if spec.dtype == np.uint32:
            above = dice.choice([0, 1, 2**31])
            where = dice.sample(range(max(sizes) + above), *spec.shape)
            sent[spec.name][:] = where if dice.random() < 0.2 else sorted(where)
        else:
            sent[spec.name][:] = dice.random()
    draft.header.nbytes = travelling.nbytes
    draft.data = bytes(body.join(travelling, sent))


def _flip(draft: _Draft) -> None:
    def edit(message: bytes) -> bytes:
        if not message:
            return message
        changed = bytearray(message)
        changed[draft.dice.randrange(len(changed))] ^= 1 << draft.dice.randrange(8)
        return bytes(changed)

    draft.edits.append(edit)


def _truncate(draft: _Draft) -> None:
    draft.edits.append(
        lambda message: message[: draft.dice.randrange(len(message) + 1)]
    )


def _noise(draft: _Draft) -> None:
    draft.edits.append(lambda _: draft.dice.randbytes(draft.dice.randrange(200)))


def _unknown(draft: _Draft) -> None:
    draft.header.MergeFromString(_UNKNOWN_FIELD)
    draft.edits.append(lambda message: message + _UNKNOWN_FIELD)


_MUTATIONS: tuple[Callable[[_Draft], None], ...] = (
    # Variables, and their names.
    _drop,
    _add("extra"),
    _add(_TWIN),
    _double,
    *map(
        _rename, ("", "c", _TWIN, "n", "x" * 10_000, "nul\0", "../../etc/x", "\u202e")
    ),
    _not_text,
    # Shapes, types and sizes.
    _more_rank,
    _less_rank,
    _shape(0),
    _shape(-1),
    _shape(2**62),
    _shape(2**62, 2**62),
    _shape(0, 2**62, 2**62),
    _shape(*[1] * 100),
    _amplify,
    *map(_dtype, (0, pb.INT32, pb.BOOL, pb.FLOAT64, pb.BFLOAT16, 99)),
    _header(nbytes=0),
    _header(nbytes=2**64 - 1),
    # Bodies.
    *map(_cut_data, (-1, 0, 3)),
    _long_data,
    _noise_data,
    _numbers(math.nan),
    _numbers(math.inf, -math.inf),
    _numbers(1e-45),
    _numbers(3e38, 3e38),
    # Encodings.
    *[_encode] * 4,
    *(_counts(*counts) for counts in ([6, 5], [1], [7, 5], [2**64 - 1] * 2, [0] * 99)),
    *(_header(wire_dtype=number) for number in (pb.BFLOAT16, pb.FLOAT32, 99, -1)),
    *(_header(snapshot_wire_dtype=number) for number in (pb.BFLOAT16, pb.INT8, 99)),
    # Steps, generations, numbers and sessions.
    *map(_later, ["step_read"] * 3, (1, 0, -100)),
    _header(step_read=-1),
    _header(step_read=2**63 - 1),
    _header(step_read=-(2**63)),
    *(_header(generation=name) for name in ("", "h", "g" * 2**20)),
    *map(_later, ["seq"] * 3, (5, -10, -500)),
    _header(seq=0),
    *(_header(session=name) for name in ("", "nobody", "bystander", "s" * 2**20)),
    *(_header(value=value) for value in (math.nan, math.inf, 1e300)),
    # The message's own bytes.
    _flip,
    _truncate,
    _noise,
    _unknown,
)


class _Fuzzed:
    """A server, and the books that its clients keep of it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = rpc.ParameterServerStub(channel)
        self.send: Any = channel.unary_unary("/ps.v1.ParameterServer/Push")
        self.outcomes: Counter[str] = Counter()
        self.generation = ""
        for session in ("canary", "bystander"):
            self.join(session)
        request = pb.InitializeRequest(
            header=pb.InitializeHeader(session="canary", layout=_LAYOUT.to_proto()),
            data=bytes(body.join(_LAYOUT, _VARIABLES)),
        )
        self.stub.Initialize(request, timeout=_TIMEOUT_S)

    def join(self, session: str) -> None:
        request = pb.JoinRequest(worker=session, session=session)
        self.generation = self.stub.Join(request, timeout=_TIMEOUT_S).generation

    def draft(self, dice: random.Random, session: str, seq: int, step: int) -> _Draft:
        header = pb.PushHeader(
            session=session,
            seq=seq,
            generation=self.generation,
            step_read=step,
            nbytes=_LAYOUT.trainable.nbytes,
            layout=_LAYOUT.trainable.to_proto(),
        )
        return _Draft(dice, header, bytes(_LAYOUT.trainable.nbytes), step)

    def push(self, message: bytes) -> tuple[pb.PushReply | None, grpc.StatusCode]:
        """Send a push, and write down what the server says became of it."""
        try:
            reply = pb.PushReply.FromString(self.send(message, timeout=_TIMEOUT_S))
        except grpc.RpcError as failure:
            self.outcomes[_reason(failure)] += 1
            return None, _code(failure)
        kind = "applied" if reply.applied else "dropped"
        self.outcomes["duplicate" if reply.duplicate else kind] += 1
        return reply, grpc.StatusCode.OK

    def canary(self, number: int, dice: random.Random) -> bool:
        """Say whether a push without a fault is applied."""
        step, _ = self.model()
        reply, _ = self.push(self.draft(dice, "canary", number, step).bytes())
        return reply is not None and reply.applied

    def model(self) -> tuple[int, bytes]:
        reply = self.stub.Pull(pb.PullRequest(), timeout=_TIMEOUT_S)
        return reply.header.step, reply.data

    def counted(self) -> Counter[str]:
        counts = self.stub.Status(pb.StatusRequest(), timeout=_TIMEOUT_S).counts
        return +Counter(
            applied=counts.applied,
            dropped=counts.dropped,
            duplicate=counts.duplicate,
            **counts.rejected,
        )


def _code(failure: Any) -> grpc.StatusCode:
    return failure.code()


def _reason(failure: Any) -> str:
    status = rpc_status.from_call(failure)
    assert status is not None, f"{failure.code()}: {failure.details()}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


@pytest.fixture
def fuzzed(start_server: StartServer, dial: Dial) -> _Fuzzed:
    """Start and initialize a server that drops what is more than 8 steps old."""
    return _Fuzzed(dial(start_server(max_staleness=8).address))


@pytest.mark.parametrize("seed", range(4))
def test_a_push_that_is_nearly_right_is_refused_or_understood(
    seed: int, fuzzed: _Fuzzed
) -> None:
    """One to three faults each; no bug, no trace, and every one is counted."""
    dice = random.Random(seed)

    for number in range(_MESSAGES):
        if number % _CANARY == 0:
            fuzzed.join(f"session {number}")
            assert fuzzed.canary(number + 1, dice)
        session = f"session {number - number % _CANARY}"
        step, data = fuzzed.model()
        draft = fuzzed.draft(dice, session, 10 * (number + 1), step)
        for mutate in dice.sample(_MUTATIONS, dice.randint(1, 3)):
            mutate(draft)

        reply, code = fuzzed.push(draft.bytes())

        changed = reply is not None and reply.applied and not reply.duplicate
        assert reply is not None or code in _MAY_FAIL_WITH
        if changed:
            assert fuzzed.model()[0] == step + 1
        else:
            assert fuzzed.model() == (step, data)

    assert fuzzed.canary(_MESSAGES, dice)
    # The grammar reaches the server's every judgement.
    assert fuzzed.outcomes.keys() >= {
        "applied",
        "GENERATION",
        "INVALID_REQUEST",
        "NON_FINITE",
        "SEQUENCE",
        "SESSION_UNKNOWN",
        "STEP_READ",
        "VARIABLE_MISMATCH",
    }
    assert fuzzed.counted() == fuzzed.outcomes


def test_a_push_cut_short_anywhere_is_refused(fuzzed: _Fuzzed) -> None:
    """At every byte of the message: some cuts leave a message that can be read."""
    dice = random.Random(0)
    message = fuzzed.draft(dice, "canary", 2, 0).bytes()
    before = fuzzed.model()

    codes = {fuzzed.push(message[:size])[1] for size in range(len(message))}

    assert codes <= _MAY_FAIL_WITH
    assert fuzzed.model() == before
    assert fuzzed.push(message)[0] == pb.PushReply(applied=True, staleness=0, step=1)


def test_a_crowd_of_tiny_gradients_is_refused(fuzzed: _Fuzzed) -> None:
    """A hundred thousand names cost some time, and nothing else."""
    dice = random.Random(0)
    draft = fuzzed.draft(dice, "canary", 1, 0)
    draft.header.layout.CopyFrom(_CROWD)

    _, code = fuzzed.push(draft.bytes())

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert fuzzed.canary(2, dice)
    assert fuzzed.counted() == fuzzed.outcomes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        random.Random(1).randbytes(10_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(2).randbytes(10_000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    ],
    ids=["nothing", "noise", "http1", "preface", "preface-noise", "tls"],
)
def test_noise_on_the_port_does_not_touch_the_server(
    data: bytes, start_server: StartServer, dial: Dial
) -> None:
    """While the stranger's connection is still open, the others are served."""
    address = start_server().address
    host, _, port = address.rpartition(":")

    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as stranger:
        stranger.sendall(data)
        fuzzed = _Fuzzed(dial(address))
        applied = fuzzed.canary(1, random.Random(0))

    assert applied
    assert fuzzed.counted() == {"applied": 1}


def test_a_flood_of_metadata_is_refused_by_grpc(fuzzed: _Fuzzed) -> None:
    """A thousand keys are more than a header may hold."""
    metadata = [(f"key-{number}", "x" * 20) for number in range(1000)]
    message = fuzzed.draft(random.Random(0), "canary", 1, 0).bytes()

    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
        fuzzed.send(message, metadata=metadata, timeout=_TIMEOUT_S)

    assert fuzzed.canary(2, random.Random(0))
    assert fuzzed.counted() == {"applied": 1}
