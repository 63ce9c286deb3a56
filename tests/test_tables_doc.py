"""The code of docs/tables.md, run as it stands there."""

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parent.parent / "docs" / "tables.md"


def test_the_code_about_tables_runs() -> None:
    """One block after another, as one script; it holds its own assertions."""
    codes = re.findall(
        r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}

    for code in codes:
        exec(compile(code, DOCUMENT.name, "exec"), names)

    assert len(codes) == 2
