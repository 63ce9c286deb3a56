"""Why a server cannot be reached, where TLS is what is wrong.

Of that gRPC says "Socket closed", or quotes its library; so a connection is made once
more, by hand, to see how it fails.
"""

import socket
import ssl
import time
from urllib.parse import urlsplit

from pswire.credentials import SYSTEM, Credentials

_TIMEOUT_S = 5.0
_PAUSE_S = 0.5
_EXPIRED, _OTHER_NAME, _OTHER_NUMBER = 10, 62, 64  # What OpenSSL calls them.
_HUNG_UP = "hung up"


def complaint(address: str, credentials: Credentials) -> str:
    """Say what is wrong with TLS between a client and a server, and what to do.

    Args:
        address: HOST:PORT.
        credentials: The client's.

    Returns:
        It, beginning with the address; empty: nothing is, or nobody answers.
    """
    said = _complaint(address, credentials)
    if said == _HUNG_UP:
        # A server that happens to stop does so as well, but not a second time.
        time.sleep(_PAUSE_S)
        said = _complaint(address, credentials)
    if said == _HUNG_UP:
        has_own = credentials.tls_cert is not None
        said = (
            "tls_cert: expected a certificate that the server's --tls-client-ca "
            f"vouches for, got {'another one, or an old one' if has_own else 'none'}"
        )
    return f"{address}: {said}" if said else ""


def _complaint(address: str, credentials: Credentials) -> str:
    try:
        where = urlsplit(f"//{address}")
        host, port = where.hostname, where.port
    except ValueError:
        return ""
    if host is None or port is None:
        return ""  # gRPC knows more kinds of addresses.
    try:
        with (
            socket.create_connection((host, port), _TIMEOUT_S) as plain,
            credentials.context().wrap_socket(plain, server_hostname=host) as secure,
        ):
            # Of whom it does not trust, a server of TLS 1.3 says so after it all.
            is_open = bool(secure.recv(1))
    except ssl.SSLCertVerificationError as error:
        return _distrust(error, host, credentials)
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER" and credentials.uses_tls:
            return (
                "tls_ca: expected a server that speaks TLS, got one that does not; "
                "start it with --tls-cert and --tls-key, or leave out --tls-ca"
            )
        return f"TLS: {error}" if credentials.uses_tls else ""
    except OSError:
        return ""
    if not credentials.uses_tls:
        return (
            "tls_ca: expected a certificate to know the server by, as it speaks TLS, "
            f"got none; --tls-ca FILE names one, {SYSTEM} trusts what this system does"
        )
    return "" if is_open else _HUNG_UP


def _distrust(
    error: ssl.SSLCertVerificationError, host: str, credentials: Credentials
) -> str:
    if error.verify_code == _EXPIRED:
        return (
            "the server's certificate: expected one that is valid, got one that has "
            "expired; the server reads another one on SIGHUP"
        )
    if error.verify_code in (_OTHER_NAME, _OTHER_NUMBER):
        return (
            f"the server's certificate: expected one for {host}, got one for other "
            f"names ({error.verify_message})"
        )
    return (
        "the server's certificate: expected one that an authority in "
        f"{credentials.tls_ca} vouches for, got another ({error.verify_message})"
    )
