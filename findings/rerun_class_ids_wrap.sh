#!/usr/bin/env bash
# rerun takes class numbers of an array modulo 65536: 70000 becomes class 4464, and -1 ("no label") class 65535.
#
# One would guess: a class that the 16 bits of a class id cannot hold is refused; rerun does so for a
# plain list of the same numbers.
# What happens: a numpy array is cast. Large numbers and negative ones wrap round without a warning, so that points of
# other classes share a color and a name.
# Matters to: who shows instance or panoptic labels of point clouds (instance and class in one number of 32 bits), or
# labels where -1 says "none".
# Versions: rerun-sdk 0.41.0. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile rerun-sdk==0.41.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings
from importlib.metadata import version

import numpy as np
import rerun

ids = [4464, 70000, -1, 65535]


def stored(class_ids):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        points = rerun.Points3D(np.zeros((4, 3)), class_ids=class_ids)
    values = points.class_ids.as_arrow_array().to_pylist() if points.class_ids is not None else []
    return values, len(seen)


from_array, from_list = stored(np.array(ids)), stored(ids)
print("rerun-sdk", version("rerun-sdk"))
print(f"guess: a warning or an error for {ids}")
print(f"seen:  an array is stored as {from_array[0]} with {from_array[1]} warnings")
print(f"seen:  a list is stored as {from_list[0]} with {from_list[1]} warning")
same = from_array == ([4464, 4464, 65535, 65535], 0) and from_list[1] == 1
raise SystemExit(None if same else "the behavior has changed")
PYTHON
