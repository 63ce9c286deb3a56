"""What the callers of each method have to be."""

from collections.abc import Mapping

from pswire.credentials import Role

_READ = ("Pull", "PullStream", "Inspect", "Status")
_WORK = (
    *("Join", "Leave", "Initialize", "InitializeStream", "LeaseShard"),
    *("Push", "PushStream", "Exchange", "ExchangeStream"),
)
ROLES: Mapping[str, Role | None] = {
    **{f"/ps.v1.ParameterServer/{name}": Role.VIEWER for name in _READ},
    **{f"/ps.v1.ParameterServer/{name}": Role.WORKER for name in _WORK},
    # A probe has no token, and learns but one word.
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/Watch": Role.VIEWER,
}
"""What the callers of each method have to be; None: anybody. Of all others: admins."""
