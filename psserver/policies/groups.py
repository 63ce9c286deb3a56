"""The policy by which some variables bear less staleness than others."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from psserver.policies.policy import Policy
from pswire.patterns import fits

_MOST = 64  # Groups: every push may be held against each.
_MOST_LETTERS = 1024


@dataclass(frozen=True, slots=True)
class Groups(Policy):
    """Apply a push without the variables that it is too stale for.

    An embedding, say, whose rows few pushes share, bears more than a layer that all of
    them change. Every variable is of the first group whose pattern is like its name; of
    a variable of none the hard limit alone decides.

    Attributes:
        limits: (pattern, limit) of each group, 64 at most. A pattern is a name, or has
            `*` for any letters and `?` for one; the limit is the largest staleness
            applied, in steps, inclusive, and a negative one leaves the group as it is.

    Raises:
        ValueError: There is no group or too many, or a pattern is empty or there twice,
            or is no text to be shown.

    References:
        None: it is this project's own.
    """

    name: ClassVar[str] = "groups"

    limits: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.limits) <= _MOST:
            raise ValueError(
                f"expected {self.form()}, 1 to {_MOST} groups, got {len(self.limits)}"
            )
        seen: set[str] = set()
        for pattern, _ in self.limits:
            if not pattern or pattern in seen:
                raise ValueError(
                    f"pattern: expected each once, and none empty, got {pattern!r}"
                )
            if len(pattern) > _MOST_LETTERS or not pattern.isprintable():
                raise ValueError(
                    f"pattern: expected at most {_MOST_LETTERS} printable letters, "
                    f"got {pattern[:_MOST_LETTERS]!r}"
                )
            seen.add(pattern)

    def left_out(self, staleness: int, names: Collection[str]) -> frozenset[str]:
        if staleness <= min(limit for _, limit in self.limits):
            return frozenset()
        return frozenset(name for name in names if self._is_over(staleness, name))

    def idle(self, names: Iterable[str]) -> list[str]:
        used = set(map(self._group, names))
        return [group[0] for group in self.limits if group not in used]

    def _is_over(self, staleness: int, name: str) -> bool:
        group = self._group(name)
        return group is not None and staleness > group[1]

    def _group(self, name: str) -> tuple[str, int] | None:
        return next((group for group in self.limits if fits(group[0], name)), None)

    @property
    def spec(self) -> str:
        groups = ",".join(f"{pattern}={limit}" for pattern, limit in self.limits)
        return f"{self.name}:{groups}"

    @classmethod
    def form(cls) -> str:
        return f"{cls.name}:PATTERN=LIMIT,..."

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        return cls(tuple(map(_group, arguments)))


def _group(text: str) -> tuple[str, int]:
    pattern, _, limit = text.rpartition("=")  # A name may have one of its own.
    try:
        return pattern.strip(), int(limit)
    except ValueError:
        raise ValueError(
            f"{pattern}: expected PATTERN=LIMIT, the limit in whole steps, got {text!r}"
        ) from None
