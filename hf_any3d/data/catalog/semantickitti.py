"""SemanticKITTI: sweeps of a laser scanner on a car, each point with one of 19 classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from hf_any3d.data.files.source import open_source
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.rows import IGNORED

CLASS_NAMES = tuple(
    "car bicycle motorcycle truck other-vehicle person bicyclist motorcyclist road parking sidewalk other-ground "
    "building fence vegetation trunk terrain pole traffic-sign".split()
)
UP_AXIS = "z"
# Class -> numbers of it in the label files; things that move have numbers of their own.
_NUMBERS = {
    **{"car": (10, 252), "bicycle": (11,), "motorcycle": (15,), "truck": (18, 258)},
    "other-vehicle": (13, 16, 20, 256, 257, 259),  # also buses, and what drives on rails
    **{"person": (30, 254), "bicyclist": (31, 253), "motorcyclist": (32, 255)},
    "road": (40, 60),  # also its markings
    **{"parking": (44,), "sidewalk": (48,), "other-ground": (49,), "building": (50,), "fence": (51,)},
    **{"vegetation": (70,), "trunk": (71,), "terrain": (72,), "pole": (80,), "traffic-sign": (81,)},
}
# Unlabeled, outlier, other structure, other object.
_NOT_JUDGED = (0, 1, 52, 99)
LEARNING_MAP = {number: CLASS_NAMES.index(name) for name, numbers in _NUMBERS.items() for number in numbers}
LEARNING_MAP |= dict.fromkeys(_NOT_JUDGED, IGNORED)
"""Number in the label files -> number of the class, -100 for points that no benchmark judges."""
# Sweeps of the labeled sequences.
_SWEEPS = {0: 4541, 1: 1101, 2: 4661, 3: 801, 4: 271, 5: 2761, 6: 1101, 7: 1101, 8: 4071, 9: 1591, 10: 1201}
SPLITS = {"train": (0, 1, 2, 3, 4, 5, 6, 7, 9, 10), "validation": (8,)}
"""Numbers of their sequences. Labels of 11 to 21, the test split, are not published."""

DATASET = PublishedDataset(
    name="semantickitti",
    description=(
        "SemanticKITTI: 23,201 sweeps of the laser scanner of KITTI's odometry data, in meters, z up, with "
        "intensities, each point of one of 19 classes. Sequence 08 is for validation."
    ),
    homepage="https://semantic-kitti.org",
    license=License(
        "other",
        "labels under CC-BY-NC-SA-4.0, sweeps under KITTI's CC-BY-NC-SA-3.0: non-commercial",
        "https://semantic-kitti.org/dataset.html",
    ),
    citation="""@inproceedings{behley2019semantickitti,
  title = {SemanticKITTI: A Dataset for Semantic Scene Understanding of LiDAR Sequences},
  author = {Behley, Jens and Garbade, Martin and Milioto, Andres and Quenzel, Jan and Behnke, Sven and
            Stachniss, Cyrill and Gall, Juergen},
  booktitle = {International Conference on Computer Vision (ICCV)},
  year = {2019}
}""",
    expected_counts={
        "default": {split: sum(map(_SWEEPS.__getitem__, sequences)) for split, sequences in SPLITS.items()}
    },
    origin=(
        "Get data_odometry_velodyne.zip from https://www.cvlibs.net/datasets/kitti/eval_odometry.php and "
        "data_odometry_labels.zip from https://semantic-kitti.org/dataset.html, unpack both into one folder and pass "
        "it as data_dir"
    ),
    layout="""  dataset/sequences/00/velodyne/000000.bin, ...    x y z intensity, float32
  dataset/sequences/00/labels/000000.label, ...    uint32 for each point, its class in the lower 16 bits""",
    class_names=CLASS_NAMES,
)


def load(data_dir: str | os.PathLike | None = None, **conversion: Any) -> DatasetDict | IterableDatasetDict:
    """Read SemanticKITTI, one row a sweep, with the splits `train` and `validation`.

    Rows have `points` (num_points, 3) in meters in the frame of the scanner, x ahead and z up; `intensity`
    (num_points,), 0 to 1; `labels` (num_points,), one of 19 classes, -100 for points without one; `sequence` and
    `sweep`, as in the names of the files.

    Args:
        data_dir: the folder with `dataset` or `sequences`, or the one with the folders `00` to `10`.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Behley et al., "SemanticKITTI"; classes of its single-scan benchmark.
    """
    root = DATASET.root(data_dir)
    # From the folder of the archives down to that of the sequences
    places = (root / "dataset" / "sequences", root / "sequences", root)
    folder = next((place for place in places if any(place.glob("[01][0-9]/velodyne"))), None)
    if folder is None:
        raise DATASET.not_found(f"{root}: no sequences")
    is_whole = conversion.get("verify", True)
    sources = {}
    for split, sequences in SPLITS.items():
        sweeps = []
        for number in sequences:
            place = folder / f"{number:02}" / "velodyne"
            # All published sweeps are expected, so that missing ones are told; a subset is what is there.
            published = [place / f"{sweep:06}.bin" for sweep in range(_SWEEPS[number])]
            sweeps += published if is_whole else sorted(place.glob("*.bin"))
        labels = [_labels_of(sweep) for sweep in sweeps]
        # Labels are files of their own, for the cache key and for what is missing.
        source = SplitSource.from_paths(sweeps, _read, [path for path in labels if path.is_file()])
        missing = [*source.missing, *(path for path in labels if not path.is_file())]
        sources[split] = replace(source, missing=missing)
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "intensity": List(Value("float32")),
            "labels": List(ClassLabel(names=list(CLASS_NAMES))),
            "sequence": Value("string"),
            "sweep": Value("string"),
        }
    )
    return load_published(DATASET, folder, sources, features, **conversion)


def _labels_of(sweep: Path) -> Path:
    return sweep.parents[1] / "labels" / f"{sweep.stem}.label"


def _read(sweep: Path) -> Iterator[Mapping[str, object]]:
    cloud = read_point_cloud(sweep, file_type="kitti", label_file=False)
    path = _labels_of(sweep)
    data = open_source(path, "label", ("label",)).data
    if len(data) != 4 * len(cloud):
        raise PointCloudFileError(f"{path}: {len(data)} bytes; expected 4 for each of {len(cloud)} points")
    # The upper 16 bits are the number of the object.
    numbers = np.frombuffer(data, "<u4") & 0xFFFF
    # Looked up for all points at once; -1 where the number belongs to no class
    table = np.full(1 << 16, -1)
    table[list(LEARNING_MAP)] = list(LEARNING_MAP.values())
    labels = table[numbers]
    unknown = numbers[labels == -1]
    if unknown.size:
        raise PointCloudFileError(f"{path}: class {unknown[0]}; expected one of {', '.join(map(str, LEARNING_MAP))}")
    names = {"sequence": sweep.parents[1].name, "sweep": sweep.stem}
    yield {"points": cloud.points, "intensity": cloud.intensity, "labels": labels, **names}
