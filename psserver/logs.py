"""The lines of the server's log: for people, or a JSON object each."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

STYLES = ("human", "json")

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def configure(style: str, name: str) -> None:
    """Let all that is logged come out on stderr.

    Args:
        style: One of `STYLES`.
        name: The server's, which every JSON object has.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(name) if style == "json" else _Human())
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(style == "json")
    logging.getLogger("psserver").setLevel(logging.INFO)


def printable(text: str) -> str:
    """Return a text that can neither end its line nor steer a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class _Human(logging.Formatter):
    """Time, logger, printable text."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class _Json(logging.Formatter):
    """What every line has, then what the event tells of itself."""

    def __init__(self, server: str) -> None:
        super().__init__()
        self._server = server

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "server": self._server,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": "other",  # Logged by a library, which has no names for events.
            "message": record.getMessage(),
        }
        told = vars(record).items()
        line |= {name: value for name, value in told if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _utc(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='milliseconds')}Z"
