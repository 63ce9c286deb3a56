"""The server's side of TLS: its certificate, and those of clients that it trusts."""

import os
import ssl
from typing import Any

import grpc

from pswire.credentials import load_authorities, load_certificate, read_file


class ServerTls:
    """Reads the files, and reads them again; any thread may call."""

    def __init__(
        self,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str],
        client_ca: str | os.PathLike[str] | None = None,
    ) -> None:
        """Read the files.

        Args:
            certificate: PEM: the server's, then those of the authorities between it
                and one that clients know.
            key: Its private key, in PEM.
            client_ca: PEM certificates, one of which has to vouch for every client's;
                None: clients need none.

        Raises:
            ValueError: A file cannot be read, or is not what it has to be.
        """
        self._files = certificate, key, client_ca
        self.reload()

    def reload(self) -> None:
        """Read the files again, for connections that are still to come.

        Raises:
            ValueError: See `__init__`; then all stays as it is.
        """
        certificate, key, client_ca = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        load_certificate(context, certificate, key)
        trusted = None
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            load_authorities(context, "tls_client_ca", client_ca)
            trusted = read_file("tls_client_ca", client_ca)
        pair = read_file("tls_key", key), read_file("tls_cert", certificate)
        # Both are replaced as a whole.
        self._configuration = grpc.ssl_server_certificate_configuration([pair], trusted)
        self.context = context
        """For HTTP."""

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return what makes a gRPC port a TLS one, which follows every `reload`."""
        last = self._configuration

        def newest() -> Any:  # Is asked whenever somebody connects.
            nonlocal last
            if last is self._configuration:
                return None
            last = self._configuration
            return last

        return grpc.dynamic_ssl_server_credentials(
            last, newest, require_client_authentication=self._files[2] is not None
        )
