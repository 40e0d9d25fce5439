#!/usr/bin/env bash
# `torch.cdist` is exact for 25 points and 2 kilometers wrong for 26, at map coordinates in single precision.
#
# One would guess: the distance of two points does not depend on how many others are in the tensor; single precision
# costs half a meter at a northing of 5.4 million meters.
# What happens: from 26 points on, the default `compute_mode` multiplies matrices. Then a point may be 2,048 m from itself, in a
# scan of 20 m. `compute_mode="donot_use_mm_for_euclid_dist"` has the guessed error.
# Matters to: who searches neighbors on tensors of map coordinates. Small tests pass, tiles fail.
# Versions: torch 2.13.0 (CPU; from an index of CPU builds it is some 200 MB). Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch

generator = torch.Generator().manual_seed(0)
points = torch.rand(1000, 3, generator=generator, dtype=torch.float64) * 20
points = (points + torch.tensor([500_000.0, 5_400_000.0, 100.0], dtype=torch.float64)).float()
exact = (points.double()[:, None] - points.double()[None]).square().sum(-1).sqrt()
modes = ("use_mm_for_euclid_dist_if_necessary", "donot_use_mm_for_euclid_dist")
errors = {}
for count in (25, 26, 1000):
    for mode in modes:
        some = torch.cdist(points[:count], points[:count], compute_mode=mode)
        errors[count, mode] = float((some - exact[:count, :count]).abs().max())
print("torch", torch.__version__)
print("guess: the same error for any number of points, well below 1 m")
for (count, mode), error in errors.items():
    print(f"seen:  {count} points, {mode}: largest error {error:.6f} m")
same = errors[25, modes[0]] < 0.001 and errors[26, modes[0]] > 100 and errors[1000, modes[0]] > 1000
same = same and errors[1000, modes[1]] < 0.001
raise SystemExit(None if same else "the behavior has changed")
PYTHON
