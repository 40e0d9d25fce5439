#!/usr/bin/env bash
# datumaro turns a car's length into its height when it converts boxes from Supervisely to KITTI's tracklets.
#
# One would guess: a converter of label files keeps each box: sizes along x, y and z become length, width and height.
# What happens: Supervisely's sizes x, y, z are stored as they come, and the first of them is written as KITTI's
# `h`, the third as `l`. A car 4 m long and 1.5 m high becomes 1.5 m long and 4 m high. Back through datumaro the file
# is read with the same order, so a round trip shows nothing.
# Matters to: who labels clouds in Supervisely (or CVAT, which uses datumaro) and trains a detector on KITTI's files.
# Versions: datumaro 1.13.12; the cloud by pypcd4 1.5.1. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile datumaro==1.13.12 pypcd4==1.5.1
cd "$folder"
venv/bin/python - <<'PYTHON' 2> log.txt || { cat log.txt; exit 1; }
import json
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import datumaro
import numpy as np
from datumaro.components.annotation import Cuboid3d
from datumaro.components.media import PointCloud as Media
from pypcd4 import PointCloud

PointCloud.from_xyz_points(np.eye(3, dtype=np.float32)).save("scan.pcd")
car = Cuboid3d([10, 2, 1], rotation=[0, 0, 0], scale=[4, 2, 1.5], label=0, attributes={"track_id": 1})
item = datumaro.DatasetItem("0", media=Media.from_file(path="scan.pcd"), annotations=[car], attributes={"frame": 0})
labeled = datumaro.Dataset.from_iterable([item], categories=["Car"], media_type=Media)
labeled.export("supervisely", "sly_pointcloud", save_media=True)
(file,) = Path("supervisely").rglob("ann/*.json")
source = json.loads(file.read_text())["figures"][0]["geometry"]["dimensions"]

datumaro.Dataset.import_from("supervisely", "sly_pointcloud").export("kitti", "kitti_raw", save_media=True)
(file,) = Path("kitti").rglob("tracklet_labels.xml")
box = ElementTree.parse(file).find("tracklets/item")
target = {name: float(box.find(name).text) for name in ("l", "w", "h")}
print("datumaro", version("datumaro"))
print(f"guess: {source} becomes l {source['x']}, w {source['y']}, h {source['z']}")
print(f"seen:  {target}")
same = source == {"x": 4, "y": 2, "z": 1.5} and target == {"l": 1.5, "w": 2, "h": 4}
raise SystemExit(None if same else "the behavior has changed")
PYTHON
