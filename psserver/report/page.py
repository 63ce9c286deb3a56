"""A report of a run: one HTML file that needs nothing else."""

import json
import math
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from psserver.metrics import jsonlines
from psserver.report.figures import figures
from psserver.report.samples import Tell, read
from psserver.report.starts import gather

_STYLES = ("uPlot.min.css", "page.css", "report.css")
_SCRIPTS = ("uPlot.iife.min.js", "charts.js", "report.js")


def write(path: Path, output: Path, targets: Sequence[float], tell: Tell) -> None:
    """Write the report of a metrics file.

    Args:
        path: The file that `psserver serve --metrics-file` was given; the full ones
            beside it are read too.
        output: Where the report goes.
        targets: Losses to say of when they were reached; none: a few round ones.
        tell: Is told of every line that is damaged.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: There is no sample, a target is no finite number, or the report
            would take the place of a metrics file.
    """
    for target in targets:
        if not math.isfinite(target):
            raise ValueError(f"target: expected a finite loss, got {target}")
    if output.exists() and any(map(output.samefile, jsonlines.files(path))):
        raise ValueError(f"output: expected no metrics file, got {output}")
    data = {"file": path.name, **figures(gather(read(path, tell)), targets)}
    _put(output, _page(data))


def _put(output: Path, page: str) -> None:
    """Write it whole or not at all; what is no file, as a pipe, cannot be replaced."""
    if output.exists() and not output.is_file():
        output.write_text(page, encoding="utf-8")
        return
    place = output.resolve()  # A link stays one.
    aside = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)


def _page(data: object) -> str:
    # Within a script nothing but "<" could end it, and JSON can spell that otherwise.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return Template(_load("report.html")).substitute(
        licence=_load("uPlot.LICENSE"),
        styles="\n".join(map(_load, _STYLES)),
        scripts="\n".join(map(_load, _SCRIPTS)),
        data=text,
    )


def _load(name: str) -> str:
    return (files("psserver") / "web" / "files" / name).read_text(encoding="utf-8")
