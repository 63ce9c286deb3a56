"""The list of promises names tests that there are."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PROMISES = (TESTS.parent / "docs" / "guarantees.md").read_text()
_LONGER = "pytest.mark.soak"


def test_every_promise_names_its_proof() -> None:
    """A row without one, or with one that is gone, would prove nothing.

    A proof has a dagger if, and only if, it has a longer run.
    """
    rows = [row for row in PROMISES.splitlines() if re.match(r"\| [A-Z]", row)]

    assert len(rows) > 30
    for row in rows:
        proofs = re.findall(r"`([\w/]+\.py)::(\w+)`( †)?", row)
        assert proofs, row
        for file, name, dagger in proofs:
            tests = _tests(ast.parse((TESTS / file).read_text()))
            assert name in tests, f"{file}::{name}"
            assert tests[name] == bool(dagger), f"{file}::{name}"


def _tests(module: ast.Module) -> dict[str, bool]:
    """Return the functions of a module, and whether each has a longer run."""
    whole = [
        ast.unparse(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return {
        node.name: _LONGER in " ".join([*whole, *map(ast.unparse, node.decorator_list)])
        for node in module.body
        if isinstance(node, ast.FunctionDef)
    }
