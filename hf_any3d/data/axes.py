"""The axis that points up: turn clouds from one to another.

`find_frame` of `scan_frames` finds the axis of a scan of a room, with its tilt; `up_axis_of` of `catalog` says that of
a dataset. Boxes and layouts have axes that point down, too: `UP_AXES` of `hf_any3d.modeling.layers.boxes`.
"""

import numpy as np


def turn_up_axis(vectors: np.ndarray, up_axis: str, new_up_axis: str) -> np.ndarray:
    """Rotate vectors by a quarter turn so that what points up along one axis points up along another.

    The third axis stays: from "z" to "y", (x, y, z) becomes (x, z, -y), as programs for meshes convert files.
    """
    old = "xyz".index(up_axis)
    new = "xyz".index(new_up_axis)
    if old == new:
        return vectors
    turned = vectors.copy()
    # The sign makes it a rotation: exchanging two axes alone would mirror the cloud.
    turned[:, new], turned[:, old] = vectors[:, old], -vectors[:, new]
    return turned
