"""Base class of the configurations of models in `base_model`."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin


class PointCloudConfig(LibrarySettingsMixin, PreTrainedConfig):
    """Fields that the configurations of these models have in common.

    Args:
        in_channels: Channels of a point: 3 for xyz, 6 with colors or normals.
        hidden_sizes: Channels of the layers that each point goes through.
        head_widths: Widths of the head's hidden layers; empty for a linear head.
        head_dropout: Dropout after each hidden layer of the head.
    """

    min_points: ClassVar[int] = 1

    in_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256)
    head_widths: list[int] | tuple[int, ...] = (128,)
    head_dropout: float = 0.3

    def __post_init__(self, **kwargs: Any):
        check_settings(self)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the last layer, the size of a cloud's feature."""
        return self.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers that each point goes through."""
        return len(self.hidden_sizes)
