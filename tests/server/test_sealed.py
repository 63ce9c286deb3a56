"""JSON with a digest of itself."""

import json
import math
from hashlib import sha256
from typing import Any

import pytest

from psserver.durability import sealed

DATA: dict[str, Any] = {"a": 1, "ü\n": [0.1, None, {"b": "🐌"}], "c": {}}


def test_it_is_json_a_field_a_line() -> None:
    """Any program reads it; the digest comes last."""
    text = sealed.encode(DATA)

    got = json.loads(text)
    assert list(got) == [*DATA, "sha256"]
    assert got == {**DATA, "sha256": got["sha256"]} == sealed.decode(text)
    assert text.count(b"\n") == len(got) + 2


def test_any_other_byte_is_found() -> None:
    """Each bit of each byte; and every byte that is missing, or too many."""
    text = sealed.encode(DATA)
    flipped = [
        text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
        for at in range(len(text))
        for bit in range(8)
    ]
    cut = [text[:at] for at in range(len(text))]

    for changed in (*flipped, *cut, text + b"\n", text + text):
        with pytest.raises(ValueError, match="expected to end with the sha256"):
            sealed.decode(changed)


def test_what_json_cannot_say_is_not_said() -> None:
    """Other programs could not read it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed.encode({"loss": math.nan})


def test_a_text_of_very_many_levels_is_refused() -> None:
    """Although its digest is right, as anybody can make it."""
    text = sealed.encode({"a": "LEVELS"})
    head = text[: text.index(b'"sha256": "') + 11]
    head = head.replace(b'"LEVELS"', b"[" * 10**6 + b"]" * 10**6)
    deep = head + sha256(head).hexdigest().encode() + b'"\n}\n'

    with pytest.raises(ValueError, match="expected JSON of few levels"):
        sealed.decode(deep)
