"""The one table of errors: what went wrong, and which gRPC status says so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "ps.v1"

# gRPC sends an error's text in headers, once with three letters for a byte that is not
# ASCII, once more in the details; clients take 8 KiB of headers.
_MAX_TEXT_NBYTES = 1_800

_log = logging.getLogger("pswire")


class ParameterServerError(Exception):
    """Anything that a parameter server's call can fail with."""


class GenerationError(ParameterServerError):
    """The step belongs to a history that is gone: pull again, go on from there."""


class SessionSupersededError(ParameterServerError):
    """A newer process has joined under this worker's name: stop."""


class SessionUnknownError(ParameterServerError):
    """The server does not know the session: join, then call again."""


class NotInitializedError(ParameterServerError):
    """There are no variables yet: initialize them, or wait for who does."""


class VariableMismatchError(ParameterServerError):
    """A name, shape, type, size or count is not that of the server's variables."""


class NonFiniteError(ParameterServerError):
    """A value is NaN or infinite, or would be after the push."""


class GradientNormError(ParameterServerError):
    """The gradients' global norm is over the server's bound."""


class StepReadError(ParameterServerError):
    """step_read is no step that the server has had."""


class SequenceError(ParameterServerError):
    """The push's number is lower than one that its session has used already."""


class InvalidRequestError(ParameterServerError):
    """The request breaks the contract in another way."""


class TooLargeError(ParameterServerError):
    """The message or the model is larger than the receiver takes."""


class ServerUnavailableError(ParameterServerError):
    """The server cannot be reached, or takes no calls now: call again later."""


class TooFewPushesError(ParameterServerError):
    """The step needs more pushes than have come: call again, with the same push."""


class DeadlineError(ParameterServerError):
    """No answer came in time; what became of the call is unknown: call again."""


class CallCancelledError(ParameterServerError):
    """The caller went away before the call was done."""


class InternalError(ParameterServerError):
    """A bug or a rule that failed; nothing has changed: report it."""


_CODES: dict[type[ParameterServerError], grpc.StatusCode] = {
    GenerationError: grpc.StatusCode.ABORTED,
    SessionSupersededError: grpc.StatusCode.ABORTED,
    SessionUnknownError: grpc.StatusCode.FAILED_PRECONDITION,
    NotInitializedError: grpc.StatusCode.FAILED_PRECONDITION,
    VariableMismatchError: grpc.StatusCode.INVALID_ARGUMENT,
    NonFiniteError: grpc.StatusCode.INVALID_ARGUMENT,
    GradientNormError: grpc.StatusCode.INVALID_ARGUMENT,
    StepReadError: grpc.StatusCode.INVALID_ARGUMENT,
    SequenceError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
    TooFewPushesError: grpc.StatusCode.UNAVAILABLE,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CallCancelledError: grpc.StatusCode.CANCELLED,
    InternalError: grpc.StatusCode.INTERNAL,
}

# A status that carries no ErrorInfo comes from gRPC itself or from a stranger.
_BARE: dict[grpc.StatusCode, type[ParameterServerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLargeError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
}


def reason(error: ParameterServerError | type[ParameterServerError]) -> str:
    """Name an error's kind as the wire and the counters do: `STEP_READ`, say."""
    kind = error if isinstance(error, type) else type(error)
    words = kind.__name__.removesuffix("Error")
    return "".join(f"_{c}" if c.isupper() else c for c in words).strip("_").upper()


def code(error: Exception) -> str:
    """Name the gRPC status that says what went wrong: `INVALID_ARGUMENT`, say."""
    kind = type(error) if isinstance(error, ParameterServerError) else InternalError
    return _CODES.get(kind, grpc.StatusCode.INTERNAL).name


_ERRORS = {reason(error): error for error in _CODES}


def _in_table(error: Exception) -> ParameterServerError:
    if isinstance(error, ParameterServerError) and type(error) in _CODES:
        return error
    _log.error("a call failed", exc_info=error, extra={"event": "call_failed"})
    return InternalError(f"{type(error).__name__}: {error}")


def _to_proto(error: ParameterServerError) -> status_pb2.Status:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason(error), domain=DOMAIN))
    said = str(error).encode(errors="backslashreplace")
    text = said[:_MAX_TEXT_NBYTES].decode(errors="ignore")
    if len(said) > _MAX_TEXT_NBYTES:
        text += "..."
    code = _CODES[type(error)].value[0]
    return status_pb2.Status(code=code, message=text, details=[detail])


def _said(failure: Any) -> type[ParameterServerError] | None:
    try:
        status = rpc_status.from_call(failure)
    except (ValueError, DecodeError):  # A stranger's, of another kind or of none.
        return None
    return _kind(status) if status else None


def _kind(status: status_pb2.Status) -> type[ParameterServerError] | None:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in _ERRORS:
            return _ERRORS[info.reason]
    return None


def _guessed(failure: Any, address: str) -> ParameterServerError:
    text = failure.details() or failure.code().name
    if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        text = f"expected a parameter server, got a server of another kind; {text}"
    kind = _BARE.get(failure.code(), InternalError)
    return kind(f"{address}: {text}" if address else text)


def to_bytes(error: Exception) -> bytes:
    """Write an error as a google.rpc.Status; see `to_status` for one of no kind."""
    return _to_proto(_in_table(error)).SerializeToString()


def from_bytes(message: bytes) -> ParameterServerError:
    """Read what `to_bytes` wrote."""
    status = status_pb2.Status.FromString(message)
    return (_kind(status) or InternalError)(status.message)


@contextmanager
def to_status(context: grpc.ServicerContext) -> Iterator[None]:
    """End a call with the status of the error that the block raises.

    Errors of no kind in the table become an `InternalError`, are logged with their
    traceback, and tell the caller their type and text.
    """
    try:
        yield
    except Exception as error:
        failure = _in_table(error)
    else:
        return
    context.abort_with_status(rpc_status.to_status(_to_proto(failure)))


@contextmanager
def from_status(address: str = "") -> Iterator[None]:
    """Raise the project error that a failed call's status stands for.

    Args:
        address: Whom the block calls: gRPC's own messages do not begin with it.
    """
    try:
        yield
    except grpc.RpcError as failure:
        kind = _said(failure)
        error = kind(failure.details()) if kind else _guessed(failure, address)
        raise error from failure
