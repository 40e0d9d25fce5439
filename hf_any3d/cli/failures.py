"""How commands fail: one line on stderr that says what was wrong, and exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from hf_any3d.messages import one_line, say


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn errors in what the user gave into a line on stderr; others keep their traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        tell(error)
        raise typer.Exit(1) from None


def tell(error: Exception | str) -> None:
    """Print an error on stderr."""
    say(f"error: {one_line(error)}", is_error=True)
