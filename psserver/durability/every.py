"""How often checkpoints are saved."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Every:
    """A number of steps, or of seconds.

    Attributes:
        steps: Save after so many; None: the clock decides.
        seconds: Save after so long, if there was a step; None: the steps decide.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: int | str) -> Self:
        """Read `1000`, which is steps, or `60s`.

        Raises:
            ValueError: It is neither.
        """
        number = str(text).removesuffix("s")
        try:
            every = (
                cls(seconds=float(number))
                if number != str(text)
                else cls(steps=int(number))
            )
        except ValueError:
            every = cls()
        if not 0 < (every.steps or every.seconds or 0) < math.inf:
            raise ValueError(
                "checkpoint_every: expected steps as in 1000, or seconds as in 60s, "
                f"got {text!r}"
            )
        return every
