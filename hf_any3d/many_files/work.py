"""Work of one process on files: models are opened once, and each file gets a row, with answers or its error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from hf_any3d.data.files.input_files import FILE_ERRORS, Cloud, InputFile, with_name
from hf_any3d.utils.atomic_files import is_full
from hf_any3d.utils.messages import one_line

OPEN = "open"
"""Stamp of a row that the next call does again, whatever the file's own stamp is."""

_SHOWN: dict[Any, int] = {}  # what has been warned of

Answer = Callable[[list[Cloud]], list[dict[str, Any]]]
"""Function of some clouds that returns the row of each, which may be `{"error": …}`."""


class Shard(NamedTuple):
    """Files that a process gets at a time, and the name of what it may write for them."""

    name: str
    files: tuple[str, ...]


class Work(Protocol):
    """The work of one process; it is pickled."""

    def open(self) -> Callable[[Shard], Iterable[Any]]:
        """Open models and return the function from a shard to its results."""
        ...

    def given_up(self, shard: Shard, error: str) -> Iterable[Any]:
        """Return the results of a shard of one file that has ended the processes that had it.

        Nothing is known about the file itself, so its row gets the stamp `OPEN`.
        """
        ...


def cut(files: Sequence[str], size: int, first: int = 0) -> list[Shard]:
    """Cut a list of files into shards, which are numbered from `first` on."""
    starts = range(0, len(files), size)
    return [Shard(f"{number:05d}", tuple(files[start : start + size])) for number, start in enumerate(starts, first)]


def answer_files(
    files: Sequence[InputFile],
    answer: Answer,
    batch_size: int = 1,
    *,
    read: Callable[[InputFile], Cloud] = InputFile.read,
    raise_errors: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield `{"file": …, **answer}` or `{"file": …, "error": …}` for each file, in their order, with its `warnings`.

    If `answer` raises an error for several clouds, it is called for each alone. With `raise_errors` the error of a
    file is raised.
    """
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        # By number, since unreadable files get their rows at once and all others together.
        rows: dict[int, dict[str, Any]] = {}
        clouds: dict[int, Cloud] = {}
        for number, file in enumerate(batch):
            try:
                clouds[number] = read(file)
            except FILE_ERRORS as error:
                if raise_errors:
                    raise
                rows[number] = {"error": with_name(file.name, error)}
        for number, row in zip(clouds, _answer(answer, list(clouds.values()), raise_errors), strict=True):
            notes = clouds[number].warnings
            rows[number] = row | ({"warnings": notes} if notes else {})
        # In the order of the files again, whether they were read or not.
        for number, file in enumerate(batch):
            yield {"file": file.name, **rows[number]}


def _answer(answer: Answer, clouds: list[Cloud], raise_errors: bool) -> list[dict[str, Any]]:
    if not clouds:
        return []
    try:
        with warnings.catch_warnings(record=True) as caught:
            rows = answer(clouds)
    except FILE_ERRORS as error:
        # No file is at fault, and none is done: the same command continues once there is room.
        if is_full(error):
            raise
        # One bad cloud may spoil a batch, so each is tried alone to find it.
        if len(clouds) > 1:
            return [row for cloud in clouds for row in _answer(answer, [cloud], raise_errors)]
        text = with_name(clouds[0].name, error)
        # An error that names its file already is kept as it is.
        if raise_errors and text == one_line(error):
            raise
        if raise_errors:  # an error about a cloud that was read does not know its file
            raise ValueError(text) from error
        return [{"error": text}]
    for warning in caught:
        message: Any = warning.message
        # Those of other categories, `ModelWarning` among them, are not about a file.
        if warning.category is not UserWarning:
            # Python shows one with its registry once, and not for each batch.
            warnings.warn_explicit(message, warning.category, warning.filename, warning.lineno, registry=_SHOWN)
        elif len(clouds) == 1:
            clouds[0].warnings.append(with_name(clouds[0].name, message))
        else:
            # The pipeline does not say which of the clouds it means.
            names = ", ".join(cloud.name for cloud in clouds)
            clouds[0].warnings.append(f"one of {names}: {one_line(message)}")
    return rows


class Opened(NamedTuple):
    """A function of clouds, how many it takes at a time, and further columns that are read for it."""

    answer: Answer
    batch_size: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowsWork:
    """Work whose results are the rows of `answer_files`.

    `open_answer` opens the models and returns the fields of `Opened`. Names are relative to
    `folder`, where the run was started; `given` is standard input, which is read in one process alone. With
    `are_copied`, `open_answer` writes a labeled copy of each file; `file_type` is that of all.
    """

    open_answer: Callable[[], tuple[Answer, int] | Opened]
    folder: str = field(default_factory=os.getcwd)
    given: Mapping[str, InputFile] = field(default_factory=dict)
    are_copied: bool = False
    file_type: str | None = None

    def open(self) -> Callable[[Shard], Iterator[dict[str, Any]]]:
        """Open the models and return the function from a shard to its rows."""
        # Names are relative to the folder of the program, and a process may start elsewhere.
        os.chdir(self.folder)
        opened = Opened(*self.open_answer())  # pyright: ignore[reportArgumentType]  two or three of its fields

        def rows(shard: Shard) -> Iterator[dict[str, Any]]:
            # Standard input cannot be opened by its name.
            files = [self.given.get(name, InputFile(name, None, self.file_type)) for name in shard.files]
            files = [replace(file, columns=opened.columns, is_copied=self.are_copied) for file in files]
            return answer_files(files, opened.answer, opened.batch_size)

        return rows

    def given_up(self, shard: Shard, error: str) -> list[dict[str, Any]]:
        """Return the row of a file that ends processes."""
        return [{"file": shard.files[0], "error": error, "stamp": OPEN}]
