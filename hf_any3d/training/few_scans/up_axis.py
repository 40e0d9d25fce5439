"""Guess the up axis of scans that do not state it, by comparison with the upright shapes of the package."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from datasets import Dataset

from hf_any3d.data.axes import turn_up_axis
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.numpy_rows import numpy_rows
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS, packaged_rows
from hf_any3d.modeling.point_encoders.packaged_metric import in_metric, packaged_metric
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesModel
from hf_any3d.processing.point_clouds import PointCloudProcessor

LEAST, MOST = 20, 60
"""Scans below which nothing is said, and scans that are looked at."""
SHARE, NEARER = 0.55, 0.065
"""Share of the scans that an axis must win before it is named, and how much nearer to the shapes of the package they
must be with it, on average, than with the next best one: electronic parts look more like upright furniture if they
stand on an edge, but not by that much."""
_POINTS = 1024


def hint_of_axis(rows: Dataset, up_axis: str) -> str | None:
    """Return a line if most scans look as if another axis pointed up than the assumed one; None if they do not."""
    if len(rows) < LEAST:
        return None
    distances = distances_by_axis(rows)  # (axes, scans)
    wins = np.bincount(distances.argmin(axis=0), minlength=3)
    best, second = np.argsort(distances.mean(axis=1))[:2]
    nearer = 1 - distances[best].mean() / distances[second].mean()
    axis = "xyz"[best]
    # Both: most scans win with this axis, and clearly.
    if axis == up_axis or wins[best] < SHARE * distances.shape[1] or nearer < NEARER:
        return None
    return (
        f"up axis: assumed {up_axis}, but {wins[best]} of {distances.shape[1]} scans seem to have {axis} up; if "
        f"so, pass --up_axis {axis}"
    )


@torch.no_grad()
def distances_by_axis(rows: Dataset) -> np.ndarray:
    """Return how far scans are from upright shapes of the package if x, y or z points up: `(3, scans)`."""
    # Evenly over the rows, which are often in the order of their classes.
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int)
    processor = PointCloudProcessor(num_points=_POINTS)
    clouds = [to_cloud(row, ("xyz",)).points for row in numpy_rows(rows.select(chosen))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few points, which learning tells of
        points = processor([cloud[:, :3] for cloud in clouds])["points"].numpy()  # (scans, points, 3)
    model = PointFeaturesModel(PointFeaturesConfig(features=["encoder"], copies=1)).eval()
    stored = packaged_metric()

    def compared(features: torch.Tensor) -> torch.Tensor:
        return in_metric((features - stored["mean"]) / stored["scale"], stored["matrix"])

    upright_shapes = compared(packaged_rows())  # (shapes, width)
    nearest = []
    # The encoder has learned shapes with one axis up; this turn makes a scan upright if `axis` points up in it.
    for axis in "xyz":
        turned = torch.from_numpy(turn_up_axis(points.reshape(-1, 3), axis, PACKAGED_UP_AXIS).reshape(points.shape))
        features = torch.cat([model(points=piece).pooler_output for piece in turned.split(32)])
        nearest.append(torch.cdist(compared(features), upright_shapes).amin(dim=1))
    return torch.stack(nearest).numpy()
