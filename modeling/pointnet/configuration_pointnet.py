"""Configurations of PointNet (arXiv 1612.00593) and PointNet++ (arXiv 1706.02413)."""

from __future__ import annotations

from typing import Any

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig


class PointNetConfig(PointCloudConfig):
    r"""Configuration of a PointNet (arXiv 1612.00593).

    The defaults are a small one for a few hundred shapes. The published sizes are
    `hidden_sizes=(64, 64, 64, 128, 1024)` and `head_widths=(512, 256)`. Further fields are those of
    `PointCloudConfig`.

    Args:
        bias: Whether layers have a bias before their norm, which cancels it, as in released weights.
    """

    model_type = "pointnet"

    bias: bool = False


class PointNet2Config(PointCloudConfig):
    r"""Configuration of a PointNet++ with grouping at a single scale (arXiv 1706.02413).

    The defaults are a small one, of 0.1 million parameters; `published_sizes()` has the published sizes. Further
    fields are those of `PointCloudConfig`.

    Args:
        num_centers: Centers that each level samples from the points or centers before it.
        radii: Radius of the ball around each center of a level.
        num_neighbors: Points of a ball that a level reads; of more, the first ones of the cloud are kept.
        level_widths: Channels of the layers of each level.
        hidden_sizes: Channels of the layers that each center of the last level goes through.
    """

    model_type = "pointnet2"

    num_centers: list[int] | tuple[int, ...] = (128, 32)
    # Of clouds in the unit sphere
    radii: list[float] | tuple[float, ...] = (0.2, 0.4)
    num_neighbors: list[int] | tuple[int, ...] = (16, 16)
    level_widths: list[list[int]] | tuple[tuple[int, ...], ...] = ((32, 32, 64), (64, 64, 128))
    hidden_sizes: list[int] | tuple[int, ...] = (128, 256)

    def __post_init__(self, **kwargs: Any):
        check_settings(self, ranges={"radii": (1e-6, 1e6)})
        super().__post_init__(**kwargs)

    @classmethod
    def published_sizes(cls, **changes: Any) -> PointNet2Config:
        """Return the published sizes for classification with one scale of grouping, 1.5 million parameters.

        Source: PointNet++, Sec. 10.1 (supplementary), "SSG".
        """
        sizes: dict[str, Any] = {
            "num_centers": (512, 128),
            "radii": (0.2, 0.4),
            "num_neighbors": (32, 64),
            "level_widths": ((64, 64, 128), (128, 128, 256)),
            "hidden_sizes": (256, 512, 1024),
            "head_widths": (512, 256),
            "head_dropout": 0.5,
        }
        return cls(**{**sizes, **changes})

    @property
    def num_hidden_layers(self) -> int:
        """Number of levels, the last one that reads all centers included."""
        return len(self.num_centers) + 1

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud; balls with fewer points are filled up."""
        return self.num_centers[0]
