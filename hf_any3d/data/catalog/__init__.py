"""Datasets of point clouds by name. A new one is a file in this package and a line in
`hf_any3d.registry.DATASETS`.
"""

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

from hf_any3d.data.options import one_of
from hf_any3d.hub.names import check_name
from hf_any3d.registry import DATASETS, DATASETS_OF_EXTENSIONS, GENERATED
from hf_any3d.utils.messages import one_line

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset


def dataset_module(name: str) -> ModuleType:
    """Import the module of a dataset of the registry."""
    if name in DATASETS_OF_EXTENSIONS:
        return import_module(DATASETS_OF_EXTENSIONS[name])
    # By its name, since generated data belong to a later row of the architecture.
    return import_module(f"hf_any3d.data.generated.{name}" if name in GENERATED else f"{__name__}.{name}")


def up_axis_of(name: str) -> str | None:
    """Return the up axis of a dataset of the registry, or None if its module names none."""
    return getattr(dataset_module(name), "UP_AXIS", None) if name in DATASETS else None


@overload
def load_point_dataset(
    name: str, *, data_dir: str | os.PathLike | None = None, split: None = None, **options: Any
) -> "DatasetDict": ...


@overload
def load_point_dataset(
    name: str, *, data_dir: str | os.PathLike | None = None, split: str, streaming: Literal[True], **options: Any
) -> "IterableDataset": ...


@overload
def load_point_dataset(
    name: str, *, data_dir: str | os.PathLike | None = None, split: str, **options: Any
) -> "Dataset": ...


def load_point_dataset(
    name: str, *, data_dir: str | os.PathLike | None = None, split: str | None = None, **options: Any
) -> "DatasetDict | Dataset | IterableDataset":
    """Load a dataset of labeled point clouds.

    All columns are of plain types, so what `push_to_hub` uploads opens without this package. Rows are read as numpy
    arrays; for lists, use `.with_format(None)`. A column of files (`PointCloud`) stays one; `files_to_points` converts
    it to points. Others than these columns, such as names, are kept:

    | rows for | column | type | shape | meaning |
    |---|---|---|---|---|
    | all | `points` | float32 | (points, 3) | coordinates in the units of the files; rooms and streets in meters |
    | some | `colors` | uint8 | (points, 3) | red, green and blue from 0 to 255; for captions float32 from 0 to 1 |
    | some | `normals` | float32 | (points, 3) | directions of length 1 |
    | some | `intensity`, `ring` | float32 | (points,) | from a laser scanner, in its own units |
    | classification | `label` | ClassLabel | () | class of the cloud |
    | segmentation | `labels` | ClassLabel | (points,) | class of each point, -100 for none; in `folder` int64 |
    | parts | `label` | ClassLabel | () | category of the object, beside `labels`, its parts |
    | detection, layouts | `boxes` | float32 | (objects, 7) | center and size in meters, heading in radians |
    | detection, layouts | `box_labels` | ClassLabel | (objects,) | class of each box |
    | layouts | `layout` | string | () | walls, doors, windows and boxes: the text of a `Layout`, in meters |
    | captions | `conversations` | `from`, `value`: string | (turns,) | turns of `human` and `gpt` |
    | captions | `caption` | string | () | the answer of a description |

    Scenes with boxes have z up, and headings are counterclockwise about it. `<point>` in a turn stands for the cloud.

    Args:
        name: a name in `hf_any3d.registry.DATASETS`, or a repository on the hub (`owner/name`).
        data_dir: folder of the files; the docstring of the dataset's module describes its layout.
        split: return only this split.
        options: further arguments of the named dataset; for a repository, of `datasets.load_dataset`.

    Raises:
        ValueError: an unknown name or split; data without a column of points; splits whose classes differ.
        FileNotFoundError: missing data, or a name that looks like a path where nothing is.
    """
    from hf_any3d.data.catalog.folder import prepare_splits

    if "/" in name:
        from datasets import load_dataset

        check_name(name, {"revision": options.get("revision")}, kind="dataset")
        try:
            splits = load_dataset(name, data_dir=None if data_dir is None else os.fspath(data_dir), **options)
        except (FileNotFoundError, ConnectionError) as error:
            # A mistyped folder has the form of a name on the hub, too.
            text = f"{name}: no such folder, and not loaded from the Hub: {one_line(error)}"
            raise FileNotFoundError(text) from error
    else:
        module = dataset_module(one_of("name", name, [*sorted(DATASETS), "owner/name on the Hub"]))
        splits = module.load(data_dir, **options)
        # Files in a folder of the caller may be others than ours.
        if data_dir is None and hasattr(module, "LICENSE"):
            for rows in splits.values():
                rows.info.license = rows.info.license or str(module.LICENSE)
    if split is not None:
        one_of("split", split, splits)
    # Datasets of the hub have columns of all kinds; afterwards they look like ours.
    splits = prepare_splits(splits, name)
    return splits if split is None else splits[split]
