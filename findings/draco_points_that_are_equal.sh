#!/usr/bin/env bash
# Draco joins equal points, and returns a cloud with fewer rows in another order.
#
# One would guess: compression with loss moves points by less than a quantum and keeps their number.
# What happens: `DracoPy.encode` of 300 points, each three times, is decoded as 100 points, in another order. With
# `preserve_order=True` all 300 come back in their rows.
# Matters to: who compresses a labeled cloud and keeps labels in another array, or counts points after merging scans.
# Versions: DracoPy 2.2.0. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile DracoPy==2.2.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import DracoPy
import numpy as np

once = np.random.default_rng(0).uniform(0, 20, (100, 3))
points = np.repeat(once, 3, axis=0)
loose = DracoPy.decode(DracoPy.encode(points)).points
kept = DracoPy.decode(DracoPy.encode(points, preserve_order=True)).points
quantum = np.ptp(points) / 2**14
sorted_away = float(np.abs(np.sort(loose[:, 0]) - np.sort(once[:, 0])).max())
print("DracoPy", version("DracoPy"))
print("guess: 300 points")
print(f"seen:  {len(loose)} points, the 100 different ones: {sorted_away < quantum}")
print(f"seen:  {len(kept)} points in their rows with preserve_order: {np.abs(kept - points).max() < quantum}")
same = len(loose) == 100 and sorted_away < quantum and len(kept) == 300 and np.abs(kept - points).max() < quantum
raise SystemExit(None if same else "the behavior has changed")
PYTHON
