#!/usr/bin/env bash
# Five low points among 20,000 leave the cloth simulation filter without any ground.
#
# One would guess: a few points far below the ground (multipath, the usual low noise of airborne scans) are taken for
# ground at their places, or pull down the ground around them.
# What happens: with one low point the answer changes hardly. With five of them, not a single point of the
# tile is ground, without an error. Turned over, they are the highest places and hold the cloth far above all others.
# One thread is used, as answers of several threads differ by some points from run to run.
# Matters to: who finds the ground of tiles before noise is removed; the step that removes it has to come first.
# Versions: cloth-simulation-filter 1.1.7 (Python package CSF). Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile cloth-simulation-filter==1.1.7 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the library is loaded
from importlib.metadata import version

import CSF
import numpy as np

random = np.random.default_rng(0)
xy = random.uniform(0, 60, (20_000, 2))
house = (xy[:, 0] % 30 < 8) & (xy[:, 1] % 30 < 8)
heights = 3 * np.sin(xy[:, 0] / 15) + random.normal(0, 0.02, len(xy)) + 6 * house
tile = np.column_stack([xy, heights])


def ground(points):
    filter_ = CSF.CSF()
    filter_.params.bSloopSmooth = True
    filter_.params.cloth_resolution = 1.0
    filter_.setPointCloud(points)
    inside, outside = CSF.VecInt(), CSF.VecInt()
    filter_.do_filtering(inside, outside, False)
    return len(inside)


counts = {}
for low in (0, 1, 5):
    points = tile.copy()
    points[:low, 2] -= 40
    counts[low] = ground(points)
print("cloth-simulation-filter", version("cloth-simulation-filter"))
print(f"guess: about {int((~house).sum())} ground points each time")
print("seen: ", ", ".join(f"{low} low points: {count} ground points" for low, count in counts.items()))
same = min(counts[0], counts[1]) > 0.9 * (~house).sum() and counts[5] == 0
raise SystemExit(None if same else "the behavior has changed")
PYTHON
