"""NuScenes with the labels of lidarseg: sweeps of a laser scanner on a car, each point with one of 16 classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.catalog.pointllm_annotations import scan_entries
from hf_any3d.data.files import PointCloudError, PointCloudFileError, file_errors, read_point_cloud
from hf_any3d.data.files.source import open_source, path_of_reference
from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.rows import IGNORED
from hf_any3d.utils.messages import cut

CLASS_NAMES = tuple(
    "barrier bicycle bus car construction_vehicle motorcycle pedestrian traffic_cone trailer truck "
    "driveable_surface other_flat sidewalk terrain manmade vegetation".split()
)
UP_AXIS = "z"
_PEDESTRIANS = ("adult", "child", "construction_worker", "police_officer")
_NAMES = """
movable_object.barrier barrier, movable_object.trafficcone traffic_cone, vehicle.bicycle bicycle,
vehicle.bus.bendy bus, vehicle.bus.rigid bus, vehicle.car car, vehicle.construction construction_vehicle,
vehicle.motorcycle motorcycle, vehicle.trailer trailer, vehicle.truck truck,
flat.driveable_surface driveable_surface, flat.other other_flat, flat.sidewalk sidewalk, flat.terrain terrain,
static.manmade manmade, static.vegetation vegetation
"""
CATEGORIES = {f"human.pedestrian.{name}": "pedestrian" for name in _PEDESTRIANS}
CATEGORIES |= {name: label for name, label in (entry.split() for entry in _NAMES.split(","))}
"""Category in category.json -> class of the benchmark."""
NOT_JUDGED = tuple(
    "noise animal human.pedestrian.personal_mobility human.pedestrian.stroller human.pedestrian.wheelchair "
    "movable_object.debris movable_object.pushable_pullable static_object.bicycle_rack vehicle.emergency.ambulance "
    "vehicle.emergency.police static.other vehicle.ego".split()
)
"""Categories whose points the benchmark does not judge."""
# Scenes of validation, as first and last numbers; some numbers between them have no scene.
_VALIDATION = (
    *((3, 3), (12, 18), (35, 39), (92, 110), (221, 221), (268, 278), (329, 332), (344, 346), (519, 524), (552, 565)),
    *((625, 638), (770, 784), (794, 802), (904, 931), (962, 972), (1059, 1073)),
)
_MINI_VALIDATION = ((103, 103), (916, 916))
VERSIONS = {
    "v1.0-trainval": ({"train": 28130, "validation": 6019}, _VALIDATION),
    "v1.0-mini": ({"train": 323, "validation": 81}, _MINI_VALIDATION),
}
"""Version -> sweeps of its splits, and scenes of validation. Labels of v1.0-test are not published."""

DATASET = PublishedDataset(
    name="nuscenes",
    description=(
        "nuScenes-lidarseg: 34,149 labeled sweeps of a laser scanner on cars in Boston and Singapore, in meters, z "
        "up, with intensities and rings, each point of one of 16 classes; 150 of 850 scenes are for validation."
    ),
    homepage="https://www.nuscenes.org/nuscenes",
    license=License(
        "other", "CC-BY-NC-SA-4.0 with further terms, non-commercial", "https://www.nuscenes.org/terms-of-use"
    ),
    citation="""@article{fong2021panoptic,
  title = {Panoptic nuScenes: A Large-Scale Benchmark for LiDAR Panoptic Segmentation and Tracking},
  author = {Fong, Whye Kit and Mohan, Rohit and Hurtado, Juana Valeria and Zhou, Lubing and Caesar, Holger and
            Beijbom, Oscar and Valada, Abhinav},
  journal = {arXiv preprint arXiv:2109.03805},
  year = {2021}
}""",
    expected_counts={version: counts for version, (counts, _) in VERSIONS.items()},
    origin=(
        "Sign up at https://www.nuscenes.org/nuscenes, get the files of the full dataset (v1.0) and of "
        "nuScenes-lidarseg, unpack them into one folder, the latter last, since it replaces category.json, and pass "
        "the folder as data_dir"
    ),
    layout="""  v1.0-trainval/category.json, lidarseg.json, sample.json, sample_data.json, scene.json
  lidarseg/v1.0-trainval/{sample_data token}_lidarseg.bin, ...    uint8 for each point, the index of its category
  samples/LIDAR_TOP/....pcd.bin                                   x y z intensity ring, float32""",
    class_names=CLASS_NAMES,
)


@dataclass(frozen=True)
class Sweep:
    """A labeled sweep: its files, and the scene that it belongs to."""

    points: Path
    labels: Path
    scene: str
    timestamp: int


def load(
    data_dir: str | os.PathLike | None = None, *, version: str = "v1.0-trainval", **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read nuScenes-lidarseg, one row a labeled sweep, with the splits `train` and `validation`.

    Rows have `points` (num_points, 3) in meters in the frame of the scanner, y ahead and z up; `intensity`
    (num_points,), 0 to 255; `ring` (num_points,), the number of the laser; `labels` (num_points,), one of 16 classes,
    -100 for points without one; `scene`, such as "scene-0061"; and `timestamp` in microseconds.

    Args:
        data_dir: the folder with `samples`, `lidarseg` and the tables.
        version: "v1.0-trainval", or "v1.0-mini" with ten scenes.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Fong et al., "Panoptic nuScenes", and the lists of scenes of nuscenes-devkit.
    """
    one_of("version", version, VERSIONS)
    root = DATASET.root(data_dir)
    tables = {name: root / version / f"{name}.json" for name in _TABLES}
    DATASET.require(tables.values(), root)
    classes = class_table(tables["category"])
    sources = {}
    sweeps = _sweeps(root, tables)
    # The benchmark lists the scenes of its validation, here as ranges of numbers; all others are for training.
    validation: set[int] = set()
    for first, last in VERSIONS[version][1]:
        validation.update(range(first, last + 1))
    units_of: dict[str, list[Sweep]] = {"train": [], "validation": []}
    for sweep in sweeps:
        # A bounded number of digits, as a damaged name may have thousands; another name is none of the lists.
        match = re.fullmatch(r"scene-(\d{1,18})", sweep.scene, re.ASCII)
        is_listed = match is not None and int(match[1]) in validation
        units_of["validation" if is_listed else "train"].append(sweep)
    for split, units in units_of.items():
        # Points and labels count alike, for the cache key and for what is missing.
        files = []
        for sweep in units:
            files += [sweep.points, sweep.labels]
        sources[split] = SplitSource(
            units,
            partial(_read, classes=classes),
            [*tables.values(), *(path for path in files if path.is_file())],
            num_rows=len(units),
            describe=lambda sweep: str(sweep.points),
            missing=[path for path in files if not path.is_file()],
        )
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "intensity": List(Value("float32")),
            "ring": List(Value("float32")),
            "labels": List(ClassLabel(names=list(CLASS_NAMES))),
            "scene": Value("string"),
            "timestamp": Value("int64"),
        }
    )
    options = {"version": version}
    return load_published(DATASET, root, sources, features, variant=version, options=options, **conversion)


_TABLES = ("category", "lidarseg", "sample", "sample_data", "scene")


def class_table(path: Path) -> np.ndarray:
    """Return the class of each index of category.json, (256,) int64: -100 if it is not judged, -1 if there is none."""
    # Of 32 categories several are one class of the benchmark, and some are not judged.
    table = np.full(256, -1)
    with file_errors(path, "table of nuScenes-lidarseg"):
        for entry, _ in scan_entries(path):
            name = entry["name"]
            table[int(entry["index"])] = IGNORED if name in NOT_JUDGED else CLASS_NAMES.index(CATEGORIES[name])
    return table


def _sweeps(root: Path, tables: Mapping[str, Path]) -> list[Sweep]:
    sweeps = []
    with file_errors(root, "tables of nuScenes"):
        labels = {entry["sample_data_token"]: entry["filename"] for entry, _ in scan_entries(tables["lidarseg"])}
        # Tokens lead from a sweep to its sample, and from there to its scene.
        scenes = {entry["token"]: entry["name"] for entry, _ in scan_entries(tables["scene"])}
        samples = {entry["token"]: entry["scene_token"] for entry, _ in scan_entries(tables["sample"])}
        # Millions of entries, of which only those of labeled sweeps are kept.
        for entry, _ in scan_entries(tables["sample_data"]):
            if entry["token"] in labels:
                names = (entry["filename"], labels.pop(entry["token"]))
                points, labeled = (root / name for name in names)
                for name, path in zip(names, (points, labeled), strict=True):
                    # A table may name any file of the machine.
                    is_outside = not path.is_relative_to(root) or ".." in path.parts
                    if "\0" in name or is_outside or (path.is_file() and path_of_reference(root, name) is None):
                        raise PointCloudError(f"{tables['lidarseg']}: {cut(name, 80)!r} leads out of {root}")
                scene = scenes[samples[entry["sample_token"]]]
                sweeps.append(Sweep(points, labeled, scene, int(entry["timestamp"])))
        # Labels that found their sweep are taken out above.
        if labels:
            raise PointCloudError(f"sample_data.json: no sweep {cut(next(iter(labels)), 40)!r}, which has labels")
    # In the order in which they were driven.
    return sorted(sweeps, key=lambda sweep: (sweep.scene, sweep.timestamp))


def _read(sweep: Sweep, classes: np.ndarray) -> Iterator[Mapping[str, object]]:
    cloud = read_point_cloud(sweep.points, file_type="nuscenes")
    # A byte for each point, without a header
    data = open_source(sweep.labels, "bin", ("bin",)).data
    if len(data) != len(cloud):
        raise PointCloudFileError(f"{sweep.labels}: {len(data)} bytes; expected 1 for each of {len(cloud)} points")
    numbers = np.frombuffer(data, np.uint8)
    labels = classes[numbers]
    # -1 is an index that the table of categories does not have, as opposed to one that is not judged.
    unknown = numbers[labels == -1]
    if unknown.size:
        raise PointCloudFileError(f"{sweep.labels}: category {unknown[0]}, which category.json does not have")
    measured = {"points": cloud.points, "intensity": cloud.intensity, "ring": cloud.ring}
    yield {**measured, "labels": labels, "scene": sweep.scene, "timestamp": sweep.timestamp}
