#!/usr/bin/env bash
# Boxes find no point in a COPC file that copclib wrote.
#
# One would guess: `FileWriter` counts the points that it is given, so it also knows their bounds, the octree's cube, the
# spacing and how many are first, second, ... returns, and writes them on `Close`.
# What happens: only the number of points is filled in. Bounds, cube, spacing and counts by return stay 0 unless the
# program sets them (the counts it cannot set). Reading everything gives all points; a query with a box gives none,
# without an error, since the cube of the octree has no extent; a query with a resolution raises a ValueError.
# Matters to: who writes COPC with copclib, and who reads a region of such a file.
# Versions: copclib 2.6.3, laspy 2.7.0, lazrs 0.8.2. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile copclib==2.6.3 laspy==2.7.0 lazrs==0.8.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import copclib
import laspy
import numpy as np

random = np.random.default_rng(0)
settings = copclib.CopcConfigWriter(6, (0.01, 0.01, 0.01), (500_000, 5_400_000, 0))
writer = copclib.FileWriter("field.copc.laz", settings)
points = copclib.Points(writer.copc_config.las_header)
for x, y, z in random.uniform(0, 100, (1000, 3)):
    point = points.CreatePoint()
    point.x, point.y, point.z = 500_000 + x, 5_400_000 + y, z
    point.return_number = point.number_of_returns = 1
    points.AddPoint(point)
writer.AddNode(copclib.VoxelKey(0, 0, 0, 0), points)
writer.Close()

whole = laspy.read("field.copc.laz")
corner, other = np.array([500_000.0, 5_400_000.0]), np.array([500_100.0, 5_400_100.0])
with laspy.CopcReader.open("field.copc.laz") as reader:
    found = len(reader.query(bounds=laspy.Bounds(corner, other)))
bounds = whole.header.mins.tolist(), whole.header.maxs.tolist()
returns = int(sum(whole.header.number_of_points_by_return))
print("copclib", version("copclib"), "laspy", version("laspy"))
print("guess: bounds and returns in the header; the box of the whole field has 1000 points")
print(f"seen:  {len(whole.x)} points, bounds {bounds}, {returns} returns; {found} points in the box")
same = len(whole.x) == 1000 and found == 0 and returns == 0 and bounds == ([0.0] * 3, [0.0] * 3)
raise SystemExit(None if same else "the behavior has changed")
PYTHON
