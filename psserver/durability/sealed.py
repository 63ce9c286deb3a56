"""JSON that tells whether it is whole: its last field is the digest of all before."""

import json
from hashlib import sha256
from typing import Any

_LAST = b',\n "sha256": "'
_END = b'"\n}\n'
_NBYTES_FROM_DIGEST = 2 * sha256().digest_size + len(_END)


def encode(data: dict[str, Any]) -> bytes:
    """Write an object, of one field or more, a line each.

    Raises:
        ValueError: A number is NaN or infinite, which JSON has no way to say.
    """
    # Line by line: with an indent of its own, the library takes four times as long.
    fields = (
        f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
        for name, value in data.items()
    )
    return _close(b"{\n " + ",\n ".join(fields).encode() + _LAST)


def decode(text: bytes) -> dict[str, Any]:
    """Read what `encode` has written, digest and all.

    Raises:
        ValueError: A byte of it is another.
    """
    head = text[:-_NBYTES_FROM_DIGEST]
    if _close(head) != text:
        raise ValueError("expected to end with the sha256 of all before, got another")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON of few levels, got very many") from error


def _close(head: bytes) -> bytes:
    return head + sha256(head).hexdigest().encode() + _END
