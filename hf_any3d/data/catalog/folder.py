"""A folder of point files and meshes; the folder's name is the label, as in imagefolder."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError

from hf_any3d.data.catalog.folder_listing import FILE, list_folder
from hf_any3d.data.cloud_rows import CloudColumns
from hf_any3d.data.feature import PointCloud
from hf_any3d.data.files import PointCloudError, PointCloudFileError, read_point_cloud

logger = logging.getLogger(__name__)

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
    **options,
) -> DatasetDict | IterableDatasetDict:
    """Read a folder of clouds.

    Files named metadata.csv, metadata.jsonl or metadata.parquet say more about the files in their folder and below:
    the column `file_name` is a path relative to the metadata file, all others become columns. What they name must be
    there, once; files that they do not name are left out, as imagefolder does. A column `label` of theirs counts
    instead of folder names.

    Args:
        data_dir: the folder: `class/file`, `split/class/file` or `class/split/file`, where the files may be of any
            readable format, also mixed. With metadata or `drop_labels=True` they may lie at any depth, below folders
            of splits or not.
        num_points: draw this many points of every file, so that all clouds have one size; None keeps all points of
            point files and draws `mesh_points` from the surface of meshes.
        mesh_points: points of a mesh when `num_points` is None.
        columns: of "normals", "colors" and "labels" (one a point), those to be read too; every file must have them.
        seed: decides which points are drawn, for each file on its own.
        on_error: "raise" stops at a file that cannot be read; "skip" leaves it out with a warning.
        drop_labels: True makes no `label` of folder names. False demands that they say the classes. None demands it
            where there is no metadata; where there is, and it has no labels, names of several class folders serve.
        drop_metadata: True passes metadata files over.
        follow_links: follow links that lead outside of the folder. False refuses them, since a folder that a stranger
            made could name any file of this machine with them; links within the folder are always followed.
        as_files: give a column `point_cloud` of the files themselves (`PointCloud`) instead of columns of points; no
            file is opened before its row is read. `files_to_points` makes columns of points of it.
        streaming: read files when their rows come up, and keep nothing on disk.
        options: `cache_dir`, `keep_in_memory` and `num_proc` of `datasets.Dataset.from_generator`; not for `as_files`
            and `streaming`, which write no cache.

    Returns:
        Splits with `points` (Array2D float32, in the units of the file) or `point_cloud`; `label` (ClassLabel, names
        in alphabetical order); `file` (path inside the folder); the columns asked for: `normals` float32, `colors`
        uint8, `labels` int64; and those of the metadata. Without folders of splits, all is `train`.

    Raises:
        ValueError: an unreadable file, a link that leads outside, a layout that says no class, splits whose classes
            differ, or metadata that does not fit the files.
        FileNotFoundError: no such folder, or no clouds in it.
    """
    if data_dir is None:
        raise ValueError("data_dir is None; expected the folder with the clouds")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
    wanted = CloudColumns(num_points, mesh_points, tuple(columns), seed)
    if as_files and (wanted != CloudColumns() or on_error != "raise"):
        raise ValueError(
            "as_files=True opens no file yet; pass num_points, mesh_points, columns, seed and on_error to "
            "files_to_points instead"
        )
    if as_files or streaming:
        # So that a cache folder given with them does not look used.
        if unused := set(options) - {"cache_dir"}:
            raise ValueError(f"{sorted(unused)[0]} has no use with as_files=True or streaming=True")
    root = Path(data_dir)
    listed = list_folder(root, drop_labels=drop_labels, drop_metadata=drop_metadata, follow_links=follow_links)
    if as_files:
        return _files(root, listed, streaming)
    loaded = {
        split: _read(root, rows, wanted, on_error == "skip", streaming, options) for split, rows in listed.items()
    }
    return IterableDatasetDict(loaded) if streaming else DatasetDict(loaded)


def _files(root: Path, listed: DatasetDict, streaming: bool) -> DatasetDict | IterableDatasetDict:
    splits = DatasetDict()
    for split, rows in listed.items():
        paths = [str(root.absolute() / name) for name in rows[FILE]]
        names = ["point_cloud", *rows.column_names]
        if "point_cloud" in rows.column_names:
            raise ValueError(
                f"{root}: the metadata has a column 'point_cloud', which is the name of another; rename it"
            )
        splits[split] = (
            rows.add_column("point_cloud", paths).select_columns(names).cast_column("point_cloud", PointCloud())
        )
    if not streaming:
        return splits
    return IterableDatasetDict(
        {
            split: rows.to_iterable_dataset(num_shards=max(1, len(rows) // _FILES_PER_SHARD))
            for split, rows in splits.items()
        }
    )


def _read(
    root: Path, rows: Dataset, wanted: CloudColumns, skip: bool, streaming: bool, options: dict
) -> Dataset | IterableDataset:
    if taken := sorted(set(wanted.names) & set(rows.column_names)):
        raise ValueError(f"{root}: the metadata has a column {taken[0]!r}, which is the name of another; rename it")
    features = Features({**wanted.features, **rows.features})
    files = [(row, str(root / row[FILE])) for row in rows.to_list()]
    arguments = {"wanted": wanted, "skip": skip}
    if streaming:
        # A list is what `datasets` splits among ranks and workers.
        shards = [files[start : start + _FILES_PER_SHARD] for start in range(0, len(files), _FILES_PER_SHARD)]
        arguments["shards"] = shards
        return IterableDataset.from_generator(_rows, features, arguments, rows.split)
    # Sizes and times of the files are part of the arguments, so that a changed file is read anew.
    stamped = [(row, path, *_stamp(path)) for row, path in files]
    if options.get("num_proc"):
        arguments["shards"] = [[file] for file in stamped]
    else:
        # In a tuple, they are no shards to `datasets`, which would handle each by itself.
        arguments |= {"shards": (stamped,), "is_whole_split": True}
    try:
        return Dataset.from_generator(
            _rows,
            features=features,
            gen_kwargs=arguments,
            split=rows.split,
            writer_batch_size=wanted.rows_at_a_time,
            **options,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _rows(
    shards: Sequence[Sequence[tuple]], wanted: CloudColumns, skip: bool, is_whole_split: bool = False
) -> Iterator[dict]:
    none_read = True
    for shard in shards:
        for row, path, *_ in shard:
            try:
                columns = _columns(path, wanted)
            except PointCloudError as error:
                if not skip:
                    raise
                logger.warning("left out %s", error)
                continue
            none_read = False
            yield {**columns, **row}
    if none_read and is_whole_split:
        files = shards[0]
        raise ValueError(f"none of the {len(files)} files of a split could be read, the first is {files[0][1]}")


def _columns(path: str, wanted: CloudColumns) -> dict[str, np.ndarray]:
    cloud = read_point_cloud(path)
    try:
        return wanted.row(cloud)
    except PointCloudError as error:
        raise PointCloudFileError(f"{path}: {error}") from None
