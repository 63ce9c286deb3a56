"""Certificates of two authorities that have never heard of one another."""

from datetime import UTC, datetime
from pathlib import Path

import trustme

from psworker import Credentials

_LAST_YEAR = datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)


class Papers:
    """Files in a folder: each holder's certificate, and beside it the key."""

    def __init__(self, folder: Path) -> None:
        """Issue all that tests ask for."""
        self._folder = folder
        here, elsewhere = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        here.cert_pem.write_to_path(self.ca)
        elsewhere.cert_pem.write_to_path(self.other_ca)
        names = ("localhost", "127.0.0.1")
        self._issue("server", here, *names)
        self._issue("renewed", here, *names)
        self._issue("stranger", elsewhere, *names)
        self._issue("elsewhere", here, "ps.example.org")
        self._issue("expired", here, *names, valid=_LAST_YEAR)
        self._issue("worker", here, "worker")
        self._issue("spy", elsewhere, "worker")

    def server(self, holder: str = "server") -> dict[str, Path]:
        """Return the options of a server that shows a certificate."""
        certificate, key = self._files(holder)
        return {"tls_cert": certificate, "tls_key": key}

    def client(self, holder: str | None = None, *, token: str = "") -> Credentials:
        """Return what a client needs that trusts the first authority."""
        if holder is None:
            return Credentials(tls_ca=self.ca, token=token)
        certificate, key = self._files(holder)
        return Credentials(
            tls_ca=self.ca, tls_cert=certificate, tls_key=key, token=token
        )

    def _files(self, holder: str) -> tuple[Path, Path]:
        return self._folder / f"{holder}.pem", self._folder / f"{holder}-key.pem"

    def _issue(
        self,
        holder: str,
        authority: trustme.CA,
        *names: str,
        valid: tuple[datetime, datetime] | None = None,
    ) -> None:
        begin, end = valid or (None, None)
        issued = authority.issue_cert(*names, not_before=begin, not_after=end)
        certificate, key = self._files(holder)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        issued.private_key_pem.write_to_path(key)
