"""Whether a caller may do what it asks for."""

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime

from psserver.security.roles import ROLES
from psserver.security.tokens import Tokens
from pswire.credentials import Role
from pswire.errors import PermissionDeniedError, UnauthenticatedError

_HOW = "--token-file names a file with one"


class Access:
    """Holds the tokens, for every way that leads in; any thread may call."""

    def __init__(
        self,
        tokens: Tokens | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Begin.

        Args:
            tokens: Those that are good; None: nobody is asked for any.
            clock: Tells the time of day.
        """
        self.tokens = tokens  # Replaced as a whole.
        self._clock = clock

    def require_call(self, authorization: str, method: str) -> None:
        """Check that a caller may call a method.

        Args:
            authorization: See `require`.
            method: Its path, as gRPC has it.

        Raises:
            ParameterServerError: As `require` does.
        """
        role = ROLES.get(method, Role.ADMIN)
        if role is not None:
            self.require(authorization, role)

    def require(self, authorization: str, role: Role) -> None:
        """Check that a caller shows a token for a role, or for a higher one.

        Args:
            authorization: "Bearer TOKEN", or "Basic ..." with the token for a password,
                as browsers have it; empty: nothing was shown.
            role: The least that will do.

        Raises:
            UnauthenticatedError: No token is shown, or none that is good.
            PermissionDeniedError: It is one for less.
        """
        tokens = self.tokens
        if tokens is None:
            return
        if not authorization:
            raise UnauthenticatedError(f"token: expected one, got none; {_HOW}")
        grant = tokens.find(_token(authorization))
        if grant is None:
            raise UnauthenticatedError(
                f"token: expected one that the server knows, got another; {_HOW}"
            )
        if grant.expires and grant.expires <= self._clock():
            raise UnauthenticatedError(
                "token: expected one that is valid, got one that expired on "
                f"{grant.expires.isoformat()}"
            )
        if grant.role < role:
            raise PermissionDeniedError(
                f"token: expected one for the role {role.name.lower()}, got one for "
                f"{grant.role.name.lower()}"
            )


def _token(authorization: str) -> str:
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return ""
        return decoded.partition(":")[2]
    return text if scheme.lower() == "bearer" else ""
