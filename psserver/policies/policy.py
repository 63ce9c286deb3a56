"""What every staleness policy answers, and the one that changes nothing."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from psserver.policies.pull import Pull


@dataclass(frozen=True, slots=True)
class Policy:
    """Leaves all to the limit: a push is dropped, or applied as it is.

    Attributes:
        name: What a SPEC begins with.
        paces: Whether it has pulls wait.
        takes_tables: Whether it can be that of variables which are pushed by rows.

    References:
        TensorFlow 1's `contrib.opt.DropStaleGradientOptimizer` does no more.
    """

    name: ClassVar[str] = "drop"
    paces: ClassVar[bool] = False
    takes_tables: ClassVar[bool] = True

    def require_limit(self, limit: int | None) -> None:
        """Check the hard limit that it stands beside.

        Raises:
            ValueError: It cannot work with that; the message begins with max_staleness.
        """

    def factor(self, staleness: int) -> float:
        """Return what an applied push's update is multiplied by.

        Args:
            staleness: The push's, in steps, 0 or more.

        Returns:
            At most 1; 0 where a double cannot tell it from that.
        """
        return 1.0

    def left_out(self, staleness: int, names: Collection[str]) -> frozenset[str]:
        """Return the variables that a push is applied without; all: it is dropped.

        Args:
            staleness: The push's, in steps, 0 or more.
            names: Of the variables that it brings.
        """
        return frozenset()

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return the patterns that no variable goes by.

        Args:
            names: Of all variables that have gradients.
        """
        return []

    def limit(self, recent: Sequence[int]) -> int | None:
        """Return the largest staleness that it would apply now; None: any.

        Args:
            recent: The staleness of the last judged pushes, in steps.
        """
        return None

    def waits_for(self, pull: Pull) -> str | None:
        """Return the session that a pull has to wait for; None: it is granted."""
        return None

    @property
    def pushes_a_step(self) -> int:
        """How many pushes it takes to make a step, which has the mean of them."""
        return 1

    @property
    def spec(self) -> str:
        """The SPEC that `read` makes it of again."""
        values = (getattr(self, field.name) for field in fields(self))
        told = ",".join(repr(value).removesuffix(".0") for value in values)
        return f"{self.name}:{told}" if told else self.name

    @classmethod
    def form(cls) -> str:
        """Return what its SPEC looks like: `hinge:a,b`, say."""
        names = ",".join(field.name for field in fields(cls))
        return f"{cls.name}:{names}" if names else cls.name

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """Make one of a SPEC's arguments.

        Raises:
            ValueError: There are too many or too few, or one is not what it has to be;
                then the message begins with its name.
        """
        wanted = fields(cls)
        if len(arguments) != len(wanted):
            raise ValueError(f"expected {cls.form()}, got {len(arguments)} arguments")
        pairs = zip(wanted, arguments, strict=True)
        return cls(*(_number(f.name, f.type, text) for f, text in pairs))


DROP = Policy()


def _number(name: str, kind: object, text: str) -> float:
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}: expected {noun}, got {text!r}") from None
