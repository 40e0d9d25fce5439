"""Clouds that are two samples of one thing: copies with other points, which equal checksums do not find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.utils.messages import listed

# Points of each half of a cloud by which near-duplicates are found, and how much farther apart than two halves of one
# cloud they may be. Among 433 embedded shapes, whose near-duplicates are known, 1.05 finds 58 pairs, none of two
# classes, and 1.15 finds 272, ten of two classes: a pair too many makes an estimate cautious, one too few flatters it.
_HALF = 256
SAMPLE = 2 * _HALF
"""Points of a cloud that are compared."""
_FARTHER = 1.1
MOST_COMPARED = 3000
"""Scans above which only equal ones are found: every pair would be looked at."""
# Radii and extents of clouds in the unit sphere that differ by more are not compared point by point.
_UNLIKE = 0.12
_MOST_SHOWN = 3


def sample_of(cloud: PointCloudData) -> torch.Tensor | None:
    """Return a cloud for `near_duplicates`, (512, 3) in the unit sphere; None if it has fewer points or no area."""
    generator = np.random.default_rng(0)
    try:
        points = cloud.sample_surface(2 * SAMPLE, generator).points if cloud.is_mesh else cloud.points
    except PointCloudError:
        return None
    if len(points) < SAMPLE:
        return None
    # Center and radius of all points: those of a sample would differ between two samples of one cloud.
    center = points.mean(axis=0, dtype=np.float64)
    radius = max(np.linalg.norm(points - center, axis=1).max(), 1e-30)
    points = points[generator.choice(len(points), SAMPLE, replace=False)]
    return torch.from_numpy((points - center) / radius).float()


def groups_of(count: int, ties: Iterable[tuple[int, int]]) -> list[int]:
    """Return a number for each of `count` things: the lowest of those that ties connect it with."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    # The smaller number wins, so that groups do not depend on the order of the ties.
    for first, second in ties:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return [root(number) for number in range(count)]


def copies_in_words(count: int, pairs: Sequence[tuple[str, str]]) -> str:
    """Return how many scans are near-duplicates of another one, with the names of some."""
    text = f"{count} near-duplicates"
    if pairs:
        text += f", such as {listed([' and '.join(pair) for pair in pairs[:_MOST_SHOWN]], separator='; ')}"
    return text


def near_duplicates(clouds: torch.Tensor) -> list[tuple[int, int]]:
    """Find pairs of clouds (clouds, points, 3) in the unit sphere that are as close as two samples of one cloud.

    Copies that are turned are not found. The number of points is even.
    """
    first, second = clouds.chunk(2, dim=1)
    shares = torch.linspace(0.05, 0.95, 10)
    radii = torch.quantile(clouds.norm(dim=-1), shares, dim=1).T  # (clouds, 10)
    spread = clouds.std(dim=1)  # (clouds, 3)
    signature = torch.cat([radii, spread], dim=1)
    # Only clouds of like radii and extents are compared point by point.
    alike = torch.cdist(signature, signature, p=torch.inf) < _UNLIKE
    pairs = torch.triu(alike, diagonal=1).nonzero()
    if not len(pairs):
        return []
    # How far apart two samples of one cloud are.
    within = _distance(first, second)  # (clouds,)
    near_pairs: list[tuple[int, int]] = []
    # In parts: the distances of all points of a pair are computed at once.
    for part in pairs.split(512):
        left, right = part.T
        # Halves of different clouds are compared, so that equal points of a copy do not count.
        between = (_distance(first[left], second[right]) + _distance(second[left], first[right])) / 2
        is_near = between <= _FARTHER * torch.minimum(within[left], within[right]) + 1e-6
        near_pairs += [tuple(pair) for pair in part[is_near].tolist()]
    return near_pairs


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the mean distance to the nearest point, in both directions, of clouds (clouds, points, 3)."""
    apart = torch.cdist(first, second)  # (clouds, points, points)
    return (apart.amin(1).mean(1) + apart.amin(2).mean(1)) / 2
