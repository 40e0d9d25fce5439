"""The files of a folder as rows, with all that folder names and metadata files say about them; none is opened."""

import logging
from pathlib import Path

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, NamedSplit, Value

from hf_any3d.data.catalog.columns import with_class_labels
from hf_any3d.data.catalog.layout import (
    LabelledFile,
    by_split,
    find_labelled_files,
    labelled,
    unlabelled,
    walk,
)
from hf_any3d.data.catalog.metadata_files import FILE_NAME, METADATA_NAMES, read_metadata
from hf_any3d.data.files import supported_file_types

logger = logging.getLogger(__name__)

COMPANIONS = {".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".txt", ".md", ".json", ".csv", ".jsonl", ".parquet"}
"""Endings of files that lie beside models and are no clouds themselves; others are mentioned when passed over."""

FILE = "file"


def list_folder(
    root: Path, *, drop_labels: bool | None = None, drop_metadata: bool | None = None, follow_links: bool = False
) -> DatasetDict:
    """List the point files and meshes of a folder.

    Args:
        root: the folder.
        drop_labels: True makes no use of folder names as classes; False demands that they say the classes where no
            metadata does. None demands it only of a folder without metadata files.
        drop_metadata: True passes metadata files over.
        follow_links: follow links that lead outside of the folder; False refuses them.

    Returns:
        Splits with `label`, a ClassLabel where classes are text or whole numbers, `file`, the path inside the folder,
        and the columns of the metadata.

    Raises:
        ValueError: a layout that says no class, splits whose classes differ, or metadata that does not fit the files.
        FileNotFoundError: no such folder, or no clouds in it.
    """
    suffixes = {f".{file_type}" for file_type in supported_file_types()}
    metadata = None if drop_metadata or not root.is_dir() else read_metadata(root, follow_links=follow_links)
    if metadata is not None:
        splits = _splits_of_metadata(root, metadata, suffixes, drop_labels, follow_links)
    elif drop_labels:
        tree = walk(root, suffixes, METADATA_NAMES, follow_links=follow_links)
        splits = by_split(unlabelled(root, tree.found))
        _mention(root, tree.others)
    else:
        splits, others = find_labelled_files(root, suffixes, METADATA_NAMES, follow_links=follow_links)
        _mention(root, others)
    listed = DatasetDict({split: _rows(root, files, split, metadata) for split, files in splits.items()})
    _check_labels(root, listed)
    return with_class_labels(listed, str(root))


def _mention(root: Path, others: dict[str, int]) -> None:
    if passed_over := sorted(set(others) - COMPANIONS):
        logger.warning("%s: passed over files of types %s", root, ", ".join(passed_over))


def _splits_of_metadata(
    root: Path, metadata: pa.Table, suffixes: set[str], drop_labels: bool | None, follow_links: bool
) -> dict[str, list[LabelledFile]]:
    names = metadata.column(FILE_NAME).to_pylist()
    found = {"/".join(parts) for parts in walk(root, suffixes, METADATA_NAMES, follow_links=follow_links).found}
    if absent := [name for name in names if name not in found]:
        name = absent[0]
        reason = "of no readable type" if (root / name).is_file() else "not there"
        more = f", and {len(absent) - 1} more files of it cannot be used" if len(absent) > 1 else ""
        raise ValueError(f"{root}: the metadata names {name}, which is {reason}{more}")
    if left := sorted(found - set(names)):
        logger.warning(
            "%s: %d files are not in the metadata and are left out, the first is %s", root, len(left), left[0]
        )
    if not names:
        raise ValueError(f"{root}: the metadata names no file")
    parts = [tuple(name.split("/")) for name in names]
    has_labels = "label" in metadata.column_names
    if has_labels or drop_labels:
        return by_split(unlabelled(root, parts))
    if drop_labels is False:
        return by_split(labelled(root, parts))
    try:
        files = labelled(root, parts)
    except ValueError:
        files = []
    # One folder is a place to keep files rather than a class.
    return by_split(files if len({file.label for file in files}) > 1 else unlabelled(root, parts))


def _rows(root: Path, files: list[LabelledFile], split: str, metadata: pa.Table | None) -> Dataset:
    names = [file.path.relative_to(root).as_posix() for file in files]
    columns, features = {}, {}
    if files[0].label is not None:
        columns["label"], features["label"] = pa.array([file.label for file in files]), Value("string")
    if metadata is not None:
        place = {name: row for row, name in enumerate(metadata.column(FILE_NAME).to_pylist())}
        chosen = metadata.take([place[name] for name in names]).drop_columns([FILE_NAME])
        if FILE in chosen.column_names:
            raise ValueError(f"{root}: the metadata has a column {FILE!r}, which is the name of another; rename it")
        columns |= dict(zip(chosen.column_names, chosen.columns, strict=True))
        known = Features.from_arrow_schema(metadata.schema)
        features |= {name: known[name] for name in chosen.column_names}
    order = [*(["label"] if "label" in columns else []), FILE, *(name for name in columns if name != "label")]
    columns[FILE], features[FILE] = pa.array(names, pa.string()), Value("string")
    features = Features({name: features[name] for name in order})
    table = pa.table({name: columns[name] for name in order})
    return Dataset(table.replace_schema_metadata(), info=DatasetInfo(features=features), split=NamedSplit(split)).cast(
        features
    )


def _check_labels(root: Path, listed: DatasetDict) -> None:
    for rows in listed.values():
        if "label" not in rows.column_names:
            continue
        feature, labels = rows.features["label"], rows.data.column("label").to_pylist()
        for place, label in enumerate(labels):
            if label is None:
                raise ValueError(f"{root}: the metadata has no label for {rows[place][FILE]}")
            if isinstance(feature, ClassLabel) and not 0 <= label < feature.num_classes:
                raise ValueError(
                    f"{root}: the metadata gives {rows[place][FILE]} the label {label}; expected 0 to "
                    f"{feature.num_classes - 1}"
                )
