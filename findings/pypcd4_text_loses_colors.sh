#!/usr/bin/env bash
# Colors that pypcd4 writes to a text PCD are all black, in every program that reads it.
#
# One would guess: the encoding (text, binary, compressed) changes how a cloud is stored, not what it says.
# What happens: a packed color is a float32 whose bits are the color, with values as 2.3e-38. pypcd4 writes floats of
# text files with ten decimals, so every `rgb` is 0.0000000000. There is no error. Other small floats, as a time in
# seconds of 1e-12, are zero too. Integer columns keep all digits.
# Matters to: who writes text PCD to look at it or for a web viewer, with colors or with labels drawn as colors.
# Versions: pypcd4 1.5.1. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile pypcd4==1.5.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from pypcd4 import Encoding, PointCloud

colors = np.array([[255, 0, 0], [0, 128, 255]], np.uint8)
points = np.zeros((2, 3), np.float32)
cloud = PointCloud.from_xyzrgb_points(np.column_stack([points, PointCloud.encode_rgb(colors)]))
read = {}
for encoding in (Encoding.BINARY, Encoding.BINARY_COMPRESSED, Encoding.ASCII):
    cloud.save("cloud.pcd", encoding=encoding)
    read[encoding.name] = PointCloud.decode_rgb(PointCloud.from_path("cloud.pcd").pc_data["rgb"]).tolist()
print("pypcd4", version("pypcd4"))
print(f"guess: {colors.tolist()} three times")
for name, found in read.items():
    print(f"seen:  {name} {found}")
with open("cloud.pcd") as file:
    print("seen:  last row of the text:", file.read().splitlines()[-1])
same = read["BINARY"] == read["BINARY_COMPRESSED"] == colors.tolist() and read["ASCII"] == [[0, 0, 0], [0, 0, 0]]
raise SystemExit(None if same else "the behavior has changed")
PYTHON
