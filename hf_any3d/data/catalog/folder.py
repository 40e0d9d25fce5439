"""Load a folder of point clouds and meshes; folder names are the labels, as in imagefolder."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    IterableDataset,
    IterableDatasetDict,
    List,
    NamedSplit,
    Value,
)

from hf_any3d.data.catalog.folder_layout import (
    FILE_NAME,
    LabeledFile,
    Parts,
    by_split,
    find_labeled_files,
    has_classes,
    labeled,
    read_metadata,
    unlabeled,
    walk,
)
from hf_any3d.data.classes.word_classes import words_of_files
from hf_any3d.data.feature import PointCloud
from hf_any3d.data.files import PointCloudError, file_errors, read_point_cloud
from hf_any3d.data.files.label_words import with_words
from hf_any3d.data.files.point_cloud import MOST_MOVED
from hf_any3d.data.files.registry import read_stamp
from hf_any3d.data.options import one_of, require_columns
from hf_any3d.data.parquet.loading import generated_dataset
from hf_any3d.data.tables.file_conversion import CloudColumns, check_free, rows_at_a_time
from hf_any3d.data.tables.missing_rows import rows_with_points
from hf_any3d.data.tables.numpy_rows import numpy_rows
from hf_any3d.utils.messages import as_name, as_text

# Types of coordinates that float32 may be too coarse for.
_LONG_NUMBERS = ("float64", "int32", "int64", "uint32", "uint64")


def prepare_splits(splits: DatasetDict, origin: str) -> DatasetDict:
    """Check the column of points, convert labels to ClassLabel and read rows as numpy arrays.

    Columns of files (`PointCloud`) are kept, and may replace points.

    Nested lists, several times slower to read than Array2D, and other number types become Array2D float32, or float64
    if float32 is too coarse for their coordinates, such as those of a map. Labels that are text or integers become a
    ClassLabel with the classes of the training split; those of streams are kept, since their classes are unknown
    before the end. Rows without points are left out with a warning, those of streams are errors when they are
    prepared.
    """
    if isinstance(splits, DatasetDict) and all(rows.format["type"] == "custom" for rows in splits.values()):
        return splits  # a transform adds the points, as arrays
    prepared = type(splits)(splits)
    for split, rows in splits.items():
        # A stream may not know its columns.
        features = rows.features or {}
        feature = features.get("points")
        # Rows without their points or their file are left out, but not of streams.
        if isinstance(rows, Dataset):
            for column, kind in rows.features.items():
                if column == "points" or isinstance(kind, PointCloud):
                    rows = rows_with_points(rows, f"{origin}, split {split}", column)
        prepared[split] = rows
        has_files = any(isinstance(column, PointCloud) for column in features.values())
        # Columns of files may stand in for points.
        if has_files and not isinstance(feature, (Array2D, List)):
            continue
        # No channels, and so an error below, unless the type or the first row tells their number
        shape = (None, 0)
        number = ""
        if isinstance(feature, Array2D):
            shape = feature.shape
            number = feature.dtype
        elif isinstance(getattr(getattr(feature, "feature", None), "feature", None), Value):
            # Types of `datasets` do not tell the length of inner lists.
            first: Any = next(iter(rows.with_format(None)), None)
            shape = (None, 3 if first is None else len(first["points"][0]))
            number = cast(Any, feature).feature.feature.dtype
        if feature is None and not isinstance(rows, IterableDataset):
            require_columns(["points"], features, f"{origin}, split {split}: ")
        if shape[1] < 3:
            seen = (
                f"points has type {feature} and {shape[1]} channels; there are {', '.join(features) or 'no columns'}"
            )
            raise ValueError(
                f"{origin}, split {split}: {seen}; expected a column 'points' of x, y, z and perhaps more"
            )
        column = Array2D(shape, "float64" if number in _LONG_NUMBERS else "float32")
        if feature != column:
            prepared[split] = rows.cast_column("points", column)
    return numpy_rows(with_class_labels(_with_short_points(prepared), origin))


def _with_short_points(splits: DatasetDict) -> DatasetDict:
    """Return splits with points in float32, unless a cloud would lose its shape in it, as at coordinates of a map.

    Streams are returned unchanged, since only their end tells.
    """
    features = {split: (rows.features or {}).get("points") for split, rows in splits.items()}
    long = [split for split, kind in features.items() if isinstance(kind, Array2D) and kind.dtype == "float64"]
    if not all(isinstance(splits[split], Dataset) for split in long):
        return splits
    # All splits have the same type, so that they can be joined.
    for split in long:
        if any(map(_loses_its_shape, _clouds_of(splits[split]))):
            return splits
    short = type(splits)(splits)
    for split in long:
        short[split] = splits[split].cast_column("points", Array2D(cast(Any, features[split]).shape, "float32"))
    return short


def _clouds_of(rows: Any) -> Iterable[np.ndarray]:
    """Return the points of each row, an Array2D in float64."""
    from hf_any3d.data.torch_datasets import ColumnChunks

    chunks = ColumnChunks.of(rows.data.column("points"), rows.features["points"])
    if chunks is None:
        return (row["points"] for row in numpy_rows(rows.select_columns(["points"])))
    return map(chunks.read, range(int(chunks.starts[-1])))


def _loses_its_shape(points: np.ndarray) -> bool:
    """Return whether float32 moves a point by more than a small share of the extent; a null or NaN moves nowhere."""
    if points.dtype.kind != "f" or not len(points):
        return False
    xyz = points[:, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(xyz - xyz.astype(np.float32)).max()
        return bool(moved > MOST_MOVED * np.ptp(xyz, axis=0).max())


def with_class_labels(splits: DatasetDict, origin: str) -> DatasetDict:
    """Convert labels that are text or whole numbers to a ClassLabel with the classes of the training split."""
    labeled = [str(split) for split, rows in splits.items() if "label" in rows.column_names]
    if not labeled:
        return splits
    first = "train" if "train" in labeled else labeled[0]
    # One list of classes for all splits: a class that is missing in one must not shift the numbers of the others.
    feature = _classes_of(splits, labeled, first)
    if feature is None:
        return splits
    for split in labeled:
        stored = splits[split].features["label"]
        # Labels that are classes already must number them as the training split does.
        if isinstance(stored, ClassLabel):
            if stored.names != feature.names:
                seen = f"{origin}: the classes of split {split} are {stored.names}"
                raise ValueError(f"{seen}, those of {first} {feature.names}")
            continue
        # Only tables can be searched: a stream would have to be read to its end.
        if isinstance(splits[split], Dataset) and _is_text(stored):
            further = sorted({*splits[split].unique("label")} - {None, *feature.names})
            if further:
                expected = ", ".join(feature.names[:8])
                raise ValueError(
                    f"{origin}: split {split} has the class {further[0]!r}, which split {first} lacks; expected some "
                    f"of {expected}"
                )
        splits[split] = splits[split].cast_column("label", feature)
    return splits


def _classes_of(splits: DatasetDict, labeled: list[str], first: str) -> ClassLabel | None:
    """Return the classes of the first split with labels; None where labels are no classes, or have to be streamed."""
    feature = splits[first].features["label"]
    if isinstance(feature, ClassLabel):
        return feature
    # A stream would have to be read to its end to find all labels.
    if not isinstance(splits[first], Dataset):
        return None
    if _is_text(feature):
        # Alphabetical, so that numbers do not depend on the order of the rows
        return ClassLabel(names=sorted({*splits[first].unique("label")} - {None}))
    # Whole numbers are those of classes from 0 on, over all splits together; -1 is the hub's "no label".
    values = {value for split in labeled for value in splits[split].unique("label")} - {None, -1}
    if not values or not all(isinstance(value, int) and value >= 0 for value in values):
        return None
    return ClassLabel(num_classes=max(values) + 1)


def _is_text(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


logger = logging.getLogger(__name__)

COMPANIONS = {".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".txt", ".md", ".json", ".csv", ".jsonl", ".parquet"}
"""Endings of files that come with models and are no clouds themselves; ignoring others logs a warning."""

FILE = "file"
_FILES_PER_SHARD = 8


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    num_points: int | None = None,
    mesh_points: int = 2048,
    columns: Sequence[str] = (),
    seed: int = 0,
    on_error: str = "raise",
    drop_labels: bool | None = None,
    drop_metadata: bool | None = None,
    follow_links: bool = False,
    as_files: bool = False,
    streaming: bool = False,
    label_field: str | None = None,
    may_lack_normals: bool = False,
    **options: Any,
) -> DatasetDict | IterableDatasetDict:
    """Read a folder of clouds.

    Files named metadata.csv, metadata.jsonl or metadata.parquet describe the files in their folder and below: the
    column `file_name` is a path relative to the metadata file, all others become columns. Files that they name must
    exist, each once; files that they do not name are left out, as imagefolder does. Their column `label` replaces
    folder names.

    Args:
        data_dir: the folder: `class/file`, `split/class/file` or `class/split/file`, with files of any readable
            format, also mixed. With metadata or `drop_labels=True` they may be at any depth, below folders of splits
            or not.
        num_points: draw this many points of every file, so that all clouds have one size; None keeps all points of
            point files and draws `mesh_points` from the surface of meshes.
        mesh_points: points of a mesh when `num_points` is None.
        columns: further columns to read: "normals", "colors" and "labels" (one per point); every file must have them.
        seed: seed of the points that are drawn, combined with each file's content.
        on_error: "raise" stops at a file that cannot be read; "skip" leaves it out with a warning.
        drop_labels: True ignores folder names. False requires them to name the classes. None requires it if there is
            no metadata, unless the labels of points are read and no folders name classes; with metadata without
            labels, folder names are used if there are several class folders.
        drop_metadata: True ignores metadata files.
        follow_links: follow links that lead outside of the folder. False refuses them, since an untrusted folder could
            name any file of this machine with them; links within the folder are always followed.
        as_files: return a column `point_cloud` of the files themselves (`PointCloud`) instead of columns of points;
            files are opened when their rows are read. `files_to_points` converts it to columns of points.
        streaming: read files when their rows are read, and store nothing on disk.
        label_field: name of the column, property, field, array or extra dimension that `labels` are read from; by
            default a usual name, see `read_point_cloud`.
        may_lack_normals: take files without normals, whose `normals` are then 0.
        options: `cache_dir`, `keep_in_memory` and `num_proc` of `datasets.Dataset.from_generator`; not for `as_files`
            and `streaming`, which write no cache.

    Returns:
        Splits with `points` (Array2D float32, in the units of the file) or `point_cloud`; `label` (ClassLabel, names
        in alphabetical order); `file` (path inside the folder); the requested columns: `normals` float32, `colors`
        uint8, `labels` int64, or ClassLabel where files name classes by words; and those of the metadata. Without
        folders of splits, there is only `train`.
    """
    if data_dir is None:
        raise ValueError("data_dir is None; expected the folder with the clouds")
    skip = one_of("on_error", on_error, ("raise", "skip")) == "skip"
    converter = CloudColumns(num_points, mesh_points, columns, seed, may_lack_normals)
    opens_files = converter != CloudColumns() or skip
    # Options that would have no effect
    if as_files and opens_files:
        raise ValueError("as_files=True opens no file: pass num_points, columns, seed and the like to files_to_points")
    if (as_files or streaming) and (unused := set(options) - {"cache_dir"}):
        raise ValueError(f"{sorted(unused)[0]} has no effect with as_files=True or streaming=True")
    if label_field is not None and "labels" not in columns:
        raise ValueError(f"label_field is {label_field!r}, which has no effect; expected columns with 'labels'")
    root = Path(data_dir)
    with file_errors(root):
        tree = walk(root, follow_links=follow_links)
        metadata = None if drop_metadata else read_metadata(root, follow_links=follow_links)
        if metadata is not None:
            files = _splits_of_metadata(root, metadata, tree.found, drop_labels)
        else:
            # Clouds whose points have labels need no folder of a class.
            if drop_labels is None and "labels" in columns and not has_classes(tree.found):
                drop_labels = True
            if drop_labels:
                files = by_split(unlabeled(root, tree.found))
                others = tree.others
            else:
                files, others = find_labeled_files(root, tree, skip_empty=skip)
            ignored = sorted(set(others) - COMPANIONS)
            if ignored:
                logger.warning("%s: ignored files of types %s", root, ", ".join(ignored))
    # Names that are no text, in folders and in tables, are Arrow's errors.
    with file_errors(root, "folder of clouds"):
        rows = DatasetDict({split: _listed_rows(root, listed, split, metadata) for split, listed in files.items()})
    rows = with_class_labels(rows, str(root))
    if as_files:
        return _files(root, rows, streaming)
    words = None
    if "labels" in columns:
        # In the files of all splits, so that a word has one number in all of them
        words = words_of_files(
            (root / as_name(name) for listed in rows.values() for name in listed[FILE]), label_field
        )
    labels = _Labels(label_field, words)
    loaded: Any = {}
    for split, listed in rows.items():
        loaded[split] = _read(root, listed, converter, skip, streaming, options, labels)
    if streaming:
        return IterableDatasetDict(loaded)
    _warn_of_missing(root, rows, loaded)
    return DatasetDict(loaded)


def _warn_of_missing(root: Path, rows: DatasetDict, loaded: Mapping[Any, Dataset]) -> None:
    """Warn of files that no row was read from. Rows may come from a cache, where no error was logged for each."""
    missing = []
    for split, listed in rows.items():
        missing += [root / name for name in {*listed[FILE]} - {*loaded[split][FILE]}]
    if not missing:
        return
    total = sum(rows.num_rows.values())
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    # The command line collects these.
    extra = {"left_out": [str(path) for path in sorted(missing)], "num_files": total}
    logger.warning("skipped %d of %d files: %s%s", len(missing), total, min(missing), more, extra=extra)


def _files(root: Path, listed: DatasetDict, streaming: bool) -> DatasetDict | IterableDatasetDict:
    splits: Any = {}
    for split, rows in listed.items():
        # Absolute, since rows may be read in another working directory
        paths = [str(root.absolute() / name) for name in rows[FILE]]
        names = ["point_cloud", *rows.column_names]
        check_free(["point_cloud"], rows.column_names)
        rows = rows.add_column("point_cloud", paths).select_columns(names)
        rows = rows.cast_column("point_cloud", PointCloud())  # pyright: ignore[reportArgumentType] - is registered
        # Workers of a DataLoader share a stream by its shards.
        shards = max(1, len(rows) // _FILES_PER_SHARD)
        splits[split] = rows.to_iterable_dataset(num_shards=shards) if streaming else rows
    return IterableDatasetDict(splits) if streaming else DatasetDict(splits)


class _Labels(NamedTuple):
    """The place of the labels of points, and the words for them, if files have words."""

    field: str | None
    words: tuple[str, ...] | None


def _read(
    root: Path, rows: Dataset, converter: CloudColumns, skip: bool, streaming: bool, options: dict, labels: _Labels
) -> Dataset | IterableDataset:
    assert rows.split is not None
    check_free(converter.names, rows.column_names)
    features = Features({**converter.features, **rows.features})
    if labels.words is not None:
        features["labels"] = List(ClassLabel(names=list(labels.words)), length=features["labels"].length)
    files = [(row, str(root / as_name(row[FILE]))) for row in rows.to_list()]
    arguments: dict[str, Any] = {"converter": converter, "skip": skip, "labels": labels}
    if streaming:
        # `datasets` splits lists among ranks and workers.
        starts = range(0, len(files), _FILES_PER_SHARD)
        arguments["shards"] = [files[start : start + _FILES_PER_SHARD] for start in starts]
        return IterableDataset.from_generator(_rows, features, arguments, rows.split)
    # Stamps of the files are part of the cache key, so that a changed file is read again.
    stamped = [(row, path, *read_stamp(path)) for row, path in files]
    if options.get("num_proc"):
        # `datasets` divides the shards among its processes.
        arguments["shards"] = [[file] for file in stamped]
    else:
        # `datasets` does not split tuples into shards.
        arguments |= {"shards": (stamped,), "is_whole_split": True}
    return generated_dataset(
        _rows,
        features,
        gen_kwargs=arguments,
        split=rows.split,
        writer_batch_size=rows_at_a_time(features),
        **options,
    )


def _rows(
    shards: Sequence[Sequence[tuple]],
    converter: CloudColumns,
    skip: bool,
    labels: _Labels,
    is_whole_split: bool = False,
) -> Iterator[dict]:
    none_read = True
    reason = None
    for shard in shards:
        for row, path, *_ in shard:
            try:
                cloud = with_words(read_point_cloud(path, label_field=labels.field), labels.words, path)
                with file_errors(path):
                    columns = converter.row(cloud)
                    if skip:
                        cloud.check_usable()
            except PointCloudError as error:
                if not skip:
                    raise
                logger.warning("left out %s", error)
                reason = reason or str(error)
                continue
            none_read = False
            yield {**columns, **row}
    # With several processes none of them sees the whole split.
    if none_read and is_whole_split:
        raise ValueError(f"none of the {len(shards[0])} files of a split can be used; the first: {reason}")


def _splits_of_metadata(
    root: Path, metadata: pa.Table, files: list[Parts], drop_labels: bool | None
) -> dict[str, list[LabeledFile]]:
    """Return the files that metadata name, by split; they need be there, and others are left out with a warning."""
    names = metadata.column(FILE_NAME).to_pylist()
    readable = {"/".join(parts) for parts in files}
    absent = [name for name in names if name not in readable]
    if absent:
        name = absent[0]
        reason = "is of no readable type" if (root / name).is_file() else "does not exist"
        more = f", and {len(absent) - 1} more files that cannot be used" if len(absent) > 1 else ""
        raise PointCloudError(f"the metadata names {name}, which {reason}{more}")
    unnamed = sorted(readable - set(names))
    if unnamed:
        text = "%s: skipped %d files that are not in the metadata, such as %s"
        logger.warning(text, root, len(unnamed), unnamed[0])
    if not names:
        raise PointCloudError("the metadata names no file")
    parts = [tuple(name.split("/")) for name in names]
    # Where the metadata have labels, folders only store the files.
    if drop_labels or "label" in metadata.column_names:
        return by_split(unlabeled(root, parts))
    if drop_labels is False:
        return by_split(labeled(root, parts))
    files_of_classes = labeled(root, parts) if has_classes(parts) else []
    # A single folder only stores the files and is not a class.
    is_labeled = len({file.label for file in files_of_classes}) > 1
    return by_split(files_of_classes if is_labeled else unlabeled(root, parts))


def _listed_rows(root: Path, files: list[LabeledFile], split: str, metadata: pa.Table | None) -> Dataset:
    """Return a row for each file of a split: its label, if it has one, its name, and its metadata."""
    # Texts of Arrow are UTF-8, and names of files may be none.
    names = [as_text(file.path.relative_to(root).as_posix()) for file in files]
    columns: dict[str, Any] = {}
    types: dict[str, Any] = {}
    if files[0].label is not None:
        columns["label"] = pa.array([as_text(str(file.label)) for file in files])
        types["label"] = Value("string")
    if metadata is not None:
        # The metadata in the order of the split's files
        row_of = {name: row for row, name in enumerate(metadata.column(FILE_NAME).to_pylist())}
        chosen = metadata.take([row_of[name] for name in names]).drop_columns([FILE_NAME])
        check_free([FILE], chosen.column_names)
        columns |= dict(zip(chosen.column_names, chosen.columns, strict=True))
        # Types that only `datasets` knows, such as classes, are stored in the schema.
        stored = Features.from_arrow_schema(metadata.schema)
        types |= {name: stored[name] for name in chosen.column_names}
    # The label comes first, wherever the metadata have it, and then the name of the file.
    order = ["label", FILE] if "label" in columns else [FILE]
    order += [name for name in columns if name != "label"]
    columns[FILE] = pa.array(names, pa.string())
    types[FILE] = Value("string")
    features = Features({name: types[name] for name in order})
    table = pa.table({name: columns[name] for name in order}).replace_schema_metadata()
    rows = Dataset(table, info=DatasetInfo(features=features), split=NamedSplit(split)).cast(features)
    if "label" in features:
        # Refuse labels that are missing, or numbers of no class.
        feature = rows.features["label"]
        numbers = range(len(feature.names)) if isinstance(feature, ClassLabel) else None
        for name, label in zip(names, rows.data.column("label").to_pylist(), strict=True):
            if label is None or (numbers is not None and label not in numbers):
                raise PointCloudError(f"the metadata gives {name} the label {label}; expected a class")
    return rows
