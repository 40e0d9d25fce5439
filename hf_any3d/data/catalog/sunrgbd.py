"""SUN RGB-D: rooms seen by depth cameras, each object of 10 classes in a box turned about the vertical axis."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, DatasetDict, Features, IterableDatasetDict, Value

from hf_any3d.data.annotations.boxes import box_features, read_box_table, wrapped
from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published

UP_AXIS = "z"
_SPLITS = {"train": "sunrgbd_pc_bbox_votes_50k_v1_train", "validation": "sunrgbd_pc_bbox_votes_50k_v1_val"}
_NAME = 6  # characters of a scene's name

DATASET = PublishedDataset(
    name="sunrgbd",
    description=(
        "SUN RGB-D: 10,335 rooms seen by depth cameras, as colored clouds in meters, z up, with a turned box around "
        "each object of 10 classes, as VoteNet prepares them (labels of version 1)."
    ),
    homepage="https://rgbd.cs.princeton.edu",
    license=License(
        "other",
        "stated by its authors for each of the four sources; ask them before you pass data on",
        "https://rgbd.cs.princeton.edu",
    ),
    citation="""@inproceedings{song2015sun,
  title = {SUN RGB-D: A RGB-D Scene Understanding Benchmark Suite},
  author = {Song, Shuran and Lichtenberg, Samuel P. and Xiao, Jianxiong},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2015}
}""",
    expected_counts={"default": {"train": 5285, "validation": 5050}},
    origin=(
        "Get SUNRGBD.zip and the toolbox at https://rgbd.cs.princeton.edu, run sunrgbd/sunrgbd_data.py --gen_v1_data "
        "of https://github.com/facebookresearch/votenet, and pass the folder above its output"
    ),
    layout="""  sunrgbd_pc_bbox_votes_50k_v1_train/005051_pc.npz, 005051_bbox.npy, ...
  sunrgbd_pc_bbox_votes_50k_v1_val/000001_pc.npz, 000001_bbox.npy, ...""",
    class_names=tuple("bed table sofa chair toilet desk dresser night_stand bookshelf bathtub".split()),
)


def load(
    data_dir: str | os.PathLike | None = None, *, colors: bool = True, **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read SUN RGB-D in VoteNet's layout, one row a scene.

    Rows have `points` (num_points, 3) in meters, z up, `colors` (num_points, 3) uint8, `boxes` (objects, 7),
    `box_labels` (objects,) and `scene`. The files hold half lengths and clockwise headings; boxes have full lengths
    and headings counterclockwise.

    Args:
        data_dir: the folder in the layout.
        colors: whether to read colors.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Qi et al., "Deep Hough Voting for 3D Object Detection in Point Clouds".
    """
    root = DATASET.root(data_dir)
    sources = {}
    for split, name in _SPLITS.items():
        folder = root / name
        # A file is named by its scene, a number of fixed length, and by what it holds.
        scenes = sorted({path.name[:_NAME] for path in folder.glob("*_pc.npz")})
        if not scenes:
            # A copy without the validation scenes can still be trained on.
            if split == "train":
                raise DATASET.not_found(f"{folder}: no *_pc.npz")
            continue
        # Points and boxes of a scene are files of their own.
        files = [folder / f"{scene}_{kind}" for scene in scenes for kind in ("pc.npz", "bbox.npy")]
        sources[split] = SplitSource(
            [folder / f"{scene}_pc.npz" for scene in scenes],
            lambda path: iter([_read(path, colors)]),
            files,
            num_rows=len(scenes),
            missing=[file for file in files if not file.is_file()],
        )
    features: dict[str, Any] = {"points": Array2D((None, 3), "float32")}
    features |= {"colors": Array2D((None, 3), "uint8")} if colors else {}
    features |= {**box_features(DATASET.class_names), "scene": Value("string")}
    return load_published(DATASET, root, sources, Features(features), options={"colors": colors}, **conversion)


def _read(path: Path, colors: bool) -> Mapping[str, object]:
    scene = path.name[:_NAME]
    cloud = read_point_cloud(path)
    row: dict[str, object] = {"points": cloud.points}
    if colors:
        if cloud.colors is None:
            raise PointCloudFileError(f"{path}: no colors; expected an array (points, 6): xyz, rgb from 0 to 1")
        row["colors"] = np.clip(np.rint(255 * cloud.colors), 0, 255).astype(np.uint8)
    path = path.with_name(f"{scene}_bbox.npy")
    table = read_box_table(path, 8)
    # Center, half sizes, heading and class of each box, (objects, 8)
    labels = table[:, 7].astype(int)
    boxes = table[:, :7].copy()
    # The file has half sizes, and headings clockwise.
    boxes[:, 3:6] *= 2
    boxes[:, 6] = wrapped(-boxes[:, 6])
    return {**row, "boxes": boxes.astype(np.float32), "box_labels": labels.astype(np.int64), "scene": scene}
