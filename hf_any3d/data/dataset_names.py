"""Find out what a name of data is: a folder, a Parquet file, a dataset of the catalog or of the hub."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_any3d.hub.models import ADAPTER, CONFIG
from hf_any3d.hub.names import is_path_like, no_such, similar_path, skip_hub_if_offline
from hf_any3d.registry import DATASETS, FORMATS, HDF5, LABELED_CLOUDS, LABELED_POINTS, LABELED_WITH_BOXES
from hf_any3d.utils.atomic_files import read_json_object

# Files of boxes beside scans: this package's own, and those of Label Cloud, Datumaro (CVAT) and KITTI.
_BOXES = ("boxes.json", "boxes.parquet", "labels/*.json", "annotations/*.json", "*/ann/*.json", "label_2/*.txt")
_BOXES += ("tracklet_labels.xml",)
# Files of a folder among which one has to have labels of points, for the folder to be one of labeled points.
_LOOKED_AT = 8
# Keys of what config.json says of a model.
_OF_MODELS = {"model_type", "architectures"}


@dataclass(frozen=True)
class FoundDataset:
    """The data that a user named: the name for `load_point_dataset`, and the folder or file, if it is one.

    A file of HDF5 is its `folder`, as the loader takes either.
    """

    name: str
    folder: Path | None = None
    file: Path | None = None

    def load(self, data_dir: str | None = None, **options: Any) -> Any:
        """Load all splits."""
        from hf_any3d.data import load_point_dataset

        if self.file is not None:
            return load_point_dataset("parquet", data_files={"train": str(self.file)}, **options)
        return load_point_dataset(self.name, data_dir=data_dir or self.folder, **options)

    def labels(self) -> str | None:
        """Return whether labels belong to clouds, points, boxes or texts.

        None for data on the hub, and for a folder in which neither folders nor points have a class.
        """
        if self.name == "folder" and self.folder is not None:
            return _labels_of_folder(self.folder)
        if self.name == "hdf5" and self.folder is not None:
            from hf_any3d.data.catalog.hdf5 import labels_of_points

            return LABELED_POINTS if labels_of_points(self.folder) else LABELED_CLOUDS
        # The catalog knows the labels of its datasets; Parquet files are asked for their columns.
        if self.name != "parquet" or not (self.file or self.folder):
            return DATASETS.get(self.name)
        import pyarrow.parquet
        import pyarrow.types

        # All files of a folder have the same columns, so that one of them is enough.
        file = self.file or min(Path(self.folder or "").rglob("*.parquet"))
        try:
            columns = pyarrow.parquet.read_schema(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file}: not Parquet ({error})") from None
        if columns.get_field_index("boxes") >= 0:
            return LABELED_WITH_BOXES
        place = columns.get_field_index("labels")
        # A list belongs to the points of a cloud, a single value to the cloud.
        is_list = place >= 0 and pyarrow.types.is_nested(columns.field(place).type)
        return LABELED_POINTS if is_list else LABELED_CLOUDS


def find_dataset(name: str, option: str | None = None) -> FoundDataset:
    """Find out what a name of data is, without the hub; errors name the option that has it, if any."""
    path = Path(name).expanduser()
    if path.is_dir():
        # A folder of scans may have a file of this name, too.
        is_adapter = (path / ADAPTER).is_file()
        if is_adapter or not read_json_object(path / CONFIG).keys().isdisjoint(_OF_MODELS):
            raise ValueError(
                f"{name}: the directory of a model, not of data; expected a folder of scans, a .parquet file or a "
                "dataset"
            )
        return FoundDataset(_kind_of_folder(path), folder=path)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return FoundDataset("parquet", file=path)
    if path.is_file() and path.suffix.lower() in HDF5:
        return FoundDataset("hdf5", folder=path)
    if name in DATASETS:
        return FoundDataset(name)
    if path.is_file() and path.suffix[1:].lower() not in FORMATS:
        from hf_any3d.data.files.contents import Look, type_under_other_ending

        _, refusal = type_under_other_ending(Look.into(path), path.name)
        if refusal:
            raise ValueError(f"{name}: {refusal}")
    # Whatever looks like a path is not looked for on the hub, whose answer would be about a repository.
    if path.is_file() or is_path_like(name, needs_owner=True):
        if option is None and not path.is_file() and "://" in name:
            raise FileNotFoundError(no_such(name))
        hint = _hint_for(name, path)
        if option is not None:
            raise FileNotFoundError(f"{option}: no dataset {name}{hint}")
        if path.is_file():
            raise ValueError(f"{name}: a single file; expected a folder of scans, a .parquet file or a dataset")
        raise FileNotFoundError(f"{name}: no such folder, .parquet file or dataset{hint}")
    skip_hub_if_offline()
    return FoundDataset(name)


def names_dataset(name: str) -> bool:
    """Return whether a word names a dataset, of this machine, the catalog or the hub, and not files of clouds."""
    path = Path(name)
    if path.suffix == ".parquet" or path.suffix.lower() in HDF5 or (path.is_dir() and any(path.rglob("*.parquet"))):
        return True
    if path.is_dir() and _kind_of_folder(path) == "hdf5":
        return True
    # A pattern of files is no name; of `owner/name`, a folder `owner` here makes it a path.
    is_name = name in DATASETS or (name.count("/") == 1 and not Path(name.partition("/")[0]).exists())
    return is_name and not path.exists() and not set("*?[") & set(name)


def _kind_of_folder(path: Path) -> str:
    """Return the dataset of the catalog that reads a folder."""
    # Of the folder itself, or of the splits in it.
    for place in (path, *(path / split for split in ("train", "validation", "test"))):
        for pattern in _BOXES:
            if next(place.glob(pattern), None) is not None:
                return "scans_with_boxes"
    # metadata.parquet describes the clouds of a folder and holds none.
    has_tables = any(file.name != "metadata.parquet" for file in path.rglob("*.parquet"))
    if has_tables:
        return "parquet"
    files = [(file.parent, file.suffix.lower()) for file in path.rglob("*")]
    folders = {folder for folder, ending in files if ending in HDF5}
    # Names of classes and lists of files are text beside HDF5.
    for folder, ending in files:
        if ending[1:] in FORMATS and not (ending == ".txt" and folder in folders):
            return "folder"
    return "hdf5" if folders else "folder"


def _labels_of_folder(folder: Path) -> str | None:
    """Return whether folders name classes of clouds, or points have them in the files; None if neither do."""
    from hf_any3d.data.catalog.folder_layout import names_classes

    if names_classes(folder):
        return LABELED_CLOUDS
    files = [path for path in sorted(folder.rglob("*")) if path.suffix[1:].lower() in FORMATS]
    # Each point of LAS has a class, so that none of these large files has to be read.
    if any(path.suffix.lower() in (".las", ".laz") for path in files):
        return LABELED_POINTS
    from hf_any3d.data.files import PointCloudError, read_point_cloud

    looked_at = 0
    for path in files:
        if looked_at == _LOOKED_AT:
            break
        # What is wrong with a file is told when it is learned.
        with warnings.catch_warnings(), contextlib.suppress(PointCloudError):
            warnings.simplefilter("ignore")
            cloud = read_point_cloud(path)
            looked_at += 1
            if cloud.labels is not None or cloud.face_labels is not None:
                return LABELED_POINTS
    return None


def _hint_for(name: str, path: Path) -> str:
    """Return what may have been meant by a name that names no data."""
    hint = similar_path(path)
    if hint:
        return hint
    similar = difflib.get_close_matches(name, DATASETS, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return "" if "/" in name else f"; datasets are {', '.join(sorted(DATASETS))}, and owner/name on the Hub"
