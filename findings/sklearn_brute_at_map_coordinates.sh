#!/usr/bin/env bash
# scikit-learn's brute-force neighbors are less exact in double precision than in single, at map coordinates.
#
# One would guess: all algorithms of `NearestNeighbors` give the same neighbors, and doubles are the safe choice.
# What happens: brute force expands the square of a distance. With doubles at a northing of 5.4 million meters, a point
# has a distance of up to 9 cm to itself, and some points get other neighbors than from the trees. Points in float32
# are computed in parts of doubles: there a point is at 0 from itself. Trees have exact distances in both.
# `algorithm="auto"` takes brute force where at least half of the points are asked for as neighbors, and for more than
# 15 columns.
# Matters to: who computes features of points or clusters them in the coordinates of their LAS file; center them first.
# Versions: scikit-learn 1.9.1, scipy 1.17.1. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import sklearn
from sklearn.neighbors import NearestNeighbors

points = np.random.default_rng(0).uniform(0, 20, (3000, 3)) + [500_000, 5_400_000, 100]
found = {}
for kind in ("kd_tree", "brute"):
    for dtype in (np.float64, np.float32):
        given = points.astype(dtype)
        search = NearestNeighbors(n_neighbors=9, algorithm=kind).fit(given)
        found[kind, dtype.__name__] = search.kneighbors(given)
itself = {key: float(distances[:, 0].max()) for key, (distances, _) in found.items()}
tree, brute = (np.sort(found[kind, "float64"][1]) for kind in ("kd_tree", "brute"))
others = int((tree != brute).any(axis=1).sum())
print("scikit-learn", sklearn.__version__)
print("guess: distance 0 of every point to itself; the same neighbors by tree and brute force")
for key, value in itself.items():
    print("seen: ", *key, f"largest distance to itself {value:.3f} m")
print(f"seen:  float64: other neighbors for {others} of {len(points)} points")
same = itself["brute", "float64"] > 0.03 and others > 5
same = same and max(value for key, value in itself.items() if key != ("brute", "float64")) == 0
raise SystemExit(None if same else "the behavior has changed")
PYTHON
