"""Tiny trees in the layouts of SemanticKITTI and nuScenes-lidarseg."""

import json
from pathlib import Path

import numpy as np

from tests.data.files.builders import sweep_rows

# One number of each kind: unlabeled, car, moving car, road, its marking, traffic sign.
NUMBERS = (0, 10, 252, 40, 60, 81)
SCENES = {"scene-0061": ("a", "b"), "scene-0103": ("c",)}
CATEGORIES = ("noise", "animal", "vehicle.car", "vehicle.bus.rigid", "flat.driveable_surface", "vehicle.ego")


def write_semantickitti(root: Path, sweeps: int = 2, count: int = 30) -> Path:
    """Sequences 00 and 08 with some sweeps each."""
    for sequence in ("00", "08"):
        folder = root / "dataset" / "sequences" / sequence
        for name in ("velodyne", "labels"):
            (folder / name).mkdir(parents=True)
        (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n")
        for number in range(sweeps):
            (folder / "velodyne" / f"{number:06}.bin").write_bytes(sweep_rows(4, count).tobytes())
            labels = np.resize(np.uint32(NUMBERS), count) + (np.arange(count, dtype=np.uint32) << 16)  # and objects
            (folder / "labels" / f"{number:06}.label").write_bytes(labels.tobytes())
    return root


def write_nuscenes(root: Path, version: str = "v1.0-mini", count: int = 30) -> Path:
    """Two scenes with labeled sweeps, and sweeps and images without labels."""
    (root / version).mkdir(parents=True)
    (root / "samples" / "LIDAR_TOP").mkdir(parents=True)
    (root / "lidarseg" / version).mkdir(parents=True)
    samples, data, labels = [], [], []
    for scene, names in SCENES.items():
        for number, name in enumerate(names):
            samples.append({"token": f"sample {name}", "scene_token": f"token {scene}", "timestamp": number})
            points = f"samples/LIDAR_TOP/n015__LIDAR_TOP__{name}.pcd.bin"
            # Later sweeps come first in the tables.
            entry = {"token": name, "sample_token": f"sample {name}", "filename": points, "timestamp": 9 - number}
            image = {**entry, "token": f"image {name}", "filename": f"samples/CAM_FRONT/{name}.jpg"}
            data += [image, entry, {**entry, "token": f"between {name}", "filename": f"sweeps/{name}.pcd.bin"}]
            stored = f"lidarseg/{version}/{name}_lidarseg.bin"
            labels.append({"token": name, "sample_data_token": name, "filename": stored})
            (root / points).write_bytes(sweep_rows(5, count).tobytes())
            (root / stored).write_bytes(np.resize(np.arange(len(CATEGORIES), dtype=np.uint8), count).tobytes())
    tables = {
        "category": [{"token": name, "name": name, "index": index} for index, name in enumerate(CATEGORIES)],
        "lidarseg": labels,
        "sample": samples,
        "sample_data": data,
        "scene": [{"token": f"token {scene}", "name": scene} for scene in SCENES],
    }
    for name, entries in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(entries))
    return root
