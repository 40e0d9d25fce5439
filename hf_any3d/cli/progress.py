"""Progress of commands: a bar or a message, once it takes longer than somebody waits without one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_any3d.cli.errors import print_note
from hf_any3d.utils.progress import progress_bar

# Seconds until a bar or a message about progress appears.
PATIENCE = 2.0


def hide_bars_of_datasets() -> None:
    """Leave out the bars of datasets in a log file, where each step would be a line."""
    if not sys.stderr.isatty():
        import datasets

        datasets.disable_progress_bars()


def progress(total: int | None, unit: str, *, show: bool = True) -> Any:
    """Return a bar that appears after two seconds."""
    return progress_bar(hidden=not show, total=total, unit=unit, delay=PATIENCE, leave=False)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Print what is being done on stderr if it takes more than two seconds and someone is watching."""
    timer = threading.Timer(PATIENCE, print_note, [f"{text} …"])
    # A program that ends meanwhile does not wait for it.
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
