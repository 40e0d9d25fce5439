#!/usr/bin/env bash
# Points appended to a LAS file by laspy keep their integers, not their coordinates.
#
# One would guess: `append_points` puts points where they are, as `write_points` of the same library does: records with
# another scale or offset than the file's are converted, or refused.
# What happens: point formats are compared, scales and offsets are not. The integers of the new records are stored as
# they are and read with the scale and offset of the file, so the points move; the header's bounds move with them. A writer
# of the same library and header converts the same records.
# Matters to: who adds tiles, scans or missing strips to a file; each file of a survey often has its own offset.
# Versions: laspy 2.7.0. Seen on 2026-12-01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile laspy==2.7.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import laspy
import numpy as np


def survey(x, scale, offset):
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = [scale] * 3, [offset, 0, 0]
    las = laspy.LasData(header)
    las.x, las.y, las.z = x, np.full(3, 4.0), np.full(3, 5.0)
    return las


first = survey(np.array([1.0, 2, 3]), 0.01, 0)
second = survey(np.array([101.0, 102, 103]), 0.001, 100)
first.write("appended.las")
with laspy.open("appended.las", mode="a") as appender:
    appender.append_points(second.points)
with laspy.open("written.las", mode="w", header=first.header) as writer:
    writer.write_points(second.points)

appended, written = laspy.read("appended.las"), laspy.read("written.las")
print("laspy", version("laspy"))
print(f"guess: x of the three new points is {[101, 102, 103]} both ways")
print(f"seen:  written  {np.array(written.x).tolist()}")
print(f"seen:  appended {np.array(appended.x)[3:].tolist()}, the largest x of the header is {appended.header.maxs[0]}")
same = np.allclose(written.x, [101, 102, 103]) and np.allclose(np.array(appended.x)[3:], [10, 20, 30])
same = same and appended.header.maxs[0] == 30
raise SystemExit(None if same else "the behavior has changed")
PYTHON
