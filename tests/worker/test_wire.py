"""What the options for the wire say, and what they may not."""

import re

import pytest

from psworker.wire import Wire


@pytest.mark.parametrize(
    ("wire_dtype", "compression", "wire"),
    [
        (None, None, Wire(narrow_pulls=False, narrow_pushes=False, fraction=None)),
        ("bf16", None, Wire(narrow_pulls=True, narrow_pushes=True)),
        ("bf16:pull", None, Wire(narrow_pulls=True, narrow_pushes=False)),
        ("bf16:push", None, Wire(narrow_pulls=False, narrow_pushes=True)),
        (None, "topk:0.01", Wire(fraction=0.01)),
        (None, "topk:1", Wire(fraction=1.0)),
        (None, "topk:1e-3", Wire(fraction=0.001)),
        ("bf16", "topk:0.5", Wire(True, True, 0.5)),
    ],
)
def test_the_options_are_read(
    wire_dtype: str | None, compression: str | None, wire: Wire
) -> None:
    """Nothing is narrowed and nothing left out unless it is asked for."""
    assert Wire.parse(wire_dtype, compression) == wire


@pytest.mark.parametrize(
    "wire_dtype", ["", "bf16:", "bf16:both", "BF16", "bfloat16", "f32", "bf16:pull "]
)
def test_another_wire_dtype_is_refused(wire_dtype: str) -> None:
    """With all that would do."""
    text = f"wire_dtype: expected one of bf16, bf16:pull, bf16:push, got {wire_dtype!r}"

    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Wire.parse(wire_dtype, None)


@pytest.mark.parametrize(
    "compression",
    [
        *("", "topk", "topk:", "topk:x", "topk:0.1:2", "TOPK:0.1", "top:0.1", "0.1"),
        *("topk:0", "topk:-0.1", "topk:1.01", "topk:nan", "topk:inf", "topk:1e-400"),
    ],
)
def test_another_compression_is_refused(compression: str) -> None:
    """A fraction of nothing would never send anything, one over 1 cannot be."""
    text = (
        "compression: expected topk:FRACTION with a fraction over 0 and at most 1, "
        f"as in topk:0.01, got {compression!r}"
    )

    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Wire.parse("bf16", compression)
