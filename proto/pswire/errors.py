"""The one table of errors: what went wrong, and which gRPC status says so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
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


class UnauthenticatedError(ParameterServerError):
    """The call shows no token, or none that the server knows."""


class PermissionDeniedError(ParameterServerError):
    """The token is good, but not for this."""


class TlsError(ParameterServerError):
    """The client and the server cannot agree on TLS: one does not trust the other."""


class OverloadedError(ParameterServerError):
    """The server has no room for it now: send the same again a little later.

    Attributes:
        retry_s: How much later, in seconds.
    """

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


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
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
    TlsError: grpc.StatusCode.UNAVAILABLE,  # As gRPC has it, which tells no more.
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
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
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
    details = [detail]
    if isinstance(error, OverloadedError):
        later = error_details_pb2.RetryInfo()
        later.retry_delay.FromTimedelta(timedelta(seconds=error.retry_s))
        details.append(any_pb2.Any())
        details[-1].Pack(later)
    code = _CODES[type(error)].value[0]
    return status_pb2.Status(code=code, message=text, details=details)


def _said(failure: Any) -> ParameterServerError | None:
    try:
        status = rpc_status.from_call(failure)
    except (ValueError, DecodeError):  # A stranger's, of another kind or of none.
        return None
    return _read(status) if status else None


def _read(status: status_pb2.Status) -> ParameterServerError | None:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in _ERRORS:
            error = _ERRORS[info.reason](status.message)
            if isinstance(error, OverloadedError):
                error.retry_s = _retry_s(status)
            return error
    return None


def _retry_s(status: status_pb2.Status) -> float:
    later = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(later):
            return later.retry_delay.ToTimedelta().total_seconds()
    return 0.0


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
    return _read(status) or InternalError(status.message)


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
    status: Any = rpc_status.to_status(_to_proto(failure))
    if isinstance(failure, OverloadedError):
        # For clients that let gRPC repeat calls.
        pushback = "grpc-retry-pushback-ms", f"{failure.retry_s * 1000:.0f}"
        status = status._replace(
            trailing_metadata=(*status.trailing_metadata, pushback)
        )
    context.abort_with_status(status)


@contextmanager
def from_status(address: str = "") -> Iterator[None]:
    """Raise the project error that a failed call's status stands for.

    Args:
        address: Whom the block calls: gRPC's own messages do not begin with it.
    """
    try:
        yield
    except grpc.RpcError as failure:
        raise (_said(failure) or _guessed(failure, address)) from failure
