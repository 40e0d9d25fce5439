#!/usr/bin/env bash
# pymeshlab leaves out a point that is NaN when it opens a PLY, so rows no longer match.
#
# One would guess: a cloud of 200 points has 200 vertices after opening; a missing measurement (NaN, as scanners of
# organized clouds write it) stays in its row.
# What happens: the vertex is dropped without a word. Labels or predictions that are kept beside the file row by row
# are one row off from there on.
# Matters to: who edits or decimates organized clouds with MeshLab's library and joins other arrays to them.
# Versions: pymeshlab 2025.7.post1, plyfile 1.1.5. Needs the library libgl1 of Debian. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile pymeshlab==2025.7.post1 plyfile==1.1.5 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import pymeshlab
from plyfile import PlyData, PlyElement

points = np.random.default_rng(0).uniform(0, 20, (200, 3))
points[3] = np.nan
rows = np.zeros(200, dtype=[("x", "f8"), ("y", "f8"), ("z", "f8")])
rows["x"], rows["y"], rows["z"] = points.T
PlyData([PlyElement.describe(rows, "vertex")]).write("scan.ply")
meshes = pymeshlab.MeshSet(verbose=False)
meshes.load_new_mesh("scan.ply")
found = meshes.current_mesh().vertex_matrix()
print("pymeshlab", version("pymeshlab"))
print("guess: 200 vertices, the fourth NaN")
print(f"seen:  {len(found)} vertices; the fourth is the fifth of the file: {np.allclose(found[3], points[4])}")
same = len(found) == 199 and np.allclose(found[:3], points[:3]) and np.allclose(found[3:], points[4:])
raise SystemExit(None if same else "the behavior has changed")
PYTHON
