"""Features of few scans, of views of them from one side, and of drawn things of no class, as they are computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Array2D, Dataset, Features

from hf_any3d.data.inputs import to_cloud
from hf_any3d.modeling.point_features import PointFeaturesForPointCloudClassification
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.few_scans.no_class import draw_things
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.few_scans.scans import Examples, Scans, joined
from hf_any3d.training.frozen_features import frozen_features


def compute_examples(
    model: PointFeaturesForPointCloudClassification,
    rows: Dataset,
    processor: PointCloudProcessor,
    scans: Scans,
    earlier: Examples | None,
    one_sided: bool,
) -> Examples:
    """Compute the features of all scans and of a view of each, and add those of an earlier model."""
    # Of clouds with colors, intensities or normals nobody knows which of those are seen.
    has_views = one_sided and list(processor.features) == ["xyz"] and (earlier is None or earlier.views is not None)
    computed: list[Callable[[Dataset], np.ndarray]] = [lambda rows: compute_features(model, rows, processor)]

    def of_views(rows: Dataset) -> np.ndarray:
        count, up_axis = processor.num_points, model.config.up_axis
        clouds = (to_cloud(row, ("xyz",)).points[:, :3] for row in rows.with_format("numpy"))
        views = [one_side(xyz, count, up_axis, np.random.default_rng(number)) for number, xyz in enumerate(clouds)]
        return compute_features(model, _rows_of(np.stack(views)), processor)

    if has_views:
        computed.append(of_views)
    if earlier is None:
        return Examples(scans, computed[0](rows), processor, computed[1](rows) if has_views else None)
    known = {digest: number for number, digest in enumerate(earlier.scans.digests)}
    # Scans that the earlier model has learned keep the features that were computed then.
    new = [number for number, digest in enumerate(scans.digests) if digest not in known]
    old = [number for number, digest in enumerate(scans.digests) if digest in known]
    together, kept = joined(earlier.scans, scans)
    found = []
    for compute, stored in zip(computed, (earlier.features, earlier.views), strict=False):
        assert stored is not None
        features = np.empty((len(rows), stored.shape[1]), np.float32)
        if new:
            features[new] = compute(rows.select(new))
        features[old] = stored[[known[scans.digests[number]] for number in old]]
        found.append(np.concatenate([stored[kept], features]))
    return Examples(together, found[0], processor, found[1] if has_views else None)


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


def compute_bank(
    model: PointFeaturesForPointCloudClassification, processor: PointCloudProcessor, count: int
) -> np.ndarray:
    """Return the features of things of no class as they are computed, (things, width).

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
