"""Every error crosses the wire as itself, and none escapes as UNKNOWN."""

import logging
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from pswire import errors

Behaviour = Callable[[grpc.ServicerContext], None]
Call = Callable[[Behaviour], None]

CODES = {
    errors.GenerationError: grpc.StatusCode.ABORTED,
    errors.SessionSupersededError: grpc.StatusCode.ABORTED,
    errors.SessionUnknownError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotInitializedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VariableMismatchError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NonFiniteError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.GradientNormError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StepReadError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SequenceError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.TooFewPushesError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CallCancelledError: grpc.StatusCode.CANCELLED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TlsError: grpc.StatusCode.UNAVAILABLE,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
}
LONGEST_NAME = "é" * 512
WHOLE = {
    "message": "w: expected (2,) float32, got (3,) float32",
    "unicode": "größe/⚖: expected () float32, got none",
    "controls": " line\n\tand 100 %41\r\0 ",
    "longest name": f"{LONGEST_NAME}: expected (2,) float32, got (3,) float32",
}
LONG = {
    "many names": ", ".join([LONGEST_NAME] * 6),
    "wide letters": "😀" * 2_000,
    "more than gRPC likes": "x" * 10_000,
    "more than gRPC takes": "x" * 1_000_000,
}


@pytest.fixture
def call() -> Iterator[Call]:
    """Run a behaviour in a real server's handler, and fail as the call does."""
    behaviours: list[Behaviour] = []

    def handle(request: Any, context: grpc.ServicerContext) -> bytes:
        behaviours.pop()(context)
        return b""

    method: Any = grpc.unary_unary_rpc_method_handler(handle)
    handlers = grpc.method_handlers_generic_handler("test", {"Call": method})
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((handlers,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = channel.unary_unary("/test/Call")

            def run(behaviour: Behaviour) -> None:
                behaviours.append(behaviour)
                stub(b"", timeout=20, wait_for_ready=True)

            yield run
        server.stop(None).wait()


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """Take what is logged before pytest does, whose reports can hold no surrogate."""
    records: list[logging.LogRecord] = []

    def take(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger = logging.getLogger("pswire")
    logger.addFilter(take)

    yield records

    logger.removeFilter(take)


def raising(error: Exception) -> Behaviour:
    """Behave like a handler whose work raises the error."""

    def behave(context: grpc.ServicerContext) -> None:
        with errors.to_status(context):
            raise error

    return behave


def ours(kind: type[errors.ParameterServerError]) -> set[type[Any]]:
    """Return a class's subclasses, of all depths, that the product defines."""
    below = set(kind.__subclasses__())
    deeper = (ours(error) for error in below)
    return {
        error
        for error in below.union(*deeper)
        if error.__module__.partition(".")[0] in ("pswire", "psserver", "psworker")
    }


def test_the_table_above_holds_every_error() -> None:
    """So an error that is added has its status said here, too."""
    assert ours(errors.ParameterServerError) == CODES.keys()


def test_every_error_has_a_reason_of_its_own() -> None:
    """Counters and the wire tell errors apart by nothing else."""
    reasons = [errors.reason(error) for error in CODES]

    assert len(set(reasons)) == len(CODES)
    assert errors.reason(errors.StepReadError("text")) == "STEP_READ"


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_an_error_becomes_its_status(
    call: Call, error: type[errors.ParameterServerError], code: grpc.StatusCode
) -> None:
    """And its reason goes along, for callers in other languages."""
    with pytest.raises(grpc.RpcError, match="some text") as caught:
        call(raising(error("some text")))

    failure: Any = caught.value
    status = rpc_status.from_call(failure)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert failure.code() is code
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("ps.v1", errors.reason(error))


@pytest.mark.parametrize("error", CODES)
def test_an_error_crosses_the_wire_as_itself(
    call: Call, error: type[errors.ParameterServerError]
) -> None:
    """The gRPC error stays its cause."""
    with (
        pytest.raises(errors.ParameterServerError, match=r"^some text$") as caught,
        errors.from_status(),
    ):
        call(raising(error("some text")))

    assert type(caught.value) is error
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_when_to_come_again_crosses_the_wire(call: Call) -> None:
    """For our clients, and for those that let gRPC repeat calls."""
    error = errors.OverloadedError("no room", 0.25)

    with (
        pytest.raises(errors.OverloadedError) as caught,
        errors.from_status(),
    ):
        call(raising(error))

    assert caught.value.retry_s == 0.25
    cause: Any = caught.value.__cause__
    assert ("grpc-retry-pushback-ms", "250") in cause.trailing_metadata()
    beside: Any = errors.from_bytes(errors.to_bytes(error))
    assert beside.retry_s == 0.25


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE.keys())
def test_a_text_arrives_whole(call: Call, text: str) -> None:
    """With any letter, as long as a message about one variable can be."""
    with (
        pytest.raises(errors.VariableMismatchError, match=re.escape(text)) as caught,
        errors.from_status(),
    ):
        call(raising(errors.VariableMismatchError(text)))

    assert str(caught.value) == text


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_no_text_is_so_long_that_it_becomes_another_error(
    call: Call, text: str
) -> None:
    """Its beginning is what matters; gRPC would refuse the whole as too large."""
    start = re.escape(text[:250])

    for _ in range(20):  # From 8 KiB of headers on, gRPC refuses some at random.
        with (
            pytest.raises(errors.VariableMismatchError, match=f"^{start}"),
            errors.from_status(),
        ):
            call(raising(errors.VariableMismatchError(text)))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("boom"), "^ValueError: boom$"),
        (KeyError("w"), "^KeyError: 'w'$"),
        (grpc.RpcError(), "^RpcError: "),
        (StopIteration(), "^StopIteration: "),
        (OSError("\udcff"), "^OSError: "),
        (errors.ParameterServerError("of no kind"), "of no kind"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_other_exception_is_an_internal_error(
    call: Call, error: Exception, text: str, logged: list[logging.LogRecord]
) -> None:
    """The server's log has the traceback, the caller the exception's type and text."""
    with (
        pytest.raises(errors.InternalError, match=text) as caught,
        errors.from_status(),
    ):
        call(raising(error))

    failure = caught.value.__cause__
    assert isinstance(failure, grpc.Call)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert [record.levelno for record in logged] == [logging.ERROR]
    assert [record.exc_info and record.exc_info[1] for record in logged] == [error]


BARE = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: errors.InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.TooLargeError,
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
    grpc.StatusCode.CANCELLED: errors.CallCancelledError,
    grpc.StatusCode.UNKNOWN: errors.InternalError,
    grpc.StatusCode.NOT_FOUND: errors.InternalError,
    grpc.StatusCode.ALREADY_EXISTS: errors.InternalError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.InternalError,
    grpc.StatusCode.ABORTED: errors.InternalError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InternalError,
    grpc.StatusCode.INTERNAL: errors.InternalError,
    grpc.StatusCode.DATA_LOSS: errors.InternalError,
}


def test_the_table_of_bare_statuses_is_whole() -> None:
    """All that gRPC can end a call with, but for success."""
    assert BARE.keys() == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize(("code", "kind"), BARE.items(), ids=lambda v: str(v))
@pytest.mark.parametrize("text", ["said by gRPC", ""])
def test_a_status_without_a_reason_is_read_by_its_code(
    call: Call,
    code: grpc.StatusCode,
    kind: type[errors.ParameterServerError],
    text: str,
) -> None:
    """It comes from gRPC itself; where it says nothing, the code's name is said."""
    with (
        pytest.raises(errors.ParameterServerError, match=text or code.name) as caught,
        errors.from_status(),
    ):
        call(lambda context: context.abort(code, text))

    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        (raising(errors.StepReadError("step_read: some text")), "step_read: some text"),
        (
            lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "some text"),
            "ps:7070: some text",
        ),
        (
            lambda context: context.abort(grpc.StatusCode.UNIMPLEMENTED, "some text"),
            "ps:7070: expected a parameter server, got a server of another kind; "
            "some text",
        ),
    ],
    ids=["ours", "bare", "another-kind"],
)
def test_what_grpc_says_is_told_with_whom_it_is_of(
    call: Call, behaviour: Behaviour, text: str
) -> None:
    """Our own messages begin with the variable or option instead."""
    with (
        pytest.raises(errors.ParameterServerError, match=f"^{re.escape(text)}$"),
        errors.from_status("ps:7070"),
    ):
        call(behaviour)


def details(code: int, reason: str, domain: str, text: str = "gone") -> bytes:
    """Write a status's details as another program might."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    status = status_pb2.Status(code=code, message=text, details=[detail])
    return status.SerializeToString()


@pytest.mark.parametrize(
    "foreign",
    [
        details(14, "STEP_READ", "other.example"),
        details(14, "NEVER_HEARD_OF", "ps.v1"),
        details(3, "NEVER_HEARD_OF", "ps.v1"),
        details(14, "NEVER_HEARD_OF", "ps.v1", text="not what the status says"),
        b"\xff\xff",
    ],
    ids=["domain", "reason", "code", "text", "garbage"],
)
def test_a_stranger_s_details_are_passed_over(call: Call, foreign: bytes) -> None:
    """Whatever a proxy or a newer server says, the call ends in an error of ours."""

    def behave(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", foreign),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with (
        pytest.raises(errors.ServerUnavailableError, match=r"^gone$"),
        errors.from_status(),
    ):
        call(behave)


def test_what_is_no_status_comes_through() -> None:
    """A mistake in the client's own code is not the server's."""
    with pytest.raises(ValueError, match=r"^mine$"), errors.from_status():
        raise ValueError("mine")


@pytest.mark.parametrize("error", CODES)
@pytest.mark.parametrize("text", [*WHOLE.values(), ""], ids=[*WHOLE, "empty"])
def test_an_error_survives_as_bytes(
    error: type[errors.ParameterServerError], text: str
) -> None:
    """Past gRPC it is the same error, with the same text."""
    got = errors.from_bytes(errors.to_bytes(error(text)))

    assert type(got) is error
    assert str(got) == text


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_an_error_s_bytes_are_a_status(
    error: type[errors.ParameterServerError], code: grpc.StatusCode
) -> None:
    """The one that gRPC would carry, so that another language can read it."""
    status = status_pb2.Status.FromString(errors.to_bytes(error("some text")))

    info = error_details_pb2.ErrorInfo()
    number: Any = code.value
    assert (status.code, status.message) == (number[0], "some text")
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("ps.v1", errors.reason(error))


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_a_long_text_is_cut_short_in_bytes_too(text: str) -> None:
    """Both ways say the same, and the error stays itself."""
    got = errors.from_bytes(errors.to_bytes(errors.StepReadError(text)))

    assert type(got) is errors.StepReadError
    assert str(got).endswith("...")
    assert text.startswith(str(got).removesuffix("..."))
    assert len(str(got).encode()) <= 2_000


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (KeyError("w"), "KeyError: 'w'"),
        (OSError("\udcff"), r"OSError: \udcff"),
        (
            errors.ParameterServerError("of no kind"),
            "ParameterServerError: of no kind",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_other_exception_is_an_internal_error_in_bytes_too(
    error: Exception, text: str, logged: list[logging.LogRecord]
) -> None:
    """And the log has its traceback."""
    got = errors.from_bytes(errors.to_bytes(error))

    assert type(got) is errors.InternalError
    assert str(got) == text
    assert [record.exc_info and record.exc_info[1] for record in logged] == [error]


@pytest.mark.parametrize(
    "foreign",
    [
        details(14, "STEP_READ", "other.example"),
        details(14, "NEVER_HEARD_OF", "ps.v1"),
        status_pb2.Status(code=14, message="gone").SerializeToString(),
    ],
    ids=["domain", "reason", "none"],
)
def test_bytes_of_an_unknown_reason_are_an_internal_error(foreign: bytes) -> None:
    """Of a newer server, say; its text is kept."""
    got = errors.from_bytes(foreign)

    assert type(got) is errors.InternalError
    assert str(got) == "gone"
