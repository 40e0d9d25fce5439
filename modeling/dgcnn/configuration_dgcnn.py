"""Configuration of a DGCNN (arXiv 1801.07829)."""

from __future__ import annotations

from typing import Any

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig


class DgcnnConfig(PointCloudConfig):
    r"""Configuration of a DGCNN (arXiv 1801.07829).

    The defaults are a small one for a few hundred shapes. The published sizes for classification are
    `edge_widths=((64,), (64,), (128,), (256,))`, `hidden_sizes=(1024,)` and `head_widths=(512, 256)`; those for rooms
    are `edge_widths=((64, 64), (64, 64), (64,))` with the same others. Further fields are those of `PointCloudConfig`.

    Args:
        edge_widths: Channels of the layers of each edge convolution.
        hidden_sizes: Channels of the layers that read the outputs of all edge convolutions, for each point.
        num_neighbors: Neighbors of a point in each graph, itself included.
        position_channel: First of the three channels that hold the positions of the first graph: 0, or 6 for blocks of
            rooms, where the graph is of places in the room.
    """

    model_type = "dgcnn"

    edge_widths: list[list[int]] | tuple[tuple[int, ...], ...] = ((32,), (32,), (64,))
    hidden_sizes: list[int] | tuple[int, ...] = (256,)
    num_neighbors: int = 20
    position_channel: int = 0

    def __post_init__(self, **kwargs: Any):
        # Beyond them, the graph would silently be of fewer channels.
        check_settings(self, ranges={"position_channel": (0, self.in_channels - 3)})
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Number of edge convolutions, and of the layers after them."""
        return len(self.edge_widths) + len(self.hidden_sizes)

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return self.num_neighbors
