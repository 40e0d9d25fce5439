#!/usr/bin/env bash
# Open3D's voxels average class numbers, so that a voxel gets a class that none of its points has.
#
# One would guess: where points of a tensor cloud are joined into voxels, an attribute of whole numbers keeps one of its
# values: the most frequent, or the first.
# What happens: all attributes are averaged and cut to their type. Two points of class 2 (ground), two of 7 (noise) and one
# of 9 (water) become a point of class 5 (high vegetation).
# Matters to: who thins labeled scans before training; labels have to be taken from the nearest point afterwards.
# Versions: open3d 0.20.0. Needs the library libgomp1 of Debian. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile open3d==0.20.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import open3d

cloud = open3d.t.geometry.PointCloud(open3d.core.Tensor(np.full((5, 3), 0.25)))
cloud.point["label"] = open3d.core.Tensor(np.array([[2], [2], [7], [7], [9]], np.int32))
labels = cloud.voxel_down_sample(1.0).point["label"].numpy().ravel().tolist()
print("open3d", open3d.__version__)
print("guess: one voxel of class 2 or 7")
print(f"seen:  {labels}")
raise SystemExit(None if labels == [5] else "the behavior has changed")
PYTHON
