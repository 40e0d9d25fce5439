"""Features of few scans, of views of them from one side, and of drawn things of no class, as a model computes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Array2D, Dataset, Features

from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.tables.numpy_rows import numpy_rows
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.few_scans.examples import Examples
from hf_any3d.training.few_scans.no_class import NUM_THINGS, draw_things
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.few_scans.scans import Scans
from hf_any3d.training.frozen_features import frozen_features


def compute_examples(
    model: PointFeaturesForPointCloudClassification, scans: Scans, *, learns_views: bool, compares_views: bool
) -> Examples:
    """Compute the features of all scans and of a view of each, and add those of an earlier model.

    Views are computed if they are learned, or if scans are compared with them.
    """
    processor = scans.processor

    def of_scans(rows: Dataset) -> np.ndarray:
        return compute_features(model, rows, processor)

    def of_views(rows: Dataset) -> np.ndarray:
        # Each row as it is seen from one side, drawn by its number
        views = []
        # A generator for each row, so that its view does not depend on how many there are.
        for number, row in enumerate(numpy_rows(rows)):
            xyz = to_cloud(row, ("xyz",)).points[:, :3]
            views.append(one_side(xyz, processor.num_points, model.config.up_axis, np.random.default_rng(number)))
        return compute_features(model, _rows_of(np.stack(views)), processor)

    earlier = scans.earlier
    features = _added(scans, None if earlier is None else earlier.features, of_scans)
    views = None
    if (learns_views or compares_views) and scans.can_have_views:
        views = _added(scans, None if earlier is None else earlier.views, of_views)
    return Examples(scans.together, features, processor, views, learns_views)


def _added(scans: Scans, stored: np.ndarray | None, compute: Callable[[Dataset], np.ndarray]) -> np.ndarray:
    """Add features of the new scans to those that an earlier model has stored for its own, which come first.

    Scans that the earlier model has learned keep the features that were computed then.
    """
    if scans.earlier is None or stored is None:
        return compute(scans.rows)
    # Scans are known by their points: files may have been moved or written in another format.
    row_of = {digest: number for number, digest in enumerate(scans.earlier.scans.digests)}
    digests = scans.new.digests
    new_scans = [number for number, digest in enumerate(digests) if digest not in row_of]
    learned_scans = [number for number, digest in enumerate(digests) if digest in row_of]
    features = np.empty((len(digests), stored.shape[1]), np.float32)  # (scans, width)
    if new_scans:
        features[new_scans] = compute(scans.rows.select(new_scans))
    features[learned_scans] = stored[[row_of[digests[number]] for number in learned_scans]]
    return np.concatenate([stored[scans.kept], features])


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


def things_to_draw(config: PointFeaturesConfig, requested: int | None) -> int:
    """Return how many things of no class are drawn for a model, if not as many as requested."""
    # 0 is a wish, too. A vision model would take minutes for things.
    if requested is None:
        return 0 if "views" in config.features else NUM_THINGS
    return requested


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
