"""Features of few scans, of views of them from one side, and of drawn things of no class, as they are computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Array2D, Dataset, Features

from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.numpy_rows import numpy_rows
from hf_any3d.modeling.point_features import PointFeaturesForPointCloudClassification
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.few_scans.no_class import draw_things
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.few_scans.scans import Examples, Scans, joined
from hf_any3d.training.frozen_features import frozen_features


def can_have_views(processor: PointCloudProcessor, earlier: Examples | None) -> bool:
    """Return whether views from one side can be made of the scans, and of those of an earlier model."""
    # Of clouds with colors, intensities or normals nobody knows which of those are seen.
    return list(processor.features) == ["xyz"] and (earlier is None or earlier.views is not None)


def compute_examples(
    model: PointFeaturesForPointCloudClassification,
    rows: Dataset,
    processor: PointCloudProcessor,
    scans: Scans,
    earlier: Examples | None,
    one_sided: bool,
) -> Examples:
    """Compute the features of all scans and of a view of each, and add those of an earlier model."""
    has_views = one_sided and can_have_views(processor, earlier)

    def of_scans(rows: Dataset) -> np.ndarray:
        return compute_features(model, rows, processor)

    def of_views(rows: Dataset) -> np.ndarray:
        return compute_features(model, _views_of(rows, processor.num_points, model.config.up_axis), processor)

    if earlier is None:
        return Examples(scans, of_scans(rows), processor, of_views(rows) if has_views else None)
    together, kept = joined(earlier.scans, scans)
    features = _added(rows, scans, earlier.scans, kept, earlier.features, of_scans)
    views = None
    if has_views:
        assert earlier.views is not None
        views = _added(rows, scans, earlier.scans, kept, earlier.views, of_views)
    return Examples(together, features, processor, views)


def _added(
    rows: Dataset,
    scans: Scans,
    earlier: Scans,
    kept: np.ndarray,
    stored: np.ndarray,
    compute: Callable[[Dataset], np.ndarray],
) -> np.ndarray:
    """Add features of scans to the stored ones of an earlier model; those of `kept` earlier scans come first.

    Scans that the earlier model has learned keep the features that were computed then.
    """
    # Scans are known by their points: files may have been moved or written in another format.
    row_of = {digest: number for number, digest in enumerate(earlier.digests)}
    new_scans = [number for number, digest in enumerate(scans.digests) if digest not in row_of]
    learned_scans = [number for number, digest in enumerate(scans.digests) if digest in row_of]
    features = np.empty((len(rows), stored.shape[1]), np.float32)  # (scans, width)
    if new_scans:
        features[new_scans] = compute(rows.select(new_scans))
    features[learned_scans] = stored[[row_of[scans.digests[number]] for number in learned_scans]]
    return np.concatenate([stored[kept], features])


def _views_of(rows: Dataset, num_points: int, up_axis: str) -> Dataset:
    """Return a view of each row from one side, drawn by its number."""
    views = []
    # A generator for each row, so that its view does not depend on how many there are.
    for number, row in enumerate(numpy_rows(rows)):
        xyz = to_cloud(row, ("xyz",)).points[:, :3]
        views.append(one_side(xyz, num_points, up_axis, np.random.default_rng(number)))
    return _rows_of(np.stack(views))


def _rows_of(points: np.ndarray) -> Dataset:
    kinds = Features({"points": Array2D(points.shape[1:], "float32")})
    return Dataset.from_dict({"points": points.astype(np.float32)}, kinds)


def compute_features(
    model: PointFeaturesForPointCloudClassification, rows: Dataset, processor: PointCloudProcessor
) -> np.ndarray:
    """Return the features of rows as they are computed, (rows, width)."""
    # The bar moves with each batch, and a vision model takes a second for a cloud.
    batch_size = 4 if "views" in model.config.features else 32
    computed = frozen_features(model, rows, processor, batch_size).with_format("numpy")
    return np.stack(computed["features"][:]).astype(np.float32)


def compute_things(
    model: PointFeaturesForPointCloudClassification, processor: PointCloudProcessor, count: int
) -> np.ndarray:
    """Return the features of drawn things of no class as they are computed, (things, width).

    There are none for clouds with colors, intensities or normals, which nobody draws.
    """
    if not count or list(processor.features) != ["xyz"]:
        return np.empty((0, model.config.hidden_size), np.float32)
    points = draw_things(count, processor.num_points, model.config.up_axis)
    copies = model.config.copies
    # Of the things alone: copies of them would cost more than all else, and tell nothing better.
    model.config.copies = 1
    try:
        return compute_features(model, _rows_of(points), processor)
    finally:
        model.config.copies = copies
