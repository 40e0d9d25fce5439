#!/usr/bin/env bash
# pypcd4 reads a PointCloud2 message as if it were little-endian and its rows had no padding.
#
# One would guess: `PointCloud.from_msg` follows `is_bigendian` and `row_step`, the two fields of the message that say
# how its bytes lie.
# What happens: both are ignored. A big-endian message gives other coordinates without an error. Where rows end in padding
# as long as a point, the padding becomes points (here NaN); other lengths of padding raise an error. Padding
# inside a point is kept as columns of bytes named `__12`, ..., so that `numpy()` has more columns than fields.
# Matters to: who turns bags of robots with organized clouds, or recordings of big-endian devices, into training data.
# Versions: pypcd4 1.5.1, messages by rosbags 0.11.9. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile pypcd4==1.5.1 rosbags==0.11.9 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from pypcd4 import PointCloud
from rosbags.typesys import Stores, get_typestore

store = get_typestore(Stores.ROS2_HUMBLE)
TYPE = "sensor_msgs/msg/PointCloud2"
Message, Field = store.types[TYPE], store.types["sensor_msgs/msg/PointField"]
Header, Time = store.types["std_msgs/msg/Header"], store.types["builtin_interfaces/msg/Time"]
xyz = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def read(data, big=False, row_step=24, point_step=12):
    fields = [Field(name=name, offset=4 * place, datatype=7, count=1) for place, name in enumerate("xyz")]
    message = Message(
        header=Header(stamp=Time(sec=0, nanosec=0), frame_id="lidar"), height=2, width=2, fields=fields,
        is_bigendian=big, point_step=point_step, row_step=row_step, data=np.frombuffer(data, np.uint8), is_dense=True,
    )
    return PointCloud.from_msg(store.deserialize_cdr(store.serialize_cdr(message, TYPE), TYPE))


plain = read(xyz.tobytes()).numpy()
big = read(xyz.astype(">f4").tobytes(), big=True).numpy()
padding = np.full(3, np.nan, np.float32).tobytes()
rows = read(b"".join(row.tobytes() + padding for row in xyz), row_step=36).numpy()
wide = read(np.pad(xyz, ((0, 0), (0, 0), (0, 1))).tobytes(), row_step=32, point_step=16)
print("pypcd4", version("pypcd4"))
print("guess: the same four points three times, and three columns")
print(f"seen:  plain {plain.tolist()}")
print(f"seen:  big-endian, largest coordinate {big.max():.1e} of 11; padded rows {len(rows)} points")
print(f"seen:  padded points have the fields {wide.fields}")
same = np.array_equal(plain, xyz.reshape(4, 3)) and big.max() < 1e-30 and len(rows) == 6
same = same and int(np.isnan(rows).any(1).sum()) == 2 and len(wide.fields) == 7
raise SystemExit(None if same else "the behavior has changed")
PYTHON
