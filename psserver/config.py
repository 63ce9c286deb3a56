"""A server's settings, their defaults and their checks."""

import math
import os
import re
from dataclasses import dataclass, field
from types import EllipsisType

from psserver.durability.every import Every
from psserver.policies.terms import Terms, read_terms
from pswire.loopback import is_loopback

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

DURABILITIES = ("none", "checkpoint", "log")


@dataclass(frozen=True, kw_only=True)  # No slots: the defaults are read from the class.
class ServerConfig:
    """What can be set of a server, apart from its rule.

    Attributes:
        name: What to call the server, in all that tells of it: 1 to 64 letters of
            `A-Za-z0-9._-`. Variables' names have none of it.
        max_staleness: The largest staleness applied, in steps, inclusive; 0 admits
            only gradients of the current step, a negative one nothing, None all;
            `...`: as staleness_policy says, or else 8.
        staleness_policy: What becomes of the pushes that the limit admits, as
            NAME[:ARGUMENTS]; see docs/policies.md.
        max_grad_norm: The largest global L2 norm of a push's gradients, inclusive;
            None: any.
        max_inflight_bytes: How much of gradients and first variables may be on its
            way at once, in bytes; who comes when there is no room is asked to come
            again. None: an eighth of the machine's memory.
        host: The address to listen on: a name or a number.
        port: The port to listen on; 0 picks a free one.
        http_port: The port of the live page and of the metrics, on the same host; 0
            picks a free one, None: none.
        tls_cert: The server's PEM certificate, then those of the authorities between
            it and one that clients know: both ports speak TLS alone. None: they speak
            none.
        tls_key: Its private key, in PEM.
        tls_client_ca: PEM certificates, one of which has to vouch for every client's.
            None: clients need none.
        token_file: Lines of ROLE TOKEN [EXPIRES], one of which a caller has to show:
            a viewer reads, a worker pushes too, an admin may do all. None: anybody may
            do anything.
        tokens: The same lines, in place of the file.
        insecure: Whether to listen where other machines reach, although without TLS
            and tokens.
        reflection: Whether to answer gRPC's reflection calls.
        same_host: Whether this user's workers on this host may go past gRPC, over a
            unix socket and shared memory.
        durability: What an applied push outlasts: `none`: nothing; `checkpoint`: the
            server's end, once a checkpoint is saved; `log`: from then on that it is
            acknowledged, the loss of power too.
        data_dir: The folder of checkpoints and log, for this server alone; a server
            that finds some there goes on from them. None: there is none.
        checkpoint_every: When to save a checkpoint: 1000 means after so many steps,
            and those that come while one is saved; "60s" means seconds.
        keep: How many checkpoints stay: 2 or more with a log, which goes back to the
            one before the newest.

    Raises:
        ValueError: A setting is not what it has to be; the message begins with it.
    """

    name: str = "asyncps"
    max_staleness: int | EllipsisType | None = ...
    staleness_policy: str = "drop"
    max_grad_norm: float | None = None
    max_inflight_bytes: int | None = None
    host: str = "127.0.0.1"
    port: int = 7070
    http_port: int | None = None
    tls_cert: str | os.PathLike[str] | None = None
    tls_key: str | os.PathLike[str] | None = None
    tls_client_ca: str | os.PathLike[str] | None = None
    token_file: str | os.PathLike[str] | None = None
    tokens: str = field(default="", repr=False)
    insecure: bool = False
    reflection: bool = False
    same_host: bool = True
    durability: str = "none"
    data_dir: str | os.PathLike[str] | None = None
    checkpoint_every: int | str = "60s"
    keep: int = 3

    @property
    def terms(self) -> Terms:
        """By what pushes are judged."""
        return read_terms(self.staleness_policy, self.max_staleness)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name: expected 1 to 64 letters of A-Za-z0-9._-, got {self.name!r}"
            )
        read_terms(self.staleness_policy, self.max_staleness)
        bound = self.max_grad_norm
        if bound is not None and not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"max_grad_norm: expected more than 0, got {bound}")
        room = self.max_inflight_bytes
        if room is not None and room < 1:
            raise ValueError(f"max_inflight_bytes: expected 1 or more, got {room}")
        for name, port in (("port", self.port), ("http_port", self.http_port)):
            if port is not None and not 0 <= port < 2**16:
                raise ValueError(f"{name}: expected 0 to 65535, got {port}")
        self._require_safety()
        self._require_durability()

    def _require_safety(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ValueError(f"{missing}: expected beside the other one, got none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_cert: expected beside tls_client_ca, got none")
        has_tokens = self.token_file is not None or bool(self.tokens)
        if self.insecure or is_loopback(self.host):
            return
        lacking = [
            what
            for what, is_there in (
                ("TLS (--tls-cert and --tls-key)", self.tls_cert is not None),
                ("tokens (--token-file)", has_tokens),
            )
            if not is_there
        ]
        if lacking:
            raise ValueError(
                f"host: expected a loopback address, got {self.host}; beyond it, "
                f"without {' and '.join(lacking)}, anybody could read and change the "
                "variables, which has to be said aloud: --insecure, or insecure=True"
            )

    def _require_durability(self) -> None:
        if self.durability not in DURABILITIES:
            raise ValueError(
                f"durability: expected one of {', '.join(DURABILITIES)}, "
                f"got {self.durability!r}"
            )
        if self.durability != "none" and self.data_dir is None:
            raise ValueError(
                f"data_dir: expected a folder for durability {self.durability}, "
                "got none"
            )
        if self.durability == "none" and self.data_dir is not None:
            raise ValueError(
                "durability: expected checkpoint or log beside a data_dir, got none"
            )
        if self.data_dir == "":  # It would be the folder that one happens to be in.
            raise ValueError("data_dir: expected the name of a folder, got ''")
        Every.parse(self.checkpoint_every)
        if self.keep < 1:
            raise ValueError(f"keep: expected 1 checkpoint or more, got {self.keep}")
        if self.keep < 2 and self.durability == "log":
            raise ValueError(
                "keep: expected 2 checkpoints or more, as a log goes back to the one "
                f"before the newest, got {self.keep}"
            )
