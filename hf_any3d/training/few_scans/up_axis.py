"""Find the up axis of scans that do not state it, by what most of them look like."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.tables.numpy_rows import numpy_rows
from hf_any3d.modeling.act.up_direction import POINTS, up_probabilities
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.processing.point_clouds import PointCloudProcessor

LEAST, MOST = 20, 60
"""Scans below which nothing is found, and scans that are looked at."""
SHARE = 0.55
"""Share of the scans that must look upright with an axis before it is taken."""


@dataclass(frozen=True)
class FoundAxis:
    """The axis with which most scans look upright: `count` of the `seen` ones."""

    axis: str
    count: int
    seen: int


def find_up_axis(rows: Dataset) -> FoundAxis | None:
    """Return the up axis of scans, "x", "y" or "z", if most look upright with it; None if they do not show it."""
    if len(rows) < LEAST:
        return None
    # Evenly over the rows, which are often in the order of their classes.
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int)
    processor = PointCloudProcessor(num_points=POINTS)
    votes = np.zeros(len(UP_AXES), dtype=int)
    for row in numpy_rows(rows.select(chosen)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few points, which learning tells of
            points = processor(to_cloud(row, ("xyz",)).points[:, :3])["points"]
        votes[int(up_probabilities(points).argmax())] += 1
    best = int(votes.argmax())
    # Scans of one folder that all lie upside down are rarer than objects that look like it.
    if UP_AXES[best].startswith("-") or votes[best] < SHARE * len(chosen):
        return None
    return FoundAxis(UP_AXES[best], int(votes[best]), len(chosen))
