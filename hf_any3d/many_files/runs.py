"""A run over many files: what has a row already is kept, what is left is done; interrupted, it can be continued."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol


class Output(Protocol):
    """Destination of a run's rows, with a record of the files and settings that they belong to."""

    def claimed(self) -> AbstractContextManager:
        """Lock the output against other processes.

        Raises:
            BlockingIOError: Another process writes there.
        """
        ...

    def begin(self) -> None:
        """Note what the rows are.

        Raises:
            ValueError: There are rows of other work, or other files.
        """
        ...

    def resume(self, stamps: Mapping[str, str], retry: bool) -> set[str]:
        """Drop the rows of files that have changed since, with `retry` failed ones too; return the files of the rest.

        Args:
            stamps: The stamps of all files of this run, see `InputFile.stamp`.
            retry: Drop failed rows.
        """
        ...

    def add(self, result: Any, stamps: Mapping[str, str]) -> None:
        """Take a result of the work."""
        ...

    def finish(self, files: Iterable[str]) -> Done:
        """Complete the output, which has a row of each file."""
        ...


class Done(NamedTuple):
    """The rows of an output: how many there are, and how many of them have an error."""

    rows: int
    failed: int


def run(
    output: Output,
    files: Iterable[str],
    stamp_of: Callable[[str], str],
    execute: Callable[[list[str]], Iterable[Any]],
    *,
    retry: bool = False,
) -> tuple[int, Done]:
    """Do what is left of a run; the same call continues an interrupted one.

    Args:
        output: Where the rows go.
        files: Names of the files.
        stamp_of: Returns the stamp of a file.
        execute: Yields the results for the files that have no row; not called if there are none.
        retry: Do failed files again.

    Returns:
        The number of rows that earlier runs wrote, and the rows now.

    Raises:
        BlockingIOError: Another process writes to the output.
        ValueError: The output is of other work.
    """
    with output.claimed():
        output.begin()
        # Stamps are taken before the work, so that a file that changes meanwhile is done again next time.
        stamps = {name: stamp_of(name) for name in files}
        done = output.resume(stamps, retry)
        left = [name for name in stamps if name not in done]
        for result in execute(left) if left else ():
            output.add(result, stamps)
        return len(done), output.finish(stamps)


def cut(files: Sequence[str], size: int) -> list[dict[str, Any]]:
    """Cut a list of files into shards."""
    return [{"files": list(files[start : start + size])} for start in range(0, len(files), size)]
