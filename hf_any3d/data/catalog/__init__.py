"""Datasets of point clouds by name. A new one is a file in this package and a line in `CATALOG`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

from hf_any3d.modeling.hub_names import check_repository_name

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

CATALOG: dict[str, str] = {
    "folder": "folder",  # a folder of point files and meshes, label = folder name
    "modelnet40": "modelnet40",  # CAD models of 40 classes
    "modelnet40_fewshot": "modelnet40_fewshot",  # its few-shot episodes
    "modelnet40_generative": "modelnet40_generative",  # its test set with questions for language models
    "objaverse_captions": "objaverse_captions",  # coloured objects with captions and conversations
    "parquet": "parquet",  # local Parquet files with a column of points
    "parts": "parts",  # objects assembled in code, each point with its part
    "rooms": "rooms",  # rooms composed of the embedded shapes, each point with its object's class
    "s3dis": "s3dis",  # scanned rooms of six areas, each point with one of 13 classes
    "scanobjectnn": "scanobjectnn",  # objects cut out of scans of real rooms, 15 classes
    "shapenet55": "shapenet55",  # models of 55 categories, to pretrain on
    "shapenetpart": "shapenetpart",  # objects of 16 categories, each point with one of 50 parts
    "shapes": "shapes",  # the small set of household objects in examples/data
}
"""Name -> module in this package, whose `load(data_dir, **options)` returns a DatasetDict."""


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
    """Load a dataset of labelled point clouds.

    Rows have `points` (num_points, 3 or more) float32 and usually `label`, a ClassLabel. All columns are of plain
    types, so what `push_to_hub` uploads opens without this package. Rows are read as numpy arrays; for lists, use
    `.with_format(None)`. A column of files (`PointCloud`) stays one; `files_to_points` converts it to points.

    Args:
        name: a name in `CATALOG`, or a repository on the hub (`owner/name`).
        data_dir: folder of the files; the docstring of the dataset's module describes its layout.
        split: return only this split.
        options: further arguments of the named dataset; for a repository, of `datasets.load_dataset`.

    Returns:
        A DatasetDict, or the Dataset of `split`.

    Raises:
        ValueError: an unknown name or split; data without a column of points; splits whose classes differ.
        FileNotFoundError: missing data, or a name that looks like a path where nothing is.
    """
    from hf_any3d.data.catalog.folder import prepare_splits

    if "/" in name:
        from datasets import load_dataset

        check_repository_name(name, options.get("revision"), kind="dataset")
        splits = load_dataset(name, data_dir=None if data_dir is None else os.fspath(data_dir), **options)
    elif name in CATALOG:
        module = import_module(f"{__name__}.{CATALOG[name]}")
        splits = module.load(data_dir, **options)
        # Files in a folder of the caller may be others than ours.
        if data_dir is None and hasattr(module, "LICENCE"):
            for rows in splits.values():
                rows.info.license = rows.info.license or str(module.LICENCE)
    else:
        raise ValueError(f"unknown dataset {name!r}; known are {', '.join(sorted(CATALOG))}, or owner/name on the hub")
    if split is not None and split not in splits:
        raise ValueError(f"dataset {name!r} has no split {split!r}; it has {', '.join(splits)}")
    splits = prepare_splits(splits, name)
    return splits if split is None else splits[split]
