"""The policy by which some variables bear less staleness than others."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

from psserver.policies.policy import Policy
from pswire.patterns import fits

_MOST = 64  # Groups: every push may be held against each.
_MOST_LETTERS = 1024

_Group = tuple[str, int]


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

    limits: tuple[_Group, ...]

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
        groups = _by_name(self.limits)
        return frozenset(
            name for name in names if (of := groups[name]) and staleness > of[1]
        )

    def idle(self, names: Iterable[str]) -> list[str]:
        used = set(map(_by_name(self.limits).__getitem__, names))
        return [group[0] for group in self.limits if group not in used]

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


class _ByName(dict[str, _Group | None]):
    """The group of each variable; None: it is of none."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        super().__init__()
        self._groups = groups

    def __missing__(self, name: str) -> _Group | None:
        group = next((group for group in self._groups if fits(group[0], name)), None)
        self[name] = group
        return group


@lru_cache(maxsize=8)
def _by_name(groups: tuple[_Group, ...]) -> _ByName:
    """Return what finds a name's group; it remembers each: thousands take long."""
    return _ByName(groups)


def _group(text: str) -> _Group:
    pattern, _, limit = text.rpartition("=")  # A name may have one of its own.
    try:
        return pattern.strip(), int(limit)
    except ValueError:
        raise ValueError(
            f"{pattern}: expected PATTERN=LIMIT, the limit in whole steps, got {text!r}"
        ) from None
