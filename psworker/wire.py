"""How a worker's arrays are to travel, as its options say."""

from dataclasses import dataclass
from typing import Self

_WIRE_DTYPES = {
    None: (False, False),
    "bf16": (True, True),
    "bf16:pull": (True, False),
    "bf16:push": (False, True),
}


@dataclass(frozen=True, slots=True)
class Wire:
    """What may be lost of arrays on their way.

    Attributes:
        narrow_pulls: Whether variables of float32 travel as bfloat16.
        narrow_pushes: Whether gradients of float32 do.
        fraction: How many of an array's elements a push sends, over 0 and at most 1;
            None: all.
    """

    narrow_pulls: bool = False
    narrow_pushes: bool = False
    fraction: float | None = None

    @classmethod
    def parse(cls, wire_dtype: str | None, compression: str | None) -> Self:
        """Read the options.

        Args:
            wire_dtype: "bf16", "bf16:pull", "bf16:push" or None.
            compression: "topk:FRACTION" or None.

        Raises:
            ValueError: One is something else.
        """
        if wire_dtype not in _WIRE_DTYPES:
            known = ", ".join(name for name in _WIRE_DTYPES if name)
            raise ValueError(f"wire_dtype: expected one of {known}, got {wire_dtype!r}")
        return cls(*_WIRE_DTYPES[wire_dtype], _fraction(compression))


def _fraction(compression: str | None) -> float | None:
    if compression is None:
        return None
    name, _, number = compression.partition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = 0.0
    if name != "topk" or not 0 < fraction <= 1:
        raise ValueError(
            "compression: expected topk:FRACTION with a fraction over 0 and at most 1, "
            f"as in topk:0.01, got {compression!r}"
        )
    return fraction
