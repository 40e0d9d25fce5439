"""Frozen encoders in the study of tiles: features of points that nothing was trained for here.

`studies.tiles` appends them to the features of surroundings, or learns them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from hf_any3d.data.axes import turn_up_axis
from hf_any3d.data.files import PointCloudData
from hf_any3d.modeling.act import ActModel
from hf_any3d.modeling.point_encoders.packaged_encoder import FOLDER, PACKAGED_UP_AXIS
from hf_any3d.modeling.point_ops import three_nearest_interpolate
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Config, PointTransformerV3Model
from hf_any3d.processing.local_features import DescribedScan, LocalFeaturesProcessor

GRID = 0.5
"""Edge of the voxels of Point Transformer V3, in meters, as of the finest surroundings."""
CELL, CLOUD = 8.0, 1024
"""Width in meters of what the packaged encoder sees at once, wider where a scan is sparse, and its points."""
_HIGHEST = 3.0
_BATCH = 32
Encode = Callable[[DescribedScan, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class EncodedScan:
    """A described scan whose features of points are those of an encoder, too."""

    scan: DescribedScan
    encode: Encode
    alone: bool

    def neighborhoods(self, index: np.ndarray) -> EncodedScan:
        """Return the scan itself, of which all points are seen."""
        if len(index) != len(self.scan.cloud):
            raise ValueError(f"{len(index)} of {len(self.scan.cloud)} points; expected all")
        return self

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return the features (rows, features) of some of the points."""
        encoded = self.encode(self.scan, rows).astype(np.float32)
        if self.alone:
            return encoded
        around = self.scan.neighborhoods(np.arange(len(self.scan.cloud))).features(rows)
        return np.concatenate([around, encoded], axis=1)


class EncoderProcessor(LocalFeaturesProcessor):
    """Describe points by a frozen encoder, and by their surroundings unless it is `alone`."""

    def __init__(self, encoder: str, features: Sequence[str], alone: bool):
        super().__init__(features=features)
        self._encode, self._alone = ENCODERS[encoder], alone

    def describe(self, cloud: PointCloudData, up_axis: str | None = None) -> Any:
        """Look at a whole scan."""
        return EncodedScan(super().describe(cloud, up_axis), self._encode, self._alone)


def random_point_transformer(scan: DescribedScan, rows: np.ndarray) -> np.ndarray:
    """Return features of a small Point Transformer V3 whose weights nobody has trained.

    It reads what the features of surroundings read of a point: heights above the ground and returns.
    """
    points = scan.cloud.points.astype(np.float64) * scan.factor + scan.origin
    ground = scan.ground
    assert ground is not None
    columns = [points - points.min(axis=0), ground.heights_above(points).clip(max=_HIGHEST)]
    number, count = scan.cloud.return_number, scan.cloud.number_of_returns
    if number is None or count is None:
        columns.append(np.zeros((len(points), 2)))
    else:
        columns.append(np.stack([number / np.maximum(count, 1), count > 1], axis=1))
    channels = torch.from_numpy(np.concatenate(columns, axis=1)).float()
    with torch.inference_mode():
        output = _point_transformer()(channels[None], output_point_features=True)
    return output.point_features[0, torch.from_numpy(rows)].numpy()


@cache
def _point_transformer() -> PointTransformerV3Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PointTransformerV3Config(
            in_channels=9,
            grid_size=GRID,
            reads_coordinates=False,
            shuffle_curves="never",
            depths=(1, 1, 1),
            hidden_sizes=(32, 64, 96),
            num_attention_heads=(2, 4, 6),
            patch_sizes=(256, 256, 256),
            pooling_strides=(2, 2),
            stem="convolution",
            initializer_range=0.1,
        )
        return PointTransformerV3Model(config).eval()


def packaged(scan: DescribedScan, rows: np.ndarray) -> np.ndarray:
    """Return features of the encoder that comes with the package, of columns through the scan.

    Each column is drawn to the points that the encoder knows, in a unit sphere, and a point gets what the three
    nearest tokens say.
    """
    points = scan.cloud.points.astype(np.float64) * scan.factor
    points -= points.min(axis=0)
    edge = max(CELL, scan.spacing * CLOUD**0.5)
    cells = np.floor(points[:, :2] / edge).astype(np.int64)
    keys = cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]
    order = np.argsort(keys, kind="stable")
    asked = np.unique(keys[rows])
    starts = np.searchsorted(keys[order], asked)
    ends = np.searchsorted(keys[order], asked, side="right")
    found: np.ndarray | None = None
    generator = np.random.default_rng(0)
    for first in range(0, len(asked), _BATCH):
        chosen = range(first, min(first + _BATCH, len(asked)))
        clouds, centers, sizes = [], [], []
        for cell in chosen:
            inside = order[starts[cell] : ends[cell]]
            drawn = points[generator.choice(inside, CLOUD, replace=len(inside) < CLOUD)]
            middle = drawn.mean(axis=0)
            size = max(float(np.linalg.norm(drawn - middle, axis=1).max()), 1e-6)
            clouds.append(turn_up_axis(((drawn - middle) / size).astype(np.float32), "z", PACKAGED_UP_AXIS))
            centers.append(middle)
            sizes.append(size)
        with torch.inference_mode():
            output = _packaged()(torch.from_numpy(np.stack(clouds)))
            tokens = output.last_hidden_state[:, -output.centers.shape[1] :]
        for place, cell in enumerate(chosen):
            own = np.flatnonzero(keys[rows] == asked[cell])
            seen = ((points[rows[own]] - centers[place]) / sizes[place]).astype(np.float32)
            query = torch.from_numpy(turn_up_axis(seen, "z", PACKAGED_UP_AXIS))
            values = three_nearest_interpolate(query[None], output.centers[place, None], tokens[place, None])
            if found is None:
                found = np.zeros((len(rows), values.shape[-1]), np.float32)
            found[own] = values[0].numpy()
    assert found is not None
    return found


@cache
def _packaged() -> ActModel:
    return ActModel.from_pretrained(FOLDER).eval()


ENCODERS: dict[str, Encode] = {
    "random Point Transformer V3": random_point_transformer,
    "packaged encoder": packaged,
}
"""Encoders by the names that settings have."""
