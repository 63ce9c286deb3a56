"""A sink that writes the figures as TensorBoard events, over the step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psserver.metrics.recorder import Sample
from psserver.metrics.sparse import Sparse

_FOLDER = "runs"
_FIGURES = (
    *("drop_rate", "recent_drop_rate", "steps_per_s", "loss"),
    *("applied", "dropped"),
)


class Events:
    """Writes to FOLDER/INCARNATION: every start of a server is a run of its own.

    It needs the extra: `pip install "asyncps[tensorboard]"`.
    """

    def __init__(self, folder: str = "") -> None:
        """Look whether there can be events.

        Args:
            folder: Where TensorBoard looks; "" is `runs`.

        Raises:
            ModuleNotFoundError: The extra is not installed.
            OSError: The folder cannot be made.
        """
        try:
            from tensorboardX import event_file_writer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"tensorboard: expected {error.name}, which "
                'pip install "asyncps[tensorboard]" brings, got none'
            ) from error
        # Not its FileWriter: that one's thread would keep what goes wrong to itself.
        self._open = event_file_writer.EventsWriter
        self._folder = Path(folder or _FOLDER).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._sparse = Sparse()

    def write(self, sample: Sample) -> None:
        """Add what is known of the figures, at the sample's step and time."""
        for kept in self._sparse.admit(sample):
            self._add(kept)

    def close(self) -> None:
        """Add the last sample, if it has been held back, and close the file."""
        for kept in self._sparse.rest():
            self._add(kept)
        if self._writer:
            self._writer.close()

    def _add(self, sample: Sample) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if not self._writer:
            folder = self._folder / sample["incarnation"]
            folder.mkdir(exist_ok=True)
            self._writer = self._open(str(folder / "events"))
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in _scalars(sample)
            if value is not None
        ]
        summary = Summary(value=values)
        time, step = sample["time"], sample["step"]
        self._writer.write_event(Event(wall_time=time, step=step, summary=summary))
        self._writer.flush()


def _scalars(sample: Sample) -> Iterator[tuple[str, float | None]]:
    for name in _FIGURES:
        yield name, sample[name]
    yield "staleness_mean", sample["mean_staleness"]
    for worker in sample["workers"]:
        yield f"drop_rate/{worker['name']}", worker["drop_rate"]
