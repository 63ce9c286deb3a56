"""The table of what is compared: who trains, and the options of every row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from psserver import rulespec

_WORKERS_OWN = {"--on-drop"}
"""The options of `psworker run`; the others are those of `psserver serve`."""


@dataclass(frozen=True, slots=True)
class Group:
    """One table of the document.

    Attributes:
        workers: How many train.
        slowdown: How often as long the last of them takes for a gradient.
        rule: The options that choose it, for all rows.
        rows: What else is typed, one row each.
    """

    workers: int
    slowdown: int
    rule: str
    rows: tuple[str, ...]

    def smaller(self, workers: int) -> Self:
        """Return the same with no more workers than that."""
        return replace(self, workers=min(workers, self.workers))


def _limits(*limits: int) -> tuple[str, ...]:
    return tuple(f"--max-staleness {limit}" for limit in (*limits, "off"))


_LIMITS = _limits(0, 1, 2, 4, 8, 12, 16, 32)
_ADAM = "--rule adam -a learning_rate=2e-3"
_MOMENTUM = "--rule sgd -a learning_rate=0.05 -a momentum=0.9"

GROUPS = {
    "4-equal": Group(4, 1, _ADAM, _LIMITS),
    "4-unequal": Group(4, 4, _ADAM, _LIMITS),
    "8-equal": Group(8, 1, _ADAM, _LIMITS),
    "8-unequal": Group(8, 4, _ADAM, _LIMITS),
    "momentum": Group(4, 1, _MOMENTUM, _limits(0, 1, 2, 4, 8)),
    "starvation": Group(
        *(4, 4, _ADAM),
        (
            "--max-staleness 8",
            "--max-staleness 8 --on-drop retry",
            "--max-staleness 8 --on-drop requeue",
            "--max-staleness 16",
            "--max-staleness off --staleness-policy adaptive:0.9,2,32",
            "--max-staleness off --staleness-policy adaptive:0.99,2,32",
        ),
    ),
    "staleness": Group(
        *(8, 4, _MOMENTUM),
        (
            "--max-staleness 8",
            "--max-staleness off",
            "--max-staleness off -a learning_rate=0.01",
            "--max-staleness off --staleness-policy inverse",
            "--max-staleness off --staleness-policy polynomial:0.5",
            "--max-staleness off --staleness-policy hinge:10,4",
            "--max-staleness off --staleness-policy exponential:0.1",
        ),
    ),
}
"""By the name that the document has for them."""


def kind(group: Group, row: str) -> str:
    """Return the options of a row, its rule's too, whatever their numbers are."""
    return re.sub(r"\d[\d.e-]*", "N", f"{group.rule} {row}")


@dataclass(frozen=True, slots=True)
class Options:
    """What options mean to the library.

    Attributes:
        rule: The rule's name.
        arguments: Its arguments.
        server: The settings of `psserver.Server`.
        training: Those of the worker's loop.
    """

    rule: str
    arguments: Mapping[str, Any]
    server: Mapping[str, Any]
    training: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read options that have a value each; of an argument the last one counts.

        Raises:
            KeyError: No rule is named.
            ValueError: There is an option without a value.
        """
        arguments: dict[str, Any] = {}
        server: dict[str, Any] = {}
        training: dict[str, Any] = {}
        words = iter(text.split())
        for option, value in zip(words, words, strict=True):
            if option == "-a":
                arguments |= rulespec.parse_arguments([value])
                continue
            settings = training if option in _WORKERS_OWN else server
            settings[option.removeprefix("--").replace("-", "_")] = _read(value)
        return cls(server.pop("rule"), arguments, server, training)


def _read(value: str) -> int | str | None:
    if value == "off":
        return None
    return int(value) if value.isdecimal() else value
