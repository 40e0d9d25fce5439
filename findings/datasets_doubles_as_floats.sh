#!/usr/bin/env bash
# `datasets` returns columns of doubles in single precision when they are read as arrays.
#
# One would guess: a column `Array2D((None, 3), "float64")` comes back as float64 with the format "numpy".
# What happens: it comes back as float32, and map coordinates move by up to a quarter of a meter. `map` on a data set in
# this format stores float32 in new columns. Without a format, or with `dtype=np.float64` given to it, values are exact.
# Matters to: who stores clouds in map coordinates in columns of a data set: subtract an origin first, or give the type.
# Versions: datasets 5.2.0, numpy 2.4.6. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile datasets==5.2.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import datasets
import numpy as np
from datasets import Array2D, Dataset, Features

points = np.array([[500_000.123, 5_400_000.123, 101.5], [500_001.456, 5_400_001.456, 102.5]])
rows = Dataset.from_dict({"points": [points]}, features=Features({"points": Array2D((None, 3), "float64")}))
formats = {"numpy": {}, "numpy, dtype=float64": {"dtype": np.float64}}
errors, kinds = {}, {}
for name, settings in formats.items():
    read = rows.with_format("numpy", **settings)[0]["points"]
    errors[name], kinds[name] = float(np.abs(read.astype(np.float64) - points).max()), str(read.dtype)
plain = float(np.abs(np.asarray(rows[0]["points"]) - points).max())
print("datasets", datasets.__version__)
print("guess: float64, no difference")
for name in formats:
    print(f"seen:  {name}: {kinds[name]}, largest difference {errors[name]:.3f} m")
print(f"seen:  without a format: {plain:.3f} m")
same = kinds["numpy"] == "float32" and errors["numpy"] > 0.05 and plain == 0
same = same and kinds["numpy, dtype=float64"] == "float64" and errors["numpy, dtype=float64"] == 0
raise SystemExit(None if same else "the behavior has changed")
PYTHON
