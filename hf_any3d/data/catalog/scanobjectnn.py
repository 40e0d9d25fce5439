"""ScanObjectNN: objects of 15 classes cut out of scans of real rooms."""

import os
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict, Features, IterableDatasetDict, List

from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import License, PublishedDataset, load_published
from hf_any3d.data.parquet.reading import hdf5_source

FILES = {
    "obj_bg": ("main_split", "objectdataset"),
    "obj_only": ("main_split_nobg", "objectdataset"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75"),
    "pb_t50_rs_nobg": ("main_split_nobg", "objectdataset_augmentedrot_scale75"),
}
"""Variant -> folder, and the name of its files after `training_` or `test_`."""

SPLITS = {"train": "training", "test": "test"}
NUM_POINTS = 2048

DATASET = PublishedDataset(
    name="scanobjectnn",
    description=(
        "ScanObjectNN: 2,902 objects of 15 classes, cut out of scans of real rooms, as clouds of 2,048 points. "
        "Variants: objects with background, objects only, and objects cut, moved, turned and scaled at random."
    ),
    homepage="https://hkust-vgd.github.io/scanobjectnn/",
    license=License(
        "other",
        "for non-commercial research, after agreeing to the authors' terms of use",
        "https://hkust-vgd.github.io/scanobjectnn/",
    ),
    citation="""@inproceedings{uy2019scanobjectnn,
  title = {Revisiting Point Cloud Classification: A New Benchmark Dataset and Classification Model on Real-World Data},
  author = {Uy, Mikaela Angelina and Pham, Quang-Hieu and Hua, Binh-Son and Nguyen, Duc Thanh and Yeung, Sai-Kit},
  booktitle = {International Conference on Computer Vision (ICCV)},
  year = {2019}
}""",
    expected_counts={
        "obj_bg": {"train": 2309, "test": 581},
        "obj_only": {"train": 2309, "test": 581},
        "pb_t50_rs": {"train": 11416, "test": 2882},
        "pb_t50_rs_nobg": {"train": 11416, "test": 2882},
    },
    origin=(
        "Agree to the terms of use at https://hkust-vgd.github.io/scanobjectnn/, get h5_files.zip by the link in the "
        "answer, unpack it and pass the folder above h5_files as data_dir"
    ),
    layout="""  h5_files/main_split/{training,test}_objectdataset.h5                            obj_bg
  h5_files/main_split/{training,test}_objectdataset_augmentedrot_scale75.h5       pb_t50_rs
  h5_files/main_split_nobg/{training,test}_objectdataset.h5                       obj_only
  h5_files/main_split_nobg/{training,test}_objectdataset_augmentedrot_scale75.h5  pb_t50_rs_nobg""",
    class_names=tuple("bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet".split()),
)


def load(
    data_dir: str | os.PathLike | None = None, *, variant: str = "pb_t50_rs", masks: bool = False, **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read the official HDF5 files of ScanObjectNN; needs the package h5py.

    Rows have `points` (2048, 3) in the units of the files, neither centered nor scaled, and `label`.

    Args:
        data_dir: the folder above `h5_files`, that folder, or the one above `ScanObjectNN/h5_files`.
        variant: "obj_bg" (objects with background), "obj_only" (without), "pb_t50_rs" (the hardest: moved by up to
            half the size of the box, turned and scaled, with background) or "pb_t50_rs_nobg" (the same without).
        masks: also read `labels` (2048,), object or background for each point. Such rows are for segmentation: a
            batch for classification cannot have both.
        conversion: `cache_dir`, `verify`, `on_error`, `streaming` and `partial` of
            `hf_any3d.data.parquet.load_published`.

    Source: Uy et al., "Revisiting Point Cloud Classification", Sec. 3.
    """
    one_of("variant", variant, FILES)
    root = DATASET.root(data_dir)
    folder, name = FILES[variant]
    places = [root / above / folder for above in ("h5_files", "", "ScanObjectNN/h5_files")]
    # Errors name the first of these places if the files are in none.
    place = next((place for place in places if place.is_dir()), places[0])
    files = {split: place / f"{prefix}_{name}.h5" for split, prefix in SPLITS.items()}
    if conversion.get("partial"):
        files = {split: file for split, file in files.items() if file.is_file()} or files
    DATASET.require(files.values(), root)

    # Clouds are read as they are stored; training draws fewer points of them.
    features = Features({"points": Array2D((NUM_POINTS, 3), "float32"), "label": DATASET.class_label()})
    # Name of the array in the file -> column
    columns = {"data": "points", "label": "label"}
    if masks:
        features["labels"] = List(ClassLabel(names=["background", "object"]))
        columns["mask"] = "labels"
    # One file a split, read row by row
    sources = {split: hdf5_source([file], columns, _row) for split, file in files.items()}
    options = {"masks": masks}
    return load_published(DATASET, root, sources, features, variant=variant, options=options, **conversion)


def _row(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "labels" in values:
        # Masks are -1 at points of the background.
        values["labels"] = (values["labels"] != -1).astype(np.int64)
    return values
