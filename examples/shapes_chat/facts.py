"""Facts computed from colored clouds: their colors, where these are, and their proportions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

PALETTE = (
    ("black", (18, 18, 18)), ("gray", (80, 80, 80)), ("gray", (128, 128, 128)), ("gray", (175, 175, 175)),
    ("white", (240, 240, 240)), ("red", (190, 35, 35)), ("red", (120, 20, 25)), ("orange", (230, 125, 35)),
    ("yellow", (235, 205, 60)), ("green", (60, 120, 50)), ("green", (130, 170, 80)), ("green", (40, 60, 35)),
    ("blue", (45, 80, 160)), ("blue", (120, 165, 210)), ("blue", (25, 35, 70)), ("purple", (120, 65, 140)),
    ("pink", (230, 150, 175)), ("brown", (70, 45, 30)), ("brown", (115, 75, 45)), ("brown", (160, 110, 70)),
    ("beige", (215, 195, 160)), ("beige", (190, 165, 135)),
)  # fmt: skip
"""Names of colors, each with red, green and blue from 0 to 255; a name can occur several times."""

COLORS = tuple(dict.fromkeys(name for name, _ in PALETTE))
PROPORTIONS = ("tall", "flat", "thin", "long", "compact")
THIRDS = ("upper", "middle", "lower")
SHARE_OF_A_PART = 0.1
"""Smallest share of the points at which a color counts as a part."""

_DOMINATES, _VANISHES = 1.6, 0.3
_D65 = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]]
)


@dataclass(frozen=True)
class Part:
    """The points of one color.

    Attributes:
        color: One of `COLORS`.
        share: Its share of all points.
    """

    color: str
    share: float


@dataclass(frozen=True)
class ShapeFacts:
    """The facts about a shape.

    Attributes:
        label: Its class.
        parts: Its colors with a share of at least `SHARE_OF_A_PART`, the largest first; always at least one.
        upper: The most frequent color of its upper third, by height.
        middle: The most frequent color between; that of the lower third if nothing is there.
        lower: The most frequent color of its lower third.
        proportion: One of `PROPORTIONS`.
    """

    label: str
    parts: tuple[Part, ...]
    upper: str
    middle: str
    lower: str
    proportion: str

    @property
    def color(self) -> str:
        """The most frequent color."""
        return self.parts[0].color

    @property
    def second(self) -> str | None:
        """The second most frequent color; None for a shape of one color."""
        return self.parts[1].color if len(self.parts) > 1 else None

    @property
    def colors_of_thirds(self) -> list[str]:
        """The colors of the thirds, in alphabetical order."""
        return sorted({self.upper, self.middle, self.lower})

    def where(self, color: str) -> str:
        """List the thirds that have a color most often, from the upper to the lower one: `upper, middle`."""
        return ", ".join(third for third in THIRDS if getattr(self, third) == color)


def facts_of(points: np.ndarray, colors: np.ndarray, label: str) -> ShapeFacts:
    """Compute the facts about a cloud.

    Args:
        points: `(points, 3)`, y up.
        colors: `(points, 3)`, red, green and blue from 0 to 255.
        label: Its class.
    """
    names = color_names(colors)
    height = points[:, 1] - points[:, 1].min()
    third = height.max() / 3
    between = (height > third) & (height < 2 * third)
    return ShapeFacts(
        label=label,
        parts=_parts(names),
        upper=_parts(names[height >= 2 * third])[0].color,
        middle=_parts(names[between if between.any() else height <= third])[0].color,
        lower=_parts(names[height <= third])[0].color,
        proportion=proportion_of(points),
    )


def all_facts(rows: Dataset) -> list[ShapeFacts]:
    """Compute the facts about each of the embedded shapes."""
    names, rows = rows.features["label"].names, rows.with_format("numpy")
    return [facts_of(row["points"], row["colors"], names[row["label"]]) for row in rows]


def color_names(colors: np.ndarray) -> np.ndarray:
    """Find the nearest named color of each point in CIE Lab, as indices `(points,)` into `COLORS`."""
    anchors = _lab(np.array([color for _, color in PALETTE]))  # (anchors, 3)
    distances = ((_lab(colors)[:, None] - anchors) ** 2).sum(axis=-1)  # (points, anchors)
    numbers = np.array([COLORS.index(name) for name, _ in PALETTE])
    return numbers[distances.argmin(axis=1)]


def proportion_of(points: np.ndarray) -> str:
    """Describe the extents of `(points, 3)`, y up, by one word.

    Flat: height is at most 0.3 times each of the others. Thin: width or depth is. Tall: height is at least 1.6 times
    each of the others. Long: width or depth is. Otherwise compact. Flat is checked before thin, thin before tall.
    """
    width, height, depth = np.ptp(points, axis=0)
    if height <= _VANISHES * min(width, depth):
        return "flat"
    if min(width, depth) <= _VANISHES * min(height, max(width, depth)):
        return "thin"
    if height >= _DOMINATES * max(width, depth):
        return "tall"
    if max(width, depth) >= _DOMINATES * max(height, min(width, depth)):
        return "long"
    return "compact"


def _parts(names: np.ndarray) -> tuple[Part, ...]:
    shares = np.bincount(names, minlength=len(COLORS)) / len(names)
    order = np.argsort(-shares, kind="stable")
    kept = [number for number in order if shares[number] >= SHARE_OF_A_PART] or list(order[:1])
    return tuple(Part(COLORS[number], float(shares[number])) for number in kept)


def _lab(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB colors `(colors, 3)` from 0 to 255 to CIE Lab."""
    values = np.asarray(colors, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    ratios = linear @ _TO_XYZ.T / _D65
    curve = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = curve.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
