"""The time of all that is simulated."""


class Clock:
    """Stands in for `time`: no two moments are the same.

    Attributes:
        now: In seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now


CLOCK = Clock()
"""The one that all use."""
