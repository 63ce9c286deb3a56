"""A network that loses messages, doubles them, and brings them in any order."""

from random import Random
from typing import Generic, TypeVar

Message = TypeVar("Message")

_LOST = 0.05
_DOUBLED = 0.05
_LASTS = 300


class Network(Generic[Message]):
    """What is on its way."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._on_its_way: list[tuple[int, Message]] = []
        self._clock = 0

    def __len__(self) -> int:
        return len(self._on_its_way)

    def send(self, message: Message) -> None:
        self._on_its_way.append((self._clock, message))

    def receive(self) -> Message | None:
        """Return a message, whichever comes next; None: there is none."""
        self._clock += 1
        if not self._on_its_way:
            return None
        messages, at = self._on_its_way, self._random.randrange(len(self))
        messages[at], messages[-1] = messages[-1], messages[at]
        sent, message = messages[-1]
        chance = self._random.random()
        if chance > _DOUBLED:
            messages.pop()
        is_lost = chance > 1 - _LOST or self._clock - sent > _LASTS
        return None if is_lost else message

    def cut(self) -> None:
        """Lose all messages."""
        self._on_its_way.clear()
