"""A table with a row for each file, written while the work goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hf_any3d.atomic_files import atomic_write, claim, read_json, write_json
from hf_any3d.many_files.runs import Done


class Table:
    """The rows of a run, one line of JSON each, appended as they come; a table of another type is written at the end.

    Args:
        output: The table.
        identity: What is done; a table of other work is refused.
        write: Writes rows to a file; None if the lines of JSON are the table.
    """

    def __init__(
        self,
        output: Path,
        identity: dict[str, Any],
        write: Callable[[Path, Iterable[dict[str, Any]]], None] | None = None,
    ):
        self.output, self.identity, self.write = output, identity, write
        self.path = output if write is None else output.with_name(f".{output.name}.jsonl")

    def claimed(self) -> AbstractContextManager:
        """Lock the table; see `Output`."""
        return claim(self.output.with_name(f".{self.output.name}.lock"), self.output)

    def begin(self) -> None:
        """Note what the rows are.

        Raises:
            ValueError: The table is of other work.
        """
        job_file = self.output.with_name(f".{self.output.name}.job.json")
        known = read_json(job_file)
        exists = self.output.exists() or self.path.exists()
        # Through JSON, as the stored one went: tuples come back as lists.
        if exists and known != json.loads(json.dumps(self.identity)):
            was = f"was made by {_difference(known, self.identity)}" if known else "exists already"
            raise ValueError(f"--output: {self.output} {was}; expected a new name, or the same command to continue it")
        write_json(job_file, self.identity)

    def resume(self, stamps: Mapping[str, str], retry: bool) -> set[str]:
        """Keep the rows of unchanged files, and return the names of these files; see `Output`."""
        kept: set[str] = set()
        if not self.path.exists():
            return kept
        with atomic_write(self.path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            # Written anew, which also drops a last line that was cut off.
            for row in self._rows():
                name = str(row.get("file"))
                is_current = stamps.get(name, "") == row.get("stamp") and name not in kept
                if is_current and not (retry and "error" in row):
                    kept.add(name)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return kept

    def add(self, result: dict[str, Any], stamps: Mapping[str, str]) -> None:
        """Append a row; it is on disk when the next one is computed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened and closed for each row, so that no row waits in a buffer when the process is killed.
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**result, "stamp": stamps[result["file"]]}, ensure_ascii=False) + "\n")

    def finish(self, files: Iterable[str]) -> Done:
        """Write the table, and count its rows."""
        errors = ["error" in row for row in self._rows()]
        if self.write is not None:
            with atomic_write(self.output) as unfinished:
                self.write(unfinished, ({key: row[key] for key in row if key != "stamp"} for row in self._rows()))
        return Done(len(errors), sum(errors))

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


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Describe in what a table is another one."""
    if known.get("model") != wanted.get("model") and known.get("settings") == wanted["settings"]:
        return f"other weights or files of the model {wanted['settings']['model']}"
    return f"other settings or from other files ({known})"
