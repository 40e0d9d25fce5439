"""How commands fail: one line on stderr that says what was wrong, and exit code 1."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from hf_any3d.messages import one_line, say


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn errors in what the user gave into a line on stderr; others keep their traceback.

    With `ANY3D_TRACEBACK=1` the line follows the traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ANY3D_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        tell(error)
        raise typer.Exit(1) from None


def tell(error: Exception | str) -> None:
    """Print an error on stderr."""
    say(f"error: {one_line(error)}", is_error=True)
