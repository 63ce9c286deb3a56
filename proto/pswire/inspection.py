"""What a server keeps of a model, as it arrives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

from pswire import body
from pswire.body import Body
from pswire.errors import InternalError
from pswire.layout import MAX_KEPT_NAME_NBYTES, Layout
from pswire.methods import InspectPiece

VARIABLES = "variables/"
"""What a variable's name begins with there, to tell it from slots."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Variables and slots of one step.

    Attributes:
        generation: The history that the step counts in.
        step: How many pushes had been applied, in steps.
        layout: Of all arrays, by their names in checkpoints.
        arrays: Those that were asked for.
    """

    generation: str
    step: int
    layout: Layout
    arrays: Body

    @classmethod
    def read(cls, pieces: Iterator[InspectPiece], names: Sequence[str]) -> Self:
        """Put the answer to an InspectRequest together.

        Args:
            pieces: The answer.
            names: Those in the request.

        Raises:
            InternalError: There is no header.
            ParameterServerError: It is not what its header says.
        """
        first = next(pieces, None)
        if first is None or first.header is None:
            raise InternalError("inspection: expected a header, got none")
        header = first.header
        layout = Layout.from_proto(header.layout, max_name_nbytes=MAX_KEPT_NAME_NBYTES)
        assembly = body.Assembly(layout.chosen(names))
        for piece in chain((first,), pieces):
            assembly.add(piece.offset, piece.data)
        return cls(header.generation, header.step, layout, assembly.finish())
