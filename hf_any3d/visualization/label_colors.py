"""Colors of labels."""

import colorsys
from collections.abc import Sequence

import numpy as np


def label_colors(num_labels: int) -> np.ndarray:
    """Return a color for each label; successive labels get distant hues.

    Args:
        num_labels: Number of labels.

    Returns:
        (num_labels, 3) float32 in [0, 1]; the first colors do not depend on the number.
    """
    # Steps of the golden ratio never repeat a hue; two levels of brightness separate similar ones.
    colors = [
        colorsys.hsv_to_rgb((0.6 + 0.61803399 * number) % 1, 0.75, 0.9 if number % 2 else 0.65)
        for number in range(num_labels)
    ]
    return np.array(colors, dtype=np.float32).reshape(num_labels, 3)


def hex_color(color: Sequence[float]) -> str:
    """Format a color (red, green, blue in [0, 1]) as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in color)
