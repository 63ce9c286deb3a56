"""What a client shows a server, and by what it knows the server."""

import enum
import os
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = "system"
TOKEN_FORM = "16 to 256 printable ASCII letters without a space"

Name = str | os.PathLike[str] | None
"""Of a file; None: there is none."""


class Role(enum.IntEnum):
    """What a token is good for: all that a lower one is, and more."""

    VIEWER = 1
    """Reads: variables, status, metrics."""
    WORKER = 2
    """Joins, initializes and pushes too."""
    ADMIN = 3
    """Changes settings, saves and stops too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A bearer token and files for TLS; nothing secret of it is ever shown.

    Attributes:
        token: What the server asks for; empty: see token_file.
        token_file: Whose first line is the token, perhaps after its role. None: there
            is none.
        tls_ca: PEM certificates, one of which has to vouch for the server's; "system":
            those that this system trusts. None: no TLS.
        tls_cert: The client's own PEM certificate, for a server that asks for one.
        tls_key: Its private key, in PEM.

    Raises:
        ValueError: A file cannot be read or is not what it has to be, others can read
            what is secret, or one of them needs another.
    """

    token: str = field(default="", repr=False)
    token_file: Name = None
    tls_ca: Name = None
    tls_cert: Name = None
    tls_key: Name = None
    _token: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.token and self.token_file is not None:
            raise ValueError("token: expected none beside token_file, got both")
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ValueError(f"{missing}: expected beside the other one, got none")
        if self.tls_cert is not None and self.tls_ca is None:
            raise ValueError(
                "tls_ca: expected beside tls_cert, as there is no TLS without it, got "
                f"none; {SYSTEM} trusts what this system does"
            )
        token = self.token
        if self.token_file is not None:
            text = read_secret("token_file", self.token_file)
            token = _first_token(text.decode(errors="replace"))
        if token or self.token_file is not None:
            require_token(token)
        object.__setattr__(self, "_token", token)
        if self.uses_tls:
            self.context()  # Now is the time to say what is wrong with the files.

    @property
    def uses_tls(self) -> bool:
        """Whether all that travels is encrypted."""
        return self.tls_ca is not None

    @property
    def authorization(self) -> str:
        """What is shown with every call; empty: nothing."""
        return f"Bearer {self._token}" if self._token else ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The same, as a call over gRPC takes it."""
        said = self.authorization
        return (("authorization", said),) if said else ()

    def context(self) -> ssl.SSLContext:
        """Return what makes a socket a TLS one; without `tls_ca`, of any server.

        Raises:
            ValueError: A file is not what it has to be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        if self.tls_ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.tls_ca == SYSTEM:
            context.load_default_certs()
        else:
            load_authorities(context, "tls_ca", self.tls_ca)
        if self.tls_cert is not None and self.tls_key is not None:
            load_certificate(context, self.tls_cert, self.tls_key)
        return context


ANONYMOUS = Credentials()
"""Shows nothing, and takes any server for the one that is meant."""


def require_token(text: str) -> None:
    """Check what is to be a token, without a word of what it is.

    Raises:
        ValueError: It is too short or too long, or has other letters.
    """
    if not (16 <= len(text) <= 256 and all("!" <= letter <= "~" for letter in text)):
        raise ValueError(f"token: expected {TOKEN_FORM}, got {len(text)} letters")


def token_lines(text: str) -> list[list[str]]:
    """Return the words of each line that is neither empty nor a comment."""
    lines = (line.split() for line in text.splitlines())
    return [words for words in lines if words and not words[0].startswith("#")]


def read_file(name: str, path: str | os.PathLike[str]) -> bytes:
    """Read a file that an option names.

    Raises:
        ValueError: It cannot be read; the message begins with the option.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{name}: expected a file that can be read, got {os.fspath(path)}: "
            f"{error.strerror}"
        ) from error


def read_secret(name: str, path: str | os.PathLike[str]) -> bytes:
    """Read a file that an option names, and that nobody else on this host can read.

    Of another user's file that is their affair: that of a container's host, say.

    Raises:
        ValueError: It cannot be read, or others can read it as well.
    """
    content = read_file(name, path)
    file = Path(path).absolute()
    found = file.stat()
    is_ours, is_open = found.st_uid == os.geteuid(), found.st_mode & stat.S_IROTH
    if (
        is_ours
        and is_open
        and all(f.stat().st_mode & stat.S_IXOTH for f in file.parents)
    ):
        raise ValueError(
            f"{name}: expected a file that others on this host cannot read, got "
            f"{os.fspath(path)}; chmod 600 closes it"
        )
    return content


def load_authorities(
    context: ssl.SSLContext, name: str, path: str | os.PathLike[str]
) -> None:
    """Have a context trust those whose certificates are in an option's file.

    Raises:
        ValueError: It has none, or cannot be read.
    """
    read_file(name, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ValueError(
            f"{name}: expected PEM certificates, got {os.fspath(path)}: {error}"
        ) from error


def load_certificate(
    context: ssl.SSLContext,
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
) -> None:
    """Have a context show a certificate, from the files of tls_cert and tls_key.

    Raises:
        ValueError: They are no such pair, or cannot be read, or by others too.
    """
    read_file("tls_cert", certificate)
    read_secret("tls_key", key)

    def refuse_to_ask() -> bytes:
        raise ValueError(
            f"tls_key: expected a key without a password, got {os.fspath(key)}"
        )

    try:
        context.load_cert_chain(certificate, key, refuse_to_ask)
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_cert: expected a PEM certificate and in tls_key its key, got "
            f"{os.fspath(certificate)} and {os.fspath(key)}: {error}"
        ) from error


def _first_token(text: str) -> str:
    words = next(iter(token_lines(text)), [""])
    has_role = words[0].upper() in Role.__members__ and len(words) > 1
    return words[1] if has_role else words[0]
