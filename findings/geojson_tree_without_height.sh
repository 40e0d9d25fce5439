#!/usr/bin/env bash
# A tree without a height loses its place when geopandas writes GeoJSON; in a GeoPackage it keeps it.
#
# One would guess: a point whose z is NaN keeps x and y in any format that has points, or writing is refused.
# What happens: GeoJSON has no NaN, and the whole geometry becomes null: the row comes back without a place, without an
# error or a warning. The GeoPackage keeps x and y and the missing z.
# Matters to: who lists objects of a scan (treetops, poles, boxes) of which some have no height.
# Versions: geopandas 1.2.0, pyogrio 0.13.0 with its own GDAL. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile geopandas==1.2.0 pyogrio==0.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings
from importlib.metadata import version

import geopandas
import numpy as np

warnings.simplefilter("error")
places = geopandas.points_from_xy([9.1, 9.2], [48.7, 48.8], [12.5, np.nan])
trees = geopandas.GeoDataFrame({"tree": [1, 2]}, geometry=places, crs="EPSG:4979")
found = {}
for name in ("trees.gpkg", "trees.geojson"):
    trees.to_file(name)
    geometry = geopandas.read_file(name).geometry
    found[name] = [None if one is None else (one.x, one.y) for one in geometry]
print("geopandas", version("geopandas"), "pyogrio", version("pyogrio"))
print("guess: two places in both files")
for name, places in found.items():
    print(f"seen:  {name}: {places}")
same = found["trees.gpkg"] == [(9.1, 48.7), (9.2, 48.8)] and found["trees.geojson"] == [(9.1, 48.7), None]
raise SystemExit(None if same else "the behavior has changed")
PYTHON
