"""Suggest points of a tile whose labels would help a model most: unlike each other, and it is sure of none of them.

`hf-any3d data suggest` writes them as a page, a table or a cloud; `adding.py` learns what a person has answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_any3d.data.files import PointCloudData
from hf_any3d.evaluation.labels import points_that_count
from hf_any3d_survey.segmentation.steps import LabeledScan, LocalFeaturesSteps

LOOKED_AT = 60_000
"""Points of a tile among which the suggested ones are chosen, drawn evenly."""
UNSURE_SHARE = 1 / 3
"""Share of these of which the model is least sure, among which clusters are formed."""
FARTHEST_SPREAD = 3.0
"""Meters that suggested points are apart at least, on tiles that are large enough."""
_ROUNDS = 15


@dataclass(frozen=True)
class Suggestions:
    """Points of a cloud to label next, those that stand for most others first.

    Attributes:
        rows: (count,) numbers of the points in the cloud.
        guesses: (count,) labels that the model gives them.
        scores: (count,) probabilities of these labels.
        scan: The answers about all points of the cloud.
    """

    rows: np.ndarray
    guesses: np.ndarray
    scores: np.ndarray
    scan: LabeledScan


def suggest_points(pipe: LocalFeaturesSteps, cloud: PointCloudData, count: int = 200, seed: int = 0) -> Suggestions:
    """Suggest points to label next.

    The third of the points of which the model is least sure, by the margin between the two highest probabilities, is
    clustered by the last hidden layer; of each cluster one point near its center is suggested. No two are next to each
    other: they are at least 3 m apart, on small tiles half of the side of the square that each would have.

    Args:
        pipe: The pipeline of a model of local features.
        cloud: A tile, or an object. Noise, withheld points and synthetic ones are not suggested.
        count: Number of points.
        seed: Of the points that are looked at, and of the clusters; the same one gives the same points.

    Raises:
        ValueError: The cloud has too few points for so many suggestions.
    """
    near, far = pipe.feature_extractor.split_far(cloud)
    if far is not None:
        found = suggest_points(pipe, near, count, seed)
        return Suggestions(far.rows[found.rows], found.guesses, found.scores, found.scan.with_far(far))
    generator = np.random.default_rng(seed)
    usable = np.flatnonzero(points_that_count(cloud))
    drawn = np.sort(generator.permutation(usable)[:LOOKED_AT])
    scan = pipe.label_with_features(cloud, drawn)
    looked_at = np.flatnonzero(~scan.is_noise[drawn])
    margins = scan.margins[drawn[looked_at]]
    if not 1 <= count <= UNSURE_SHARE * len(looked_at):
        most = int(UNSURE_SHARE * len(looked_at))
        raise ValueError(f"{count} points to suggest from {len(cloud):,}; ask for 1 to {most:,}")
    places = scan.places[drawn[looked_at]]
    chosen = choose_unsure(scan.features[looked_at], margins, places, count, seed)
    rows = drawn[looked_at[chosen]]
    return Suggestions(rows, scan.labels[rows], scan.scores[rows], scan)


def choose_unsure(
    features: np.ndarray, margins: np.ndarray, places: np.ndarray, count: int, seed: int = 0
) -> np.ndarray:
    """Choose points of which a model is not sure, unlike each other and apart.

    Args:
        features: (points, hidden) outputs of the last hidden layer.
        margins: (points,) between the two highest probabilities.
        places: (points, 3) places of the points.
        count: Number of points to choose.
        seed: Of the clusters.

    Returns:
        (count,) numbers of the points.
    """
    # Stable, so that equal margins leave no choice to the sorting
    unsure = np.argsort(margins, kind="stable")[: max(count, int(UNSURE_SHARE * len(margins)))]
    return unsure[choose_points(features[unsure], places[unsure], count, spread_of(places, count), seed)]


def spread_of(places: np.ndarray, count: int) -> float:
    """Return how far `count` points among places (points, 3) are to be apart, in their unit."""
    area = float(np.prod(np.ptp(places[:, :2], axis=0)))
    return min(FARTHEST_SPREAD, 0.5 * np.sqrt(area / count))


def choose_points(
    features: np.ndarray,
    places: np.ndarray,
    count: int,
    spread: float,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Choose one point of each of `count` clusters, the nearest to its center that is not near another chosen one.

    Args:
        features: (points, features) by which points are clustered.
        places: (points, 3) places of the points.
        count: Number of clusters, and of points at most.
        spread: Least distance between chosen points, in the unit of the places. Only if not enough points are so far
            from each other, the further ones are the farthest that there are.
        seed: Of the first centers.
        weights: (points,) how much each point counts; None for all alike.

    Returns:
        (count,) numbers of the points, those of heavy clusters first.
    """
    counted = np.ones(len(features)) if weights is None else weights
    cluster, distance = _clusters(torch.from_numpy(features).float(), torch.from_numpy(counted).float(), count, seed)
    order = np.lexsort((distance, cluster))
    starts = np.searchsorted(cluster[order], np.arange(count + 1))
    heavy = np.bincount(cluster, counted, minlength=count)
    chosen: list[int] = []
    # Of each point, the distance to the nearest chosen one
    away = np.full(len(places), np.inf)
    for number in np.argsort(-heavy, kind="stable"):
        members = order[starts[number] : starts[number + 1]]
        free = members[away[members] >= spread]
        if len(free):
            chosen.append(int(free[0]))
            away = np.minimum(away, np.linalg.norm(places - places[free[0]], axis=1))
    # Clusters that lie within others, as seen from their places, have left some points to choose.
    while len(chosen) < count:
        farthest = int(away.argmax())
        chosen.append(farthest)
        away = np.minimum(away, np.linalg.norm(places - places[farthest], axis=1))
        away[chosen] = -1.0
    return np.array(chosen)


def _clusters(points: torch.Tensor, weights: torch.Tensor, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster (points,) of each point (points, features), and its squared distance to the center.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (2007), and Lloyd's rounds.
    """
    generator = np.random.default_rng(seed)
    first = [int(generator.integers(len(points)))]
    nearest = (points - points[first[0]]).square().sum(dim=1)
    for _ in range(count - 1):
        shares = (nearest * weights).double().numpy().clip(min=1e-12)
        first.append(int(generator.choice(len(points), p=shares / shares.sum())))
        nearest = torch.minimum(nearest, (points - points[first[-1]]).square().sum(dim=1))
    centers = points[first].clone()
    squares = points.square().sum(dim=1)
    # (points, clusters) squared distances
    apart = squares[:, None] + centers.square().sum(dim=1) - 2 * points @ centers.T
    for _ in range(_ROUNDS):
        cluster = apart.argmin(dim=1)
        heavy = torch.zeros(count).index_add_(0, cluster, weights)
        sums = torch.zeros_like(centers).index_add_(0, cluster, points * weights[:, None])
        # A cluster without points keeps its center.
        centers = torch.where(heavy[:, None] > 0, sums / heavy.clamp(min=1e-9)[:, None], centers)
        apart = squares[:, None] + centers.square().sum(dim=1) - 2 * points @ centers.T
    distance, cluster = apart.min(dim=1)
    return cluster.numpy(), distance.numpy()
