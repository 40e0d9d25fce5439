#!/usr/bin/env bash
# splat-transform joins Gaussian splats of different degrees with the colors mixed: green and blue become red.
#
# One would guess: when a scene of degree 1 is joined to one of degree 3, its missing harmonics are zero and the others
# keep their color channel.
# What happens: columns are joined by name. But `f_rest_3` is the first coefficient of green in a PLY of degree 1 (three
# for each channel) and the fourth of red in one of degree 3 (fifteen for each). All nine coefficients of the smaller
# scene end up in red, green and blue have none, and no line says so. Colors change with the direction of view.
# Matters to: who joins captures of different quality, or trains on joined scenes.
# Versions: @playcanvas/splat-transform 3.7.0 (npm) on Node 20; files by plyfile 1.1.5. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile plyfile==1.1.5 numpy==2.4.6
cd "$folder"
npm install --silent --no-fund --no-audit --prefix "$folder" @playcanvas/splat-transform@3.7.0
cat > make.py <<'PYTHON'
import numpy as np
from plyfile import PlyData, PlyElement

for degree, x in ((1, 100), (3, 200)):
    rest = 3 * ((degree + 1) ** 2 - 1)
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{place}" for place in range(rest))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    splat = np.zeros(1, dtype=[(name, "f4") for name in names])
    splat["x"], splat["rot_0"] = x, 1
    for channel in range(3):
        for place in range(rest // 3):
            splat[f"f_rest_{channel * rest // 3 + place}"] = channel + 1
    PlyData([PlyElement.describe(splat, "vertex")]).write(f"degree{degree}.ply")
PYTHON
venv/bin/python make.py
node_modules/.bin/splat-transform --version
node_modules/.bin/splat-transform -q degree3.ply degree1.ply joined.ply
venv/bin/python - <<'PYTHON'
from plyfile import PlyData

splats = PlyData.read("joined.ply")["vertex"]
joined = {}
for row in splats.data:
    channels = [[int(row[f"f_rest_{15 * channel + place}"]) for place in range(15)] for channel in range(3)]
    joined[int(row["x"])] = channels
print("guess: the splat of degree 1 has three 1 in red, three 2 in green, three 3 in blue, then zeros")
for color, channel in zip(("red", "green", "blue"), joined[100], strict=True):
    print(f"seen:  {color} {channel}")
same = joined[100] == [[1, 1, 1, 2, 2, 2, 3, 3, 3] + [0] * 6, [0] * 15, [0] * 15]
same = same and joined[200] == [[1] * 15, [2] * 15, [3] * 15]
raise SystemExit(None if same else "the behavior has changed")
PYTHON
