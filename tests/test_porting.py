"""The code of docs/porting.md, run as it stands there."""

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parent.parent / "docs" / "porting.md"


def test_the_code_for_whoever_comes_from_tensorflow_runs() -> None:
    """One block after another, as one script; it holds its own assertions."""
    text = DOCUMENT.read_text()
    codes = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}

    try:
        for code in codes:
            exec(compile(code, DOCUMENT.name, "exec"), names)
    finally:
        names["client"].close()
        names["server"].stop()

    # What a script said stands before each, and is not run.
    assert len(codes) == text.count("\n```py\n") + 1


def test_every_row_of_the_table_leads_to_its_section() -> None:
    """A row without before and after would be a promise."""
    text = DOCUMENT.read_text()

    linked = re.findall(r"^\| \[.*?\]\(#(.*?)\)", text, re.MULTILINE)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)

    assert len(linked) >= 7
    assert {*linked} == {title.lower().replace(" ", "-") for title in titles}
    for section in text.split("\n## ")[1:]:
        assert "```py\n" in section
        assert "```python\n" in section
