"""What the machine is, and the packages, as a result names them."""

import os
import platform
from importlib.metadata import version


def describe() -> str:
    """Return a line on both."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "grpcio", "numpy"))
    return f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {packages}"
