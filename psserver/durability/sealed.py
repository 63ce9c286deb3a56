"""JSON that tells whether it is whole: its last field is the digest of all before."""

import json
from hashlib import sha256
from typing import Any

_FIELD = b',\n "sha256": "'
_END = b'"\n}\n'
_NBYTES_FROM_DIGEST = 2 * sha256().digest_size + len(_END)


def encode(data: dict[str, Any]) -> bytes:
    """Write an object of one field or more; NaN and infinities are none of JSON's."""
    text = json.dumps(data, indent=1, allow_nan=False)
    return _close(text.encode().removesuffix(b"\n}") + _FIELD)


def decode(text: bytes) -> dict[str, Any]:
    """Read what `encode` has written, digest and all.

    Raises:
        ValueError: A byte of it is another.
    """
    head = text[:-_NBYTES_FROM_DIGEST]
    if not head.endswith(_FIELD) or _close(head) != text:
        raise ValueError("expected to end with the sha256 of all before, got another")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON of few levels, got very many") from error


def _close(head: bytes) -> bytes:
    return head + sha256(head).hexdigest().encode() + _END
