#!/usr/bin/env bash
# After `seek` in a COPC file, laspy's default reader returns points that the file does not have.
#
# One would guess: `reader.seek(n)` and `read_points` give the points from n on, or an error where that is not possible.
# What happens: chunks of COPC hold different numbers of points. The parallel decompressor of lazrs, laspy's default,
# is right within the first chunk; behind it, positions are computed as if all chunks were alike: the coordinates
# belong to no point of the file, without an error (near the end of the file it raises one). The single-threaded
# decompressor is right everywhere.
# Matters to: who reads COPC in slices, as data loaders and workers do that each take a range of points.
# Versions: laspy 2.7.0, lazrs 0.8.2; the file by copclib 2.6.3. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile laspy==2.7.0 lazrs==0.8.2 copclib==2.6.3 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import copclib
import laspy
import numpy as np

random = np.random.default_rng(0)
writer = copclib.FileWriter("a.copc.laz", copclib.CopcConfigWriter(6, (0.01, 0.01, 0.01), (0, 0, 0)))
header = writer.copc_config.las_header
header.min, header.max = (0, 0, 0), (100, 100, 100)
cube = writer.copc_config.copc_info
cube.center_x = cube.center_y = cube.center_z = cube.halfsize = 50
cube.spacing = 10
keys = [(0, 0, 0, 0), *((1, i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1))]
for key in keys:
    low, size = (np.array(key[1:]) * 50, 50) if key[0] else (np.zeros(3), 100)
    points = copclib.Points(header)
    for x, y, z in low + random.uniform(0, size, (2000 if key[0] == 0 else 1000, 3)):
        point = points.CreatePoint()
        point.x, point.y, point.z = x, y, z
        points.AddPoint(point)
    writer.AddNode(copclib.VoxelKey(*key), points)
writer.Close()


def slice_of(start, backend):
    with laspy.open("a.copc.laz", laz_backend=backend) as reader:
        reader.seek(start)
        return np.array(reader.read_points(20).array)


whole = np.array(laspy.read("a.copc.laz").points.array)
print("laspy", version("laspy"), "lazrs", version("lazrs"))
print("guess: 20 of 20 points are those of the file at 10 and at 2500")
right = {}
for backend in (laspy.LazBackend.LazrsParallel, laspy.LazBackend.Lazrs):
    for start in (10, 2500):
        right[backend.name, start] = int((slice_of(start, backend) == whole[start : start + 20]).sum())
        print(f"seen:  {backend.name} from {start}: {right[backend.name, start]} of 20")
default = laspy.LazBackend.detect_available()[0]
print(f"seen:  the default is {default.name}")
same = default.name == "LazrsParallel" and list(right.values()) == [20, 0, 20, 20]
raise SystemExit(None if same else "the behavior has changed")
PYTHON
