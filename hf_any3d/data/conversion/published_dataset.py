"""What is known of a published dataset before any of its files is read."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel

OPEN_LICENCES = frozenset(
    {
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "mit",
        "odbl",
        "odc-by",
        "pddl",
    }
)
"""Licences, as the hub names them, under which anybody may pass the data on."""


@dataclass(frozen=True)
class Licence:
    """Under which terms data may be used.

    Attributes:
        name: the hub's identifier, or "other" for terms of their own.
        terms: what they say, in a sentence; for "other".
        link: where they can be read.
    """

    name: str
    terms: str = ""
    link: str = ""

    def __str__(self) -> str:
        return self.name if self.name != "other" else f"other: {self.terms} {self.link}".strip()


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset.

    Attributes:
        name: its name in the catalogue.
        description: what it holds, in a sentence or two.
        homepage: its authors' page.
        licence: its terms.
        citation: BibTeX.
        expected_counts: variant -> split -> number of clouds in the published files. A variant or split that is not
            named has no fixed number.
        origin: where to get the files: address, form, login.
        layout: the tree of files as published, one line each, as it is shown to people who lack them.
        class_names: names of the classes, in the order of the published labels; empty when there are none.
        revision: raised when the rows made from the same files change, so that caches are made anew.
    """

    name: str
    description: str
    homepage: str
    licence: Licence
    citation: str
    expected_counts: Mapping[str, Mapping[str, int]]
    origin: str
    layout: str
    class_names: tuple[str, ...] = ()
    revision: int = field(default=1, kw_only=True)

    def class_label(self) -> ClassLabel:
        """The feature of the column `label`."""
        return ClassLabel(names=list(self.class_names))

    def root(self, data_dir: str | os.PathLike | None) -> Path:
        """Check that there is a folder.

        Args:
            data_dir: what the caller gave.

        Raises:
            ValueError: None; the text says where the files are to be had.
            FileNotFoundError: no such folder.
        """
        if data_dir is None:
            raise ValueError(
                f"data_dir is None; expected the folder with the files of {self.name}. {self.how_to_get()}"
            )
        root = Path(data_dir)
        if not root.is_dir():
            raise self.not_found(f"{root}: no such folder")
        return root

    def require(self, paths: Iterable[Path], root: Path) -> None:
        """Raise FileNotFoundError, which says where the files are to be had, unless all `paths` exist."""
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise self.not_found(f"{root}: {_listed(missing, root)}")

    def not_found(self, what: str) -> FileNotFoundError:
        """An error that says what is missing, where it is to be had and where it is expected."""
        return FileNotFoundError(f"{what}. {self.how_to_get()}")

    def how_to_get(self) -> str:
        """Say where the files are to be had and how they are to lie."""
        return f"{self.origin}\nExpected files of {self.name}:\n{self.layout}"


def _listed(missing: list[Path], root: Path) -> str:
    names = [path.relative_to(root).as_posix() for path in missing[:5]]
    rest = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    return f"missing {', '.join(names)}{rest}"


@dataclass(frozen=True)
class SplitSource:
    """Where the rows of a split come from.

    Attributes:
        units: what is read at a time, in the order of the rows: paths, ranges of rows, names.
        read: gives the rows of a unit. What is wrong with the unit alone is a PointCloudError or FileNotFoundError,
            which `on_error="skip"` passes over.
        files: the published files that the rows depend on; their sizes and times tell whether a cache is up to date.
        num_rows: how many rows there are, where that is known before reading.
        describe: names a unit in errors.
        missing: files of units that are known not to be there; an error before anything is read, or left out with
            `on_error="skip"`.
        digest: tells, like `files`, whether a cache is up to date, where there are too many files to list.
    """

    units: Sequence[Any]
    read: Callable[[Any], Iterable[Mapping[str, object]]]
    files: Sequence[Path]
    num_rows: int | None = None
    describe: Callable[[Any], str] = str
    missing: Sequence[Path] = ()
    digest: str = ""
