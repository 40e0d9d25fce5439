"""Describe a published dataset: its terms, where to get its files, and where the rows of its splits come from."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel

from hf_any3d.utils.messages import listed

OPEN_LICENSES = frozenset(
    "apache-2.0 bsd-2-clause bsd-3-clause cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc0-1.0 mit odbl odc-by pddl".split()
)
"""Licenses, by their names on the hub, that allow anybody to redistribute the data."""


@dataclass(frozen=True)
class License:
    """Terms of use: the hub's identifier, or "other" with a summary in a sentence, and where to read them."""

    name: str
    terms: str = ""
    link: str = ""

    def __str__(self) -> str:
        return self.name if self.name != "other" else f"other: {self.terms} {self.link}".strip()


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset.

    Attributes:
        name: its name in the catalog.
        description: one or two sentences about the content.
        homepage: its authors' page.
        license: its terms.
        citation: BibTeX.
        expected_counts: variant -> split -> number of clouds in the published files. A variant or split that is
            missing here has no fixed number.
        origin: where to get the files: address, form, login.
        layout: the tree of the published files, one per line, shown to people who do not have them.
        class_names: names of the classes, in the order of the published labels; empty without classes.
        revision: raised when the rows made from the same files change, so that caches are rebuilt.
    """

    name: str
    description: str
    homepage: str
    license: License
    citation: str
    expected_counts: Mapping[str, Mapping[str, int]]
    origin: str
    layout: str
    class_names: tuple[str, ...] = ()
    revision: int = field(default=1, kw_only=True)

    def class_label(self) -> ClassLabel:
        """Return the feature of the column `label`."""
        return ClassLabel(names=list(self.class_names))

    def root(self, data_dir: str | os.PathLike | None) -> Path:
        """Return the data folder; the notes of the error say where to get the files if there is none."""
        if data_dir is None or not os.path.isdir(data_dir):
            raise self.not_found(f"data_dir is {data_dir}; expected the folder with the files of {self.name}")
        return Path(data_dir)

    def require(self, paths: Iterable[Path], root: Path) -> None:
        """Check that all `paths` exist; the notes of the error say where to get them."""
        missing = [path for path in paths if not path.is_file()]
        if missing:
            # Thousands may be missing, of which some say enough.
            names = [path.relative_to(root).as_posix() for path in missing]
            raise self.not_found(f"{root}: missing {listed(names)}")

    def not_found(self, what: str) -> FileNotFoundError:
        """Return an error that names what is missing; its notes say where to get it and where it is expected."""
        error = FileNotFoundError(what)
        # As notes, so that the message itself stays one line
        for note in (self.origin, f"Expected files of {self.name}:", self.layout):
            error.add_note(note)
        return error


@dataclass(frozen=True)
class SplitSource:
    """Source of a split's rows.

    Attributes:
        units: what is read at a time, in the order of the rows: paths, ranges of rows, names.
        read: yields the rows of a unit. Raises PointCloudError or FileNotFoundError for what is wrong with this unit
            alone, which `on_error="skip"` skips.
        files: the published files that the rows depend on; their sizes and times decide whether a cache is current.
        num_rows: number of rows, where known before reading.
        describe: names a unit in errors.
        missing: listed files that do not exist; an error before anything is read, or left out with `on_error="skip"`.
        digest: used like `files` to decide whether a cache is current, where there are too many files to list.
    """

    units: Sequence[Any]
    read: Callable[[Any], Iterable[Mapping[str, Any]]]
    files: Sequence[Path]
    num_rows: int | None = None
    describe: Callable[[Any], str] = str
    missing: Sequence[Path] = ()
    digest: str = ""

    @classmethod
    def from_paths(
        cls, paths: Sequence[Path], read: Callable[[Path], Iterable[Mapping[str, Any]]], lists: Iterable[Path] = ()
    ) -> "SplitSource":
        """Return the source of a split with one file per cloud, of which some may be missing."""
        # One look at each folder, not one at each of fifty thousand files.
        existing: set[Path] = set()
        for folder in {path.parent for path in paths}:
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    # An entry of a folder knows whether it is a file, without a look at the file itself.
                    existing.update(folder / entry.name for entry in entries if entry.is_file())
        missing = [path for path in paths if path not in existing]
        return cls(paths, read, [*lists, *sorted(existing.intersection(paths))], num_rows=len(paths), missing=missing)
