"""A colour for each label."""

import colorsys
from collections.abc import Sequence

import numpy as np


def label_colors(num_labels: int) -> np.ndarray:
    """Colours that tell labels apart: neighbouring numbers get distant hues.

    Args:
        num_labels: how many.

    Returns:
        (num_labels, 3) float32 in [0, 1]; the first colours stay the same whatever the number.
    """
    # Steps of the golden ratio never come back to a hue; two levels of brightness part those that come near one.
    colors = [
        colorsys.hsv_to_rgb((0.6 + 0.61803399 * number) % 1, 0.75, 0.9 if number % 2 else 0.65)
        for number in range(num_labels)
    ]
    return np.array(colors, dtype=np.float32).reshape(num_labels, 3)


def hex_color(color: Sequence[float]) -> str:
    """A colour (red, green, blue in [0, 1]) as pages and figures write it: "#rrggbb"."""
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in color)
