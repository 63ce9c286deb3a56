"""A gRPC channel to a server that is known by its certificate."""

import logging

import grpc

from pswire import keepalive
from pswire.body import MAX_MESSAGE_NBYTES
from pswire.credentials import SYSTEM, Credentials, read_file
from pswire.loopback import names_loopback

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
    # A server that has just come should be found at once, not after gRPC's minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Also how long one attempt may take, on a link that is slow or a machine that is.
    ("grpc.min_reconnect_backoff_ms", 5000),
)

_log = logging.getLogger("pswire")


def open_channel(address: str, credentials: Credentials) -> grpc.Channel:
    """Return a channel; nothing is sent yet.

    Every call on it has to carry `credentials.metadata`.

    Args:
        address: HOST:PORT.
        credentials: By what the server is known; without TLS it is by its address.

    Raises:
        ValueError: A file cannot be read any more.
    """
    options = (*_OPTIONS, *keepalive.options())
    if credentials.tls_ca is None:
        if credentials.authorization and not names_loopback(address):
            _log.warning(
                "the token travels to %s unencrypted: whoever sees it can use it; "
                "--tls-ca encrypts",
                address,
                extra={"event": "token_unencrypted"},
            )
        return grpc.insecure_channel(address, options)
    trusted = certificate = key = None
    if credentials.tls_ca != SYSTEM:
        trusted = read_file("tls_ca", credentials.tls_ca)
    if credentials.tls_cert is not None and credentials.tls_key is not None:
        certificate = read_file("tls_cert", credentials.tls_cert)
        key = read_file("tls_key", credentials.tls_key)
    secure = grpc.ssl_channel_credentials(trusted, key, certificate)
    return grpc.secure_channel(address, secure, options)
