#!/usr/bin/env bash
# A trimesh scene saved as PLY has lost its point clouds, and a scene of clouds becomes a valid empty file.
#
# One would guess: PLY holds points without faces, and trimesh writes one cloud to PLY, so a scene of clouds is joined as
# a scene of meshes is, or refused.
# What happens: the scene is joined as a mesh; clouds are left out without a word or a warning. Two clouds give a PLY of
# 0 vertices. GLB and OBJ of the same scene keep them, but trimesh's own reader of OBJ leaves the points out again.
# Matters to: who builds a scene of scans with their poses and saves it for training or viewing.
# Versions: trimesh 5.2.0; the file read by plyfile 1.1.5. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile trimesh==5.2.0 plyfile==1.1.5 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import trimesh
from plyfile import PlyData

moved = np.eye(4)
moved[0, 3] = 100


def scan():
    return trimesh.PointCloud(np.arange(12.0).reshape(4, 3), colors=[[0, 255, 0, 255]] * 4)


clouds = trimesh.Scene()
clouds.add_geometry(scan())
clouds.add_geometry(scan(), transform=moved)
mixed = trimesh.Scene([trimesh.creation.box()])
mixed.add_geometry(scan(), transform=moved)

scan().export("one.ply")
clouds.export("clouds.ply")
mixed.export("mixed.ply")
mixed.export("mixed.obj")
clouds.export("clouds.glb")
count = {name: PlyData.read(name)["vertex"].count for name in ("one.ply", "clouds.ply", "mixed.ply")}
with open("mixed.obj") as file:
    count["mixed.obj"] = sum(line.startswith("v ") for line in file)
count["mixed.obj read"] = len(trimesh.load("mixed.obj").vertices)
again = trimesh.load("clouds.glb")
count["clouds.glb"] = sum(len(part.vertices) for part in again.geometry.values())
print("trimesh", version("trimesh"))
print("guess: 4 vertices in one.ply, 8 in clouds, 12 in mixed (a box and a cloud)")
print(f"seen:  {count}")
expected = {"one.ply": 4, "clouds.ply": 0, "mixed.ply": 8, "mixed.obj": 12, "mixed.obj read": 8, "clouds.glb": 8}
raise SystemExit(None if count == expected else "the behavior has changed")
PYTHON
