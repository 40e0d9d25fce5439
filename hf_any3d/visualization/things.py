"""Colors and captions of the numbered things of a scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_any3d.data.classes.las_classes import RESERVED
from hf_any3d.data.files import PointCloudData
from hf_any3d.utils.messages import counted
from hf_any3d.visualization.viewer import CloudView, label_colors

NUMBERS, HEIGHTS = "PredInstance", "HeightAboveGround"
"""Columns with the number of each point's thing, 0 for none, and with its height above the ground in the unit of z."""
COLUMNS = (NUMBERS, HEIGHTS, "PredScore")
"""All columns that an inventory adds to a scan; the last has the score of each point's thing."""
_CLEARLY_DISTINCT = 64
_MOST_NAMED = 40
_NO_THING = 0.75  # light gray


def number_colors(numbers: np.ndarray) -> np.ndarray:
    """Return colors (points, 3) float32 in [0, 1] by the numbers (points,) of things; points of none, 0, are gray.

    Neighbors mostly have numbers that are near each other, whose colors are clearly distinct.
    """
    colors = label_colors(_CLEARLY_DISTINCT)[numbers % _CLEARLY_DISTINCT]
    colors[numbers <= 0] = _NO_THING
    return colors


def with_things(view: CloudView, data: PointCloudData, names: Sequence[str] | None) -> CloudView:
    """Return a view colored by the things of a scan, and not by its classes; each is named under the pointer.

    Args:
        view: How the scan is shown otherwise.
        data: The scan, with the columns `NUMBERS` and perhaps `HEIGHTS`.
        names: Names of its labels, by which things have classes; None for none.
    """
    further = data.further or {}
    numbers = np.maximum(np.nan_to_num(further[NUMBERS]), 0).astype(np.int64)
    present, thing = np.unique(numbers, return_inverse=True)
    thing = thing.reshape(-1)
    classes: list[str] = [""] * len(present)
    if data.labels is not None and names is not None and data.labels.min() >= 0:
        votes = np.bincount(thing * len(names) + data.labels, minlength=len(present) * len(names))
        classes = [names[int(code)] for code in votes.reshape(len(present), -1).argmax(axis=1)]
    heights = np.full(len(present), np.nan)
    if HEIGHTS in further:
        np.fmax.at(heights, thing, further[HEIGHTS])
        heights *= abs(data.meters_per_height or data.meters_per_unit or 1.0)
    kinds = list(map(_kind, classes))
    texts = []
    for number, kind, height in zip(present.tolist(), kinds, heights.tolist(), strict=True):
        parts = [f"{kind} {number}"] if number else [""]
        if number and not np.isnan(height):
            # A line that breaks keeps number and unit together.
            parts.append(f"{height:.1f}\u00a0m")
        texts.append(", ".join(parts))
    counts = Counter(kind for number, kind in zip(present.tolist(), kinds, strict=True) if number)
    # The highest things first, as far as a page has room for their names.
    order = np.argsort(-np.nan_to_num(heights[present > 0]), kind="stable")[:_MOST_NAMED]
    numbered = np.flatnonzero(present > 0)[order]
    colors = number_colors(present[numbered]).tolist()
    legend = {texts[place]: color for place, color in zip(numbered.tolist(), colors, strict=True)}
    return replace(
        view,
        colors=number_colors(numbers),
        labels=None,
        texts=np.array(texts, object)[thing],
        legend=legend,
        color_name="object",
        note=f"{view.note} · {', '.join(counted(count, kind) for kind, count in counts.most_common())}",
    )


def _kind(name: str) -> str:
    """Return what a thing is called whose points are mostly of a class: as in tables of things, and never a code."""
    if not name or name.isdecimal() or name.endswith(RESERVED):
        return "object"
    if "vegetation" in name:
        return "tree"
    return name
