"""A run over many files: what has a row already is kept, what is left is done; interrupted, it can be continued."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_any3d.utils.atomic_files import Claim, atomic_write, claim, hidden_path, read_json, write_json


class Done(NamedTuple):
    """The rows of an output: how many there are, and how many of them have an error."""

    rows: int
    failed: int


def run(
    output: Any,
    files: Iterable[str],
    stamp_of: Callable[[str], str],
    execute: Callable[[list[str]], Iterable[Any]],
    *,
    retry: bool = False,
) -> tuple[int, Done]:
    """Do what is left of a run, failed files again with `retry`; the same call continues an interrupted one.

    The output is a `Table`, or `Parts`, or anything else with their `opened`, `resume`, `add` and `finish`.
    `stamp_of` returns the stamp of a file, see `InputFile.stamp`, and `execute` yields the results for the files that
    have no row. Returns the number of rows that earlier runs wrote, and the rows now.
    """
    with output.opened():
        # Stamps are taken before the work, so that a file that changes meanwhile is done again next time.
        stamps = {name: stamp_of(name) for name in files}
        done = output.resume(stamps, retry)
        left = [name for name in stamps if name not in done]
        for result in execute(left) if left else ():
            output.add(result, stamps)
        return len(done), output.finish(stamps)


def lock(output: Path) -> Claim:
    """Lock the table of a run against other processes, which get an error at once."""
    return claim(hidden_path(output, ".lock"), output)


class Table:
    """The rows of a run, one line of JSON each; `write` makes a table of another type of them.

    They are appended as they come, which several processes do in any order, and have that of the files at the end. A
    table of other work, by its `description`, is refused.
    """

    def __init__(
        self,
        output: Path,
        description: dict[str, Any],
        write: Callable[[Path, Iterable[dict[str, Any]]], None] | None = None,
    ):
        self.output = output
        self.description = description
        self.write = write
        self.path = output if write is None else hidden_path(output, ".jsonl")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the table, and note what its rows are; rows of other work are a ValueError."""
        with lock(self.output):
            # What the rows are is noted beside the table, so that rows of other work are not mixed in.
            file = hidden_path(self.output, ".job.json")
            stored = read_json(file)
            # Through JSON, as the stored one went: tuples come back as lists.
            is_other = stored != json.loads(json.dumps(self.description))
            if is_other and (self.output.exists() or self.path.exists()):
                was = f"was made by other settings or from other files ({stored})" if stored else "exists already"
                settings = self.description["settings"]
                before = stored or {}
                if before.get("settings") == settings and before.get("model") != self.description.get("model"):
                    was = f"was made by other weights or files of the model {settings['model']}"
                raise ValueError(
                    f"--output: {self.output} {was}; give a new name, or repeat the same command to continue it"
                )
            write_json(file, self.description)
            yield

    def resume(self, stamps: Mapping[str, str], retry: bool) -> set[str]:
        """Drop the rows of changed files, with `retry` failed ones too, and return the names of the others."""
        kept: set[str] = set()
        if not self.path.exists():
            return kept
        with atomic_write(self.path) as unfinished, open(unfinished, "wb") as file:
            # Written anew, which also drops a last line that was cut off.
            for row in self._rows():
                name = str(row.get("file"))
                # Rows of changed files, of files that are not asked for, and second rows of a file are dropped.
                is_current = stamps.get(name, "") == row.get("stamp") and name not in kept
                if is_current and not (retry and "error" in row):
                    kept.add(name)
                    file.write(_line(row))
        return kept

    def add(self, result: dict[str, Any], stamps: Mapping[str, str]) -> None:
        """Append a row; it is on disk when the next one is computed. It may have a stamp of its own, see `OPEN`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stamp = result.get("stamp", stamps[result["file"]])
        # Opened and closed for each row, so that no row waits in a buffer when the process is killed.
        try:
            with open(self.path, "ab") as file:
                file.write(_line({**result, "stamp": stamp}))
        except OSError as error:
            # A line that was cut off is dropped when the run is continued.
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"{self.output} could not be written ({reason}); rows until here are kept, and the same command "
                "continues",
            ) from error

    def finish(self, files: Iterable[str]) -> Done:
        """Bring the rows into the order of the files, write the table, and count its rows."""
        self._sort(files)
        errors = ["error" in row for row in self._rows()]
        if self.write is not None:
            with atomic_write(self.output) as unfinished:
                self.write(unfinished, ({key: row[key] for key in row if key != "stamp"} for row in self._rows()))
        return Done(len(errors), sum(errors))

    def _sort(self, files: Iterable[str]) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            # Places instead of lines, as features of a million files do not fit into memory.
            places = {}
            place = 0
            for line in file:
                places[json.loads(line)["file"]] = place
                place += len(line)
            names = [name for name in files if name in places]
            # One process writes in this order anyway.
            if names == list(places):
                return
            with atomic_write(self.path) as unfinished, open(unfinished, "wb") as ordered:
                for name in names:
                    file.seek(places[name])
                    ordered.write(file.readline())

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield complete rows; the last one may be cut off by an interruption."""
        if not self.path.exists():
            return
        # A line that was cut off may end in the middle of a character.
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row


def _line(row: Mapping[str, Any]) -> bytes:
    # Lone surrogates of file names that are no UTF-8 become the escapes of JSON.
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
