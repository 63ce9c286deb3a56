"""The tokens that a server knows, each for a role."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from pswire.credentials import Role, read_secret, require_token, token_lines

_MOST = 1000  # Each call's is held against all of them.
_FORM = "ROLE TOKEN [EXPIRES]"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is good for.

    Attributes:
        role: As what.
        expires: Until when; None: for ever.
    """

    role: Role
    expires: datetime | None = None


class Tokens:
    """A table that is searched in the same time whatever is looked for."""

    def __init__(self, grants: Mapping[str, Grant]) -> None:
        """Prepare; the tokens themselves are not kept, but what tells them again.

        Args:
            grants: By token.
        """
        self._grants = {_digest(token): grant for token, grant in grants.items()}

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        r"""Read lines of ROLE TOKEN [EXPIRES]; empty lines and those of `#` are none.

        Args:
            name: Of the option, for the errors, which do not quote the tokens.
            text: "worker 3f2a...\nadmin 91cc... 2027-01-31", say. A date or a time of
                ISO 8601 says when a token is no longer valid, in UTC if it does not
                say otherwise.

        Raises:
            ValueError: A line is something else, a token is there twice, or there is
                none.
        """
        grants: dict[str, Grant] = {}
        for number, words in enumerate(token_lines(text), 1):
            try:
                token, grant = _read(words)
                if token in grants:
                    raise ValueError("token: expected each once, got one twice")
            except ValueError as error:
                raise ValueError(f"{name}: entry {number}: {error}") from None
            grants[token] = grant
        if not 0 < len(grants) <= _MOST:
            raise ValueError(
                f"{name}: expected 1 to {_MOST} lines of {_FORM}, got {len(grants)}"
            )
        return cls(grants)

    def find(self, token: str) -> Grant | None:
        """Return what a token is good for; None: it is not known."""
        wanted = _digest(token)
        found = None
        # To the end, and each in the same time: how long it takes tells nothing.
        for digest, grant in self._grants.items():
            if hmac.compare_digest(digest, wanted):
                found = grant
        return found


def read_tokens(path: str | os.PathLike[str] | None, text: str) -> Tokens | None:
    """Read the tokens of a file, or of a variable of the environment.

    Args:
        path: The file; None: there is none.
        text: What the variable says; empty: nothing.

    Returns:
        They; None: there is neither, so anybody may do anything.

    Raises:
        ValueError: There are both, the file cannot be read or is something else, or
            others can read it.
    """
    if path is not None and text:
        raise ValueError("tokens: expected none beside token_file, got both")
    if path is not None:
        text = read_secret("token_file", path).decode(errors="replace")
        return Tokens.parse("token_file", text)
    return Tokens.parse("tokens", text) if text else None


def _read(words: list[str]) -> tuple[str, Grant]:
    if not 2 <= len(words) <= 3:
        raise ValueError(f"expected {_FORM}, got {len(words)} words")
    roles = {role.name.lower(): role for role in Role}
    if words[0] not in roles:
        # It may be a token, so it is not told.
        raise ValueError(f"role: expected one of {', '.join(roles)}, got another")
    require_token(words[1])
    expires = None
    if len(words) == 3:
        try:
            expires = datetime.fromisoformat(words[2])
        except ValueError:
            raise ValueError(
                f"expires: expected a date or a time, 2027-01-31 say, got {words[2]!r}"
            ) from None
        if expires.tzinfo is None:
            expires = expires.replace(tzinfo=UTC)
    return words[1], Grant(roles[words[0]], expires)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
