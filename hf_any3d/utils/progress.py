"""Progress bars, all of which are made here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def progress_bar(
    items: Iterable[Any] | None = None, *, hidden: bool = False, asked: bool = False, **settings: Any
) -> Any:
    """Return a bar of tqdm on stderr that nobody sees but who watches: in a terminal, or in a notebook.

    In a file, lines of bars would stand between those of answers.

    Args:
        items: What is iterated over, if anything.
        hidden: Whether there is no bar in any case.
        asked: Whether somebody asked for it, who gets it wherever stderr goes.
        **settings: Further arguments of `tqdm.auto.tqdm`.
    """
    from tqdm.auto import tqdm

    return tqdm(items, disable=hidden or not (asked or is_watched()), **settings)


def is_watched() -> bool:
    """Return whether somebody sees what is drawn on stderr."""
    # Notebooks show what is written to stderr, which is no terminal there.
    return "ipykernel" in sys.modules or _is_terminal(sys.stderr)


@contextmanager
def bars_put_aside(stream: Any) -> Iterator[None]:
    """Take bars off their line while a line is written to a terminal, and draw them again below it."""
    bars = []
    # Without a bar, tqdm is not imported for this.
    if "tqdm" in sys.modules and _is_terminal(stream):
        for bar in tuple(sys.modules["tqdm"].tqdm._instances):
            # A bar whose delay is not over has not been drawn, nor one that another thread makes just now.
            if hasattr(bar, "start_t") and bar.last_print_t >= bar.start_t + bar.delay:
                bar.clear()
                bars.append(bar)
    yield
    for bar in bars:
        bar.refresh()


def _is_terminal(stream: Any) -> bool:
    return hasattr(stream, "isatty") and stream.isatty()
