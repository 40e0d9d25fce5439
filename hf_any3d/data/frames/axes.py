"""The axis that points up: turn clouds from one to another.

`find_frame` of `scan_frames` finds the axis of a scan of a room, with its tilt; `up_axis_of` of `catalog` says that of
a dataset. Boxes and layouts have axes that point down, too: `UP_AXES` of `hf_any3d.modeling.layers.boxes`.
"""

import numpy as np


def turn_up_axis(vectors: np.ndarray, up_axis: str, new_up_axis: str) -> np.ndarray:
    """Rotate vectors so that what points up along one axis points up along another.

    Args:
        vectors: `(count, 3)`.
        up_axis: "x", "y" or "z", or "-x", "-y" or "-z" where that axis points down.
        new_up_axis: "x", "y" or "z".

    Returns:
        `(count, 3)`, the same array if nothing is turned. The third axis stays: from "z" to "y", (x, y, z) becomes
        (x, z, -y), as programs for meshes convert files.
    """
    old = "xyz".index(up_axis.removeprefix("-"))
    new = "xyz".index(new_up_axis)
    if up_axis == new_up_axis:
        return vectors
    turned = vectors.copy()
    if up_axis.startswith("-"):
        # Half a turn first, about the axis behind, by which this one points up.
        for axis in (old, (old + 1) % 3):
            turned[:, axis] *= -1
    if old != new:
        # The sign makes it a rotation: exchanging two axes alone would mirror the cloud.
        turned[:, new], turned[:, old] = turned[:, old].copy(), -turned[:, new]
    return turned
