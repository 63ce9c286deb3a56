"""The list of promises names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PROMISES = (TESTS.parent / "docs" / "guarantees.md").read_text()


def test_every_promise_names_its_proof() -> None:
    """A row without one, or with one that is gone, would prove nothing."""
    rows = [row for row in PROMISES.splitlines() if re.match(r"\| [A-Z]", row)]

    assert len(rows) > 30
    for row in rows:
        proofs = re.findall(r"`([\w/]+\.py)::(\w+)`( †)?", row)
        assert proofs, row
        for file, name, longer in proofs:
            source = (TESTS / file).read_text()
            assert f"\ndef {name}(" in source, f"{file}::{name}"
            assert not longer or "pytest.mark.soak" in source, f"{file}::{name}"
