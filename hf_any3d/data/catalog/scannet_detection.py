"""ScanNet with boxes: scanned rooms, each object of 18 classes in a box along the axes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, DatasetDict, Features, IterableDatasetDict, Value

from hf_any3d.data.annotations.boxes import box_features, read_box_table
from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import read_lines, read_npy

UP_AXIS = "z"
# Classes of NYU40, by their numbers in the files.
NYU40 = {
    **{3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 10: "bookshelf"},
    **{11: "picture", 12: "counter", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "showercurtrain"},
    **{33: "toilet", 34: "sink", 36: "bathtub", 39: "garbagebin"},
}
# Number of NYU40 -> label
_NUMBERS = {number: index for index, number in enumerate(NYU40)}
_LISTS = {"train": "scannetv2_train.txt", "validation": "scannetv2_val.txt"}

DATASET = PublishedDataset(
    name="scannet_detection",
    description=(
        "ScanNet: 1,513 scanned rooms as colored clouds in meters, z up, with a box along the axes around each object "
        "of 18 classes, as VoteNet prepares them."
    ),
    homepage="https://github.com/ScanNet/ScanNet",
    license=License(
        "other",
        "for non-commercial research and education, after signing the authors' terms",
        "https://kaldir.vc.in.tum.de/scannet/ScanNet_TOS.pdf",
    ),
    citation="""@inproceedings{dai2017scannet,
  title = {ScanNet: Richly-annotated 3D Reconstructions of Indoor Scenes},
  author = {Dai, Angela and Chang, Angel X. and Savva, Manolis and Halber, Maciej and Funkhouser, Thomas and
            Nie{\\ss}ner, Matthias},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2017}
}""",
    expected_counts={"default": {"train": 1201, "validation": 312}},
    origin=(
        "Sign the terms at https://github.com/ScanNet/ScanNet, get the scans, run scannet/batch_load_scannet_data.py "
        "of https://github.com/facebookresearch/votenet, and pass the folder with its output and the lists of scenes"
    ),
    layout="""  scannet_train_detection_data/scene0000_00_vert.npy, scene0000_00_bbox.npy, ...
  meta_data/scannetv2_train.txt, scannetv2_val.txt                    a scene in each line""",
    class_names=tuple(NYU40.values()),
)


def load(
    data_dir: str | os.PathLike | None = None, *, colors: bool = True, **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read ScanNet in VoteNet's layout, one row a scene; scenes of the lists without files are left out.

    Rows have `points` (num_points, 3) in meters, z up, `colors` (num_points, 3) uint8, `boxes` (objects, 7), whose
    headings are 0, `box_labels` (objects,) and `scene`.

    Args:
        data_dir: the folder in the layout.
        colors: whether to read colors.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Qi et al., "Deep Hough Voting for 3D Object Detection in Point Clouds".
    """
    root = DATASET.root(data_dir)
    scenes = next((p for p in (root, root / "scannet_train_detection_data") if any(p.glob("*_vert.npy"))), None)
    lists = next((p for p in (root / "meta_data", root) if (p / _LISTS["train"]).is_file()), None)
    if scenes is None or lists is None:
        missing = "no scene*_vert.npy" if scenes is None else f"no {_LISTS['train']}"
        raise DATASET.not_found(f"{root}: {missing}")
    sources = {}
    for split, name in _LISTS.items():
        # Only the list of validation scenes may be missing.
        if not (lists / name).is_file():
            continue
        listed = [scene for scene in map(str.strip, read_lines(lists / name)) if scene]
        # As in the authors' program, which keeps those scenes of the lists that it has.
        present = [scene for scene in listed if (scenes / f"{scene}_vert.npy").is_file()]
        files = [scenes / f"{scene}_{kind}.npy" for scene in present for kind in ("vert", "bbox")]
        sources[split] = SplitSource(
            present,
            lambda scene: iter([_read(scenes, scene, colors)]),
            [lists / name, *files],
            num_rows=len(present),
            describe=lambda scene: str(scenes / f"{scene}_vert.npy"),
            missing=[file for file in files if not file.is_file()],
        )
    features: dict[str, Any] = {"points": Array2D((None, 3), "float32")}
    features |= {"colors": Array2D((None, 3), "uint8")} if colors else {}
    features |= {**box_features(DATASET.class_names), "scene": Value("string")}
    return load_published(DATASET, root, sources, Features(features), options={"colors": colors}, **conversion)


def _read(folder: Path, scene: str, colors: bool) -> Mapping[str, object]:
    path = folder / f"{scene}_vert.npy"
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] < (6 if colors else 3) or not np.isfinite(table).all():
        raise PointCloudFileError(f"{path}: an array {table.shape}; expected finite numbers (points, 6): xyz, rgb")
    path = folder / f"{scene}_bbox.npy"
    # Center, size and class of each box, (objects, 7)
    boxes = read_box_table(path, 7)
    # The last column of the boxes is a class of NYU40, of which 18 are judged.
    numbers = boxes[:, 6].astype(int)
    unknown = sorted({int(number) for number in numbers} - _NUMBERS.keys())
    if unknown:
        raise PointCloudFileError(f"{path}: class {unknown[0]}; expected one of NYU40's {sorted(_NUMBERS)}")
    boxes[:, 6] = 0  # along the axes
    row: dict[str, object] = {"points": table[:, :3].astype(np.float32)}
    if colors:
        # The file has them as floats.
        row["colors"] = np.clip(np.rint(table[:, 3:6]), 0, 255).astype(np.uint8)
    return {
        **row,
        "boxes": boxes.astype(np.float32),
        "box_labels": np.array([_NUMBERS[int(number)] for number in numbers], np.int64),
        "scene": scene,
    }
