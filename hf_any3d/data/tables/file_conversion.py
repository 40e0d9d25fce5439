"""Convert columns of files (`PointCloud`) to plain columns of points that anyone can open, and back."""

import logging
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
from datasets import Array2D, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value, config
from datasets.fingerprint import Hasher
from datasets.table import embed_table_storage

from hf_any3d.data.feature import PointCloud, local_path, read_stored
from hf_any3d.data.files import PointCloudData, PointCloudError, file_errors
from hf_any3d.data.files.point_cloud import MEASURED
from hf_any3d.data.files.registry import read_stamp
from hf_any3d.data.options import one_of, require_columns
from hf_any3d.data.point_arrays import resample_index
from hf_any3d.data.tables.numpy_rows import numpy_rows, refuse_transform
from hf_any3d.version import __version__

if TYPE_CHECKING:
    from datasets.features.features import FeatureType

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", bound=Dataset | DatasetDict | IterableDataset | IterableDatasetDict)
Conversion = TypeVar("Conversion", bound=Callable)

_ROWS_OF_FILES = 16
_EXACT = PointCloud(format="npz")
# Of columns; colors in bytes, as most files have them, take a quarter of the space.
_TYPES = {"points": "float32", "normals": "float32", "colors": "uint8"}
# One number for each point.
_NUMBERS = {"labels": "int64", **dict.fromkeys(MEASURED, "float32")}
_TYPES |= _NUMBERS | {"offset": "float64"}
_BYTES_AT_A_TIME = 16 * 2**20
_TYPICAL_POINTS = 100_000


def _each_split(function: Conversion) -> Conversion:
    """Let a function of a dataset take several splits too."""

    @wraps(function)
    def convert(dataset: Any, **options: Any) -> Any:
        if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
            return type(dataset)({split: convert(rows, **options) for split, rows in dataset.items()})
        refuse_transform(dataset, function.__name__)
        return function(dataset, **options)

    return cast("Conversion", convert)


@_each_split
def files_to_points(
    dataset: AnyDataset,
    *,
    column: str | None = None,
    num_points: int | None = None,
    mesh_points: int = 2048,
    columns: Sequence[str] = (),
    seed: int = 0,
    on_error: str = "raise",
    num_proc: int | None = None,
) -> AnyDataset:
    """Replace a column of point cloud files by plain columns of points, which anyone can open and training reads.

    A few clouds at a time are in memory; the result is cached on disk, as with `Dataset.map`. Streams stay streams.

    Args:
        dataset: rows or splits with a `PointCloud` column.
        column: its name; None takes the only one.
        num_points: draw this many points of every cloud, so that all have one size; None keeps all points of point
            files and draws `mesh_points` from the surface of meshes.
        mesh_points: points of a mesh when `num_points` is None.
        columns: further columns to read, see `CloudColumns`.
        seed: seed of the points that are drawn, combined with each cloud's content.
        on_error: "raise" stops at a file that cannot be read; "skip" leaves its row out with a warning.
        num_proc: processes that read in parallel; not for streams.

    Returns:
        The same rows, read as numpy arrays, with `points` (Array2D float32, in the units of the file) and the
        requested columns (`normals` float32, `colors` uint8, `labels` int64) before the other columns.

    Raises:
        ValueError: `column` is no column of clouds, or a column of the result exists already.
        PointCloudFileError: A file cannot be read, or lacks a requested column; with `on_error="skip"` a warning.
    """
    skip = one_of("on_error", on_error, ("raise", "skip")) == "skip"
    converter = CloudColumns(num_points, mesh_points, columns, seed)
    features = _features_of(dataset)
    clouds = [name for name, feature in features.items() if isinstance(feature, PointCloud)]
    if column not in clouds and not (column is None and len(clouds) == 1):
        raise ValueError(
            f"column is {column!r}; expected the name of a PointCloud column, of which there are "
            + (", ".join(clouds) or f"none among {', '.join(features)}")
        )
    column = column or clouds[0]
    others = {name: feature for name, feature in features.items() if name != column}
    new = Features({**converter.features, **others})
    check_free(converter.names, others)
    # Rows as they are stored: files are read here, where errors can be handled.
    stored = dataset.with_format(None)
    for name, feature in features.items():
        if getattr(feature, "decode", False):  # files of other columns are not opened
            stored = stored.cast_column(name, replace(feature, decode=False))
    arguments = {"column": column, "converter": converter, "kept": tuple(others) if skip else (), "skip": skip}
    if isinstance(stored, Dataset):
        # `map` derives its cache key from the arguments; stored paths stay the same when a file changes.
        arguments["stamp"] = _stamp(stored, column)
    rows = _map(
        stored,
        _read_batch,
        arguments,
        # Only a batch that loses rows needs the other columns too.
        input_columns=None if skip else [column],
        remove_columns=[column],
        features=new,
        num_proc=num_proc,
        description="Reading point clouds",
    )
    return rows.with_format("numpy")


@_each_split
def points_to_files(
    dataset: AnyDataset,
    *,
    format: str = "ply",
    column: str = "point_cloud",
    columns: Sequence[str] | None = None,
    num_proc: int | None = None,
) -> AnyDataset:
    """Replace plain columns of points by a column of point cloud files.

    Args:
        dataset: rows or splits with `points` (points, 3), as from `load_point_dataset`.
        format: "ply", which every program reads and which keeps colors in 8 bits, or "npz".
        column: name of the new column.
        columns: columns to write into the files: "normals", "colors" and "labels" (one per point); None takes
            existing normals and colors. All others stay columns.
        num_proc: processes that write in parallel; not for streams.

    Returns:
        The same rows with a `PointCloud` column of embedded files before the other columns.
    """
    feature = PointCloud(format=format)
    features = _features_of(dataset)
    used = [name for name in ("normals", "colors") if name in features] if columns is None else list(columns)
    require_columns(("points", *used), features)
    # Only checks the names; nothing is read with it.
    CloudColumns(columns=used)
    others = {name: feature for name, feature in features.items() if name not in ("points", *used)}
    check_free([column], others)
    # Rows of streams stay as they are: `_write_batch` makes arrays of them.
    return _map(
        numpy_rows(dataset, ["points", *used]) if isinstance(dataset, Dataset) else dataset,
        _write_batch,
        {"names": ("points", *used), "column": column, "feature": feature},
        input_columns=["points", *used],
        remove_columns=["points", *used],
        features=Features({column: feature, **others}),
        num_proc=num_proc,
        description="Writing point clouds",
    ).with_format(None)


@_each_split
def add_preview(
    dataset: AnyDataset, *, column: str = "preview", num_points: int = 2048, num_proc: int | None = None
) -> AnyDataset:
    """Add a column of small .ply files, which programs without this package open and viewers of datasets draw.

    The column has the type `Mesh` of `datasets`, which has it from 5.0 on. All other columns stay as they are.

    Args:
        dataset: rows or splits with `points` (points, 3) and perhaps `colors` (0 to 255).
        column: name of the new column.
        num_points: most points of a file; larger clouds are thinned out.
        num_proc: processes that write in parallel; not for streams.
    """
    # Older versions of `datasets` have no such type.
    from datasets import Mesh

    features = _features_of(dataset)
    require_columns(["points"], features)
    check_free([column], features)
    names = [name for name in ("points", "colors") if name in features]
    rows = _map(
        numpy_rows(dataset, names) if isinstance(dataset, Dataset) else dataset,
        _write_batch,
        {"names": names, "column": column, "feature": PointCloud(), "num_points": num_points},
        input_columns=names,
        features=Features({**features, column: Mesh()}),
        num_proc=num_proc,
        description="Drawing previews",
    )
    # The format of a stream lists no columns.
    if not isinstance(dataset, Dataset):
        return rows
    form = dataset.format
    # A format lists its columns, and the new one would be invisible.
    return rows.with_format(form["type"], columns=[*form["columns"], column], **form["format_kwargs"])


@_each_split
def embed_files(dataset: AnyDataset, *, num_proc: int | None = None) -> AnyDataset:
    """Read the files that a dataset refers to by path into the dataset, so that `to_parquet` writes them too.

    `push_to_hub` does so automatically; `to_parquet` alone would write the paths of this machine.

    Args:
        dataset: rows or splits with columns of files, PointCloud, Mesh, Image or others; not a stream.
        num_proc: processes that read in parallel.
    """
    assert isinstance(dataset, Dataset), "streams cannot be embedded"
    form = dataset.format
    stamp = 0
    for name, feature in dataset.features.items():
        if hasattr(feature, "embed_storage"):
            # Without decoding, which would read every file only to get its path.
            stamp = _stamp(dataset.cast_column(name, replace(feature, decode=False)), name, stamp)
    # As Arrow tables, which `embed_table_storage` takes
    embedded = dataset.with_format("arrow").map(
        embed_table_storage,
        cache_file_name=_cache_file(dataset, "embed_files", stamp),
        batched=True,
        batch_size=_ROWS_OF_FILES,
        writer_batch_size=_ROWS_OF_FILES,
        num_proc=num_proc,
        desc="Embedding files",
    )
    return embedded.with_format(**form)


@dataclass(frozen=True)
class CloudColumns:
    """Convert clouds to columns of a dataset.

    Attributes:
        num_points: draw this many points of every cloud; None keeps all points of point files and draws `mesh_points`
            from the surface of meshes.
        mesh_points: points of a mesh when `num_points` is None.
        columns: columns besides the points: "normals", "colors" (0 to 255), "intensity", "ring" and "labels", which
            every file must have, and "offset", which `points` are relative to.
        seed: seed of the points that are drawn.
        may_lack_normals: whether normals that a file lacks are 0, and no error.
    """

    num_points: int | None = None
    mesh_points: int = 2048
    columns: Sequence[str] = ()
    seed: int = 0
    may_lack_normals: bool = False

    def __post_init__(self):
        for name in self.columns:
            one_of("column", name, [name for name in _TYPES if name != "points"])
        object.__setattr__(self, "columns", tuple(self.columns))  # so that equal choices are equal

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, points first."""
        return ("points", *self.columns)

    @property
    def features(self) -> "dict[str, FeatureType]":
        """Types of the columns in `datasets`."""
        # (points, 3) for all at first; columns of another shape are replaced below
        types: dict[str, FeatureType] = {name: Array2D((self.num_points, 3), _TYPES[name]) for name in self.names}
        for name in {*types} & {*_NUMBERS}:
            types[name] = List(Value(_TYPES[name]), length=self.num_points or -1)
        if "offset" in types:
            types["offset"] = List(Value(_TYPES["offset"]), length=3)
        return types

    def row(self, cloud: PointCloudData) -> dict[str, np.ndarray]:
        """Convert one cloud to the row of a data set.

        | column | shape | type | unit or range |
        |---|---|---|---|
        | `points` | `(points, 3)` | float32 | those of the file, relative to its offset |
        | `normals` | `(points, 3)` | float32 | those of the file |
        | `colors` | `(points, 3)` | uint8 | 0 to 255 |
        | `intensity` | `(points,)` | float32 | that of the file's format |
        | `ring` | `(points,)` | float32 | number of the laser, from 0 |
        | `labels` | `(points,)` | int64 | those of the file |
        | `offset` | `(3,)` | float64 | what `points` are relative to; 0 if the file has none |

        A warning tells of an offset that is left out. float32 moves points by a ten-millionth of the extent at most.
        """
        # Seeded by its own points, a cloud gives the same sample whatever its path and the other files.
        generator = np.random.default_rng([self.seed, zlib.crc32(np.ascontiguousarray(cloud.points).data)])
        # Points of a mesh are drawn already, so all of them are taken.
        index = slice(None)
        if cloud.is_mesh:
            cloud = cloud.sample_surface(self.num_points or self.mesh_points, generator)
        elif self.num_points is not None:
            index = resample_index(len(cloud), self.num_points, generator)
        row = {}
        if cloud.offset is not None and "offset" not in self.names:
            text = (
                "points far from the origin are stored relative to an offset, which is lost; add 'offset' to "
                "columns to keep it"
            )
            warnings.warn(text, stacklevel=2)
        for name in self.names:
            values = getattr(cloud, name)
            if name == "offset":
                row[name] = np.zeros(3) if values is None else values
                continue
            if values is None and name == "normals" and self.may_lack_normals:
                values = np.zeros_like(cloud.points)
            if values is None:
                hint = "; a training estimates them with --estimate-normals" if name == "normals" else ""
                raise PointCloudError(f"the file has no {name}; leave them out of columns, or the file{hint}")
            if name == "colors":
                # Colors are in [0, 1] in `PointCloudData`, and stored in a quarter of the space.
                values = (values * 255).round()
            row[name] = values[index].astype(_TYPES[name])
        return row


def rows_at_a_time(features: Features) -> int:
    """Return the number of rows to write at a time: enough for speed, few enough for memory."""
    arrays = [feature for feature in features.values() if isinstance(feature, Array2D)]
    # The first size is None where clouds have different numbers of points.
    size = sum(12 * (array.shape[0] or _TYPICAL_POINTS) for array in arrays)
    return max(1, min(1000, _BYTES_AT_A_TIME // max(1, size)))


def _map(
    dataset: Any,
    function: Callable,
    arguments: dict[str, Any],
    *,
    features: Features,
    num_proc: int | None,
    description: str,
    **options: Any,
) -> Any:
    """Map a dataset or a stream; return the same kind."""
    # Rows that are read need memory as well as rows that are written.
    size = min(_ROWS_OF_FILES, rows_at_a_time(_features_of(dataset)), rows_at_a_time(features))
    options |= {"batched": True, "batch_size": size, "fn_kwargs": arguments}
    if num_proc is not None:
        options["num_proc"] = num_proc  # streams have none, as workers of a DataLoader read them in parallel
    if isinstance(dataset, IterableDataset):
        # Passed to map, features would mean that its results are decoded already.
        return dataset.map(function, **options).cast(features)
    return dataset.map(
        function,
        features=features,
        cache_file_name=_cache_file(dataset, function.__name__, arguments, features),
        writer_batch_size=size,
        desc=description,
        **options,
    )


def _cache_file(dataset: Dataset, *arguments: Any) -> str | None:
    """Return a cache file for a dataset in memory, since `Dataset.map` would keep its result in memory too."""
    if dataset.cache_files:
        return None  # map writes next to them
    # Another version of this package may read the same file otherwise.
    key = Hasher.hash((__version__, dataset._fingerprint, *arguments))
    folder = Path(config.HF_DATASETS_CACHE) / "hf_any3d" / "conversions"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{key}.arrow")


def _read_batch(
    *batch: Any, column: str, converter: CloudColumns, kept: tuple[str, ...], skip: bool, stamp: int = 0
) -> dict:
    """Read the files of a batch; with `skip`, drop unreadable rows and return the `kept` columns too."""
    # `map` passes all columns as one dict, or those of `input_columns` one by one.
    files = batch[0][column] if skip else batch[0]
    rows: dict[str, list] = {name: [] for name in converter.names}
    places = []  # of the files that could be read
    for place, file in enumerate(files):
        try:
            name = (file.get("path") if isinstance(file, Mapping) else None) or "<bytes>"
            # A row without a file is an error like any other, that of `read_stored`.
            if file is None:
                file = {"path": None}
            if not (isinstance(file, Mapping) and "path" in file):
                file = _EXACT.encode_example(file)  # a stream passes on the results of earlier functions
            cloud = read_stored(file["path"], file.get("bytes"))
            with file_errors(name):
                row = converter.row(cloud)
        except PointCloudError as error:
            if not skip:
                raise
            logger.warning("left out %s", error)
            continue
        places.append(place)
        for name, values in row.items():
            rows[name].append(values)
    # `map` needs columns of equal length: those of skipped rows are dropped from all.
    if kept and len(places) < len(files):
        for name in kept:
            rows[name] = [batch[0][name][place] for place in places]
    return rows


def _write_batch(
    *batch: Any, names: Sequence[str], column: str, feature: PointCloud, num_points: int | None = None
) -> dict:
    files = []
    for values in zip(*batch, strict=True):
        row = dict(zip(names, map(np.asarray, values), strict=True))
        if num_points is not None and len(row["points"]) > num_points:
            # The same seed for each cloud, so that a preview does not change with its row number.
            index = np.random.default_rng(0).choice(len(row["points"]), num_points, replace=False)
            row = {name: value[index] for name, value in row.items()}
        files.append(feature.encode_example(row))
    return {column: files}


def _features_of(dataset: Any) -> Features:
    # A stream may know its columns only from its first rows.
    if isinstance(dataset, IterableDataset):
        dataset = dataset._resolve_features()
    assert dataset.features is not None
    return dataset.features


def check_free(names: Iterable[str], features: Iterable[str]) -> None:
    """Check that new columns have other names than those that are there."""
    taken = sorted({*names} & {*features})
    if taken:
        raise ValueError(f"there is a column {taken[0]!r} already; rename or remove it, or choose another name")


def _stamp(stored: Dataset, column: str, stamp: int = 0) -> int:
    """Return a number that changes when one of the files does, for the cache key."""
    # As Arrow tables, so that no embedded file becomes a Python object
    batches = stored.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    for batch in cast("Iterator[pa.Table]", batches):
        for path in batch.column(column).combine_chunks().field("path").to_pylist():
            path = None if path is None else local_path(path)
            # Remote files, and names of embedded ones, have no stamp.
            if path is not None and os.path.isfile(path):
                stamp = zlib.crc32(f"{path} {read_stamp(path)}".encode(), stamp)
    return stamp
