#!/usr/bin/env bash
# meshio takes the colors of OBJ vertices for further coordinates: its points have six columns.
#
# One would guess: `v x y z r g b`, which trimesh, MeshLab and others write, gives points of three columns, with the
# colors as data of the points or left out.
# What happens: `points` has six columns. A distance, a box or a nearest neighbor of such points mixes meters and
# colors. Written as VTU and read again they are six columns still; written as OBJ the colors are gone.
# Matters to: who reads colored meshes of scans with meshio and computes with `points`.
# Versions: meshio 5.3.5; the file by trimesh 5.2.0. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile meshio==5.3.5 trimesh==5.2.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import meshio
import numpy as np
import trimesh

box = trimesh.creation.box()
box.visual.vertex_colors = [255, 0, 0, 255]
box.export("box.obj")
mesh = meshio.read("box.obj")
mesh.write("again.vtu")
mesh.write("again.obj")
shapes = [meshio.read(name).points.shape for name in ("box.obj", "again.vtu", "again.obj")]
largest = mesh.points.max(axis=0).tolist()
print("meshio", version("meshio"), "trimesh", version("trimesh"))
print("guess: points of shape (8, 3) three times")
print(f"seen:  {shapes}, largest values {largest}, data of the points {mesh.point_data}")
same = shapes == [(8, 6), (8, 6), (8, 3)] and np.allclose(largest, [0.5, 0.5, 0.5, 1, 0, 0]) and not mesh.point_data
raise SystemExit(None if same else "the behavior has changed")
PYTHON
