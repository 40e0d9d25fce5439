"""Partial views, as a scanner records that does not move, and the head that recognizes them."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from hf_any3d.training.few_scans.cross_validation import held_out_logits
from hf_any3d.training.few_scans.linear_head import fit_head

# Distance of the eye in radii of the cloud, and the size of the sphere at which points are mirrored, in its distance:
# the larger, the more points count as seen.
_DISTANCE, _SPHERE = 6.0, 10**2.5
_ELEVATIONS = (-10.0, 60.0)
_MOST = 16_384
_STRENGTH = 0.1
TAKEN_FOR_VIEWS = 0.15
"""Share of the whole scans that the head may take for views: with less, it finds few views."""


def one_side(points: np.ndarray, count: int, up_axis: str, generator: np.random.Generator) -> np.ndarray:
    """Choose the points of a cloud that an eye sees from a random direction, slightly from below to far above.

    Points are mirrored at a sphere around the eye; those on the convex hull of the eye and all mirrored ones are seen
    (Katz et al., "Direct visibility of point sets", 2007).

    Returns `(count, 3)` of the points `(points, 3)`, some of them repeatedly if fewer are seen.
    """
    if len(points) > _MOST:
        points = points[generator.choice(len(points), _MOST, replace=False)]
    azimuth = generator.uniform(0, 2 * np.pi)
    elevation = np.radians(generator.uniform(*_ELEVATIONS))
    toward = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(elevation), np.sin(azimuth) * np.cos(elevation)])
    toward = np.roll(toward, "xyz".index(up_axis) - 1)
    centered = points - points.mean(axis=0)
    radius = np.linalg.norm(centered, axis=1).max()
    from_eye = centered / max(radius, 1e-12) - _DISTANCE * toward
    distance = np.linalg.norm(from_eye, axis=1, keepdims=True)
    mirrored = from_eye * (2 * _SPHERE * distance.max() / distance - 1)
    try:
        seen = ConvexHull(np.concatenate([mirrored, np.zeros((1, 3))])).vertices
    except QhullError:
        seen = np.arange(len(points))  # so few or equal points that none hides another
    seen = seen[seen < len(points)]
    return points[generator.choice(seen, count, replace=len(seen) < count)]


def fit_side(
    features: np.ndarray, views: np.ndarray, folds: np.ndarray, share: float = 1 - TAKEN_FOR_VIEWS
) -> tuple[np.ndarray, float]:
    """Fit a head that distinguishes partial views from whole scans, by standardized features of both `(scans, width)`.

    `folds` has the fold of each scan, -1 for scans that are in none. Heads that have not learned from them give a sum
    below 0 for a `share` of the whole scans.

    Returns:
        Weights `(width,)` and bias; their sum is above 0 for what looks one-sided.
    """
    rows = np.concatenate([features, views])
    labels = np.repeat([0, 1], len(features))
    head = fit_head(rows, labels, 2, _STRENGTH)
    weight = (head.weight[1] - head.weight[0]) / head.scale
    bias = head.bias[1] - head.bias[0] - head.mean @ weight
    # Scans of one number are in one fold with their views; whole ones that are in none tell nothing of others.
    judged = held_out_logits(rows, labels, np.tile(folds, 2), 2, _STRENGTH)[: len(features)]
    judged = judged[folds >= 0]
    return weight, float(bias - np.quantile(judged[:, 1] - judged[:, 0], share))
