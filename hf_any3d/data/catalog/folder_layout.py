"""Find the point clouds of a folder with their splits and classes: from folder names and from metadata files."""

import io
import json
import logging
import os
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from datasets import Features

from hf_any3d.data.files import PointCloudError, ReadLimits, file_errors, supported_file_types
from hf_any3d.data.files.companions import without_companions
from hf_any3d.data.files.contents import instead_of_clouds
from hf_any3d.data.files.folder_arrays import OF_POINTS, arrays_beside_points, photos
from hf_any3d.data.files.text import is_prose
from hf_any3d.data.tables.small_tables import delimiter_of, lines_before_names, plain_name, read_text
from hf_any3d.hub.names import no_such
from hf_any3d.registry import PACKED
from hf_any3d.utils.messages import listed

# One log of what is left out of a folder, which the command line reads.
logger = logging.getLogger("hf_any3d.data.catalog.folder")

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder name -> split."""

LAYOUTS = "CLASS/FILE, SPLIT/CLASS/FILE or CLASS/SPLIT/FILE (splits: train, validation, test)"
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
# Why files are left out.
_PROSE, _COMPRESSED = "text without points", "compressed, unpack it first"

Parts = tuple[str, ...]
"""Names of the folders from the root to a file, and its own."""


@dataclass(frozen=True)
class LabeledFile:
    """A file with its class, or None, and its split."""

    path: Path
    label: str | None
    split: str


@dataclass(frozen=True)
class Tree:
    """The content of a folder: matching files by name, number of others by ending, and folders without folders."""

    found: list[Parts]
    others: dict[str, int]
    leaves: set[Parts]


def check_link(path: Path, root: Path) -> None:
    """Refuse a link below `root` that leads outside of it, since an untrusted folder could name any file with it."""
    try:
        is_inside = not path.is_symlink() or path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # it leads back to itself; RuntimeError before Python 3.13
        is_inside = False
    if not is_inside:
        raise PointCloudError(
            f"{path.relative_to(root).as_posix()} is a link that leads outside of the folder, or to itself; copy its "
            "target there, or pass follow_links=True"
        )


def walk(root: Path, *, follow_links: bool = False) -> Tree:
    """Find the clouds of a folder, and warn of files that are left out; hidden ones are skipped.

    Left out are text without points, compressed files, arrays that belong to the points of another file, and images
    that are no textures.
    """
    tree = Tree([], defaultdict(int), set())
    places: list[str] = []
    left_out: dict[str, list[str]] = {_PROSE: [], _COMPRESSED: []}
    # Links inside of the folder are followed; those that lead out of it are refused below, unless they are allowed.
    for folder, folders, files in os.walk(root, followlinks=True):
        # In place, as os.walk then descends into these alone, in the same order on every machine.
        folders[:] = _visible(folders)
        parts = Path(folder).relative_to(root).parts
        for name in folders:
            path = Path(folder, name)
            if path.is_symlink():
                if not follow_links:
                    check_link(path, root)
                # os.walk would follow such a link without end.
                if path.parent.resolve().is_relative_to(path.resolve()):
                    raise PointCloudError(f"{path.relative_to(root).as_posix()} is a link to a folder above it")
        if not folders:
            tree.leaves.add(parts)
        places += ["/".join((*parts, name)) for name in _visible(files)]
        _sort_files(root, parts, files, tree, left_out, follow_links)
    # Which arrays belong to the points of another file is known only when all are found.
    arrays = {tuple(name.split("/")) for name in arrays_beside_points("/".join(parts) for parts in tree.found)}
    found = [parts for parts in tree.found if parts not in arrays]
    leaves = tree.leaves - {parts[:-1] for parts in arrays}  # a folder of colors is no class without files
    left_out[OF_POINTS] = sorted("/".join(parts) for parts in arrays)
    left_out["images"] = sorted(photos(places))
    for reason, names in left_out.items():
        if names:
            logger.warning("%s: left out %s: %s", root, listed(names), reason)
    if not root.exists():
        raise FileNotFoundError(no_such(root, "folder"))
    if not found:
        raise FileNotFoundError(f"{root}: no folder with point clouds; {instead_of_clouds(places)}")
    return Tree(found, dict(tree.others), leaves)


def _sort_files(
    root: Path, parts: Parts, files: list[str], tree: Tree, left_out: dict[str, list[str]], follow_links: bool
) -> None:
    """Add the files of one folder to the tree, or to those that are left out for a reason."""
    suffixes = _suffixes()
    # Files that belong to another one, and metadata, are no clouds of their own.
    clouds = {*without_companions(files)} - {*METADATA_NAMES}
    for name in _visible(files):
        path = root.joinpath(*parts, name)
        suffix = path.suffix.lower()
        place = "/".join((*parts, name))
        if suffix in suffixes and name in clouds:
            if not follow_links:
                check_link(path, root)
            if is_prose(path):
                left_out[_PROSE].append(place)
                tree.others[suffix] += 1
            else:
                tree.found.append((*parts, name))
        elif suffix in PACKED:
            left_out[_COMPRESSED].append(place)
        else:
            tree.others[suffix] += 1


def _suffixes() -> set[str]:
    return {f".{file_type}" for file_type in supported_file_types()}


def _visible(names: list[str]) -> list[str]:
    """Return the names that are not hidden, sorted."""
    return sorted(name for name in names if not name.startswith("."))


def find_labeled_files(
    root: Path, tree: Tree, *, skip_empty: bool = False
) -> tuple[dict[str, list[LabeledFile]], dict[str, int]]:
    """Return the files of each split, and the number of other files by ending; folders name splits and classes.

    With `skip_empty`, folders of classes without files are left out with a warning. Files directly in `root` have no
    class and count as others, unless there are only such.
    """
    # A copy: the tree stays as it was found.
    others = defaultdict(int, tree.others)
    nested = [parts for parts in tree.found if len(parts) > 1]
    for (name,) in set(tree.found) - set(nested if nested else tree.found):
        others[Path(name).suffix.lower()] += 1  # files next to the folders of classes are lists and notes, not clouds
    clouds = nested or tree.found
    full = {parts[:-1] for parts in clouds}
    # A class without files is rather a failed download than a class.
    empty = [parts for parts in sorted(tree.leaves - full) if len(parts) == len(clouds[0]) - 1]
    if empty:
        names = ", ".join("/".join(parts) for parts in empty)
        if not skip_empty:
            raise PointCloudError(f"no point cloud in the folders {names}; remove them or add files")
        logger.warning("%s: skipped folders without point clouds: %s", root, names)
    return by_split(labeled(root, clouds)), dict(others)


def has_classes(files: list[Parts]) -> bool:
    """Return whether folders name the classes: class/file, split/class/file or class/split/file."""
    depths = {len(parts) for parts in files}
    # Folders named train and test are splits, even if they could be classes.
    if depths == {2}:
        return not all(parts[0].lower() in SPLIT_NAMES for parts in files)
    return depths == {3} and split_place(files) is not None


def names_classes(root: Path) -> bool:
    """Return whether the folders below `root`, or metadata there, name the classes of clouds."""
    try:
        metadata = read_metadata(root)
    except PointCloudError:
        # Metadata are for labels of clouds; what is wrong with them is told when the clouds are loaded.
        return True
    if metadata is not None and "label" in metadata.column_names:
        return True
    suffixes = _suffixes()
    places = [path.relative_to(root).parts for path in root.rglob("*") if path.suffix.lower() in suffixes]
    clouds = [parts for parts in places if not any(name.startswith(".") for name in parts)]
    # Files next to folders of classes are lists and notes.
    return has_classes([parts for parts in clouds if len(parts) > 1] or clouds)


def labeled(root: Path, clouds: list[Parts]) -> list[LabeledFile]:
    """Return files with split and class from their folders."""
    if not has_classes(clouds):
        deepest = max(clouds, key=len)
        example = "/".join(deepest if len(deepest) > 2 else min(clouds, key=len))
        raise PointCloudError(
            f"{example} fits no layout; expected {LAYOUTS}, or pass drop_labels=True for clouds without classes"
        )
    if len(clouds[0]) == 2:
        return [LabeledFile(root.joinpath(*parts), parts[0], "train") for parts in clouds]
    place = split_place(clouds)
    assert place is not None
    files = []
    for parts in clouds:
        # Of the first two folders, one names the split and the other one the class.
        split = SPLIT_NAMES[parts[place].lower()]
        files.append(LabeledFile(root.joinpath(*parts), parts[1 - place], split))
    return files


def unlabeled(root: Path, clouds: list[Parts]) -> list[LabeledFile]:
    """Return files with the split from their folders, `train` if no folder names it, and without classes."""
    place = split_place(clouds)
    files = []
    for parts in clouds:
        split = "train" if place is None else SPLIT_NAMES[parts[place].lower()]
        files.append(LabeledFile(root.joinpath(*parts), None, split))
    return files


def split_place(clouds: list[Parts]) -> int | None:
    """Return which folder level names the split: 0, 1 or None."""
    for place in (0, 1):
        if all(len(parts) > place + 1 and parts[place].lower() in SPLIT_NAMES for parts in clouds):
            return place
    return None


def by_split(files: list[LabeledFile]) -> dict[str, list[LabeledFile]]:
    """Group files by split."""
    splits: dict[str, list[LabeledFile]] = defaultdict(list)
    for file in files:
        splits[file.split].append(file)
    return dict(splits)


def read_metadata(root: Path, *, follow_links: bool = False) -> pa.Table | None:
    """Return the rows of all metadata files below a folder, with `file_name` relative to it; None without any."""
    files = []
    # A pattern with a wildcard: a plain name would skip a dangling link.
    for path in root.rglob("metadata.*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.name in METADATA_NAMES and not path.is_dir() and not is_hidden:
            files.append(path)
    if not files:
        return None
    files.sort(key=lambda path: (len(path.parts), path))  # outermost first
    tables = []
    named_in: dict[str, str] = {}  # file -> row that names it
    for path in files:
        if not follow_links:
            check_link(path, root)
        with file_errors(path, "table of files"):
            table = _read_rows(path)
            table.validate(full=True)  # Parquet returns damaged text unchecked
            Features.from_arrow_schema(table.schema)  # the stored features may be damaged too
            names = []
            folder = path.parent.relative_to(root).as_posix()
            for number, name in enumerate(table.column(FILE_NAME).to_pylist(), start=1):
                # The path has to lead into the folder of the metadata; written on Windows, it may have backslashes.
                inside = posixpath.normpath(name.replace("\\", "/"))
                # Another path could reach any file of this machine, or the network.
                is_outside = posixpath.isabs(inside) or inside.split("/")[0] == ".."
                if "://" in name or os.path.isabs(name) or is_outside:
                    raise PointCloudError(f"row {number} names {name!r}; expected a path inside its folder")
                name = posixpath.normpath(posixpath.join(folder, inside))
                if name in named_in:
                    raise PointCloudError(f"row {number} names {name}, which {named_in[name]} names already")
                named_in[name] = f"row {number} of {path.relative_to(root).as_posix()}"
                names.append(name)
            place = table.column_names.index(FILE_NAME)
            tables.append(table.set_column(place, FILE_NAME, pa.array(names, pa.string())))
    with file_errors(root, "folder with metadata of one kind"):
        # A column may be whole numbers in one file and fractions, or empty, in another.
        return pa.concat_tables(tables, promote_options="permissive")


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table as spreadsheets save it; columns of numbers may have decimal commas."""
    text = read_text(path)
    delimiter = delimiter_of(text, {plain_name(FILE_NAME)})
    # File names such as 007 are no numbers, whatever the case of the column's name.
    rows = pd.read_csv(io.StringIO(text), sep=delimiter, skiprows=lines_before_names(text), dtype=str, index_col=False)
    rows.columns = [FILE_NAME if plain_name(name) == plain_name(FILE_NAME) else name.strip() for name in rows.columns]
    for name in rows.columns:
        rows[name] = rows[name].str.strip()
        are_numbers = rows[name].dropna().str.fullmatch(r"[+-]?\d+(,\d+)?")
        if name != FILE_NAME and are_numbers.all():
            rows[name] = rows[name].str.replace(",", ".")
    # Once more, so that columns have the types that pandas finds
    return pd.read_csv(io.StringIO(rows.to_csv(index=False)), dtype={FILE_NAME: str})


def _read_rows(path: Path) -> pa.Table:
    if path.suffix == ".csv":
        rows = _read_table(path)
        return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    # A constant column takes a few bytes however many rows it has.
    table = pyarrow.parquet.read_metadata(path)
    ReadLimits.current().check(decoded=8 * table.num_rows * table.num_columns, stored=path.stat().st_size)
    return pyarrow.parquet.read_table(path)
