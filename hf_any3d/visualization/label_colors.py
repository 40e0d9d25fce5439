"""Colors of labels."""

import colorsys
from collections.abc import Sequence

import numpy as np

# Chosen one after another, each as far as possible from all before it in OKLab, among colors that are readable on
# white and on dark gray. The closest two of the first 24 differ three times as much as with evenly spaced hues.
_DISTINCT = """
2f6fde e8862a 2c9a4b d63a3a 9257c9 17b3b8 ff80ff 87d700 685838 9f0068 ef40af 978fff d7afbf a7808f 5830c7 00608f
9f7000 007800 68c7ff 97af58 488087 a72800 ff7897 48d7af 975870 00bf10 c71097 0097ef dfb760 8f00af cf60f7 ff5040
70488f 97a7c7 7870ff cf87cf 7080bf 107060 709780 c75887 bfa7ff 9f8f00 0050df ff9778 af70c7 c77048 b79778 607838
bf1050 10bf80 a7bf9f 6068a7 6848e7 c740cf 874050 40afff 0897af af5020 f73070 ff60cf 9f388f 70a718 d77887 f797d7
""".split()


def label_colors(num_labels: int) -> np.ndarray:
    """Return a color for each label; the first 64 are clearly distinct on light and dark backgrounds.

    Args:
        num_labels: Number of labels.

    Returns:
        (num_labels, 3) float32 in [0, 1]; the first colors do not depend on the number.
    """
    colors = [[int(text[start : start + 2], 16) / 255 for start in (0, 2, 4)] for text in _DISTINCT[:num_labels]]
    # Steps of the golden ratio never repeat a hue; two levels of brightness separate similar ones.
    colors += [
        list(colorsys.hsv_to_rgb((0.6 + 0.61803399 * number) % 1, 0.75, 0.9 if number % 2 else 0.65))
        for number in range(len(_DISTINCT), num_labels)
    ]
    return np.array(colors, dtype=np.float32).reshape(num_labels, 3)


def hex_color(color: Sequence[float]) -> str:
    """Format a color (red, green, blue in [0, 1]) as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in color)
