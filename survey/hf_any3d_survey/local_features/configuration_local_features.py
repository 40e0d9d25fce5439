"""Configuration of models that label points by numbers of their surroundings."""

from __future__ import annotations

from typing import Any

from hf_any3d.modeling.config_checks import SHARE, check_settings
from hf_any3d.modeling.layers.unknown_score import UnknownScoreConfigMixin
from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig


class LocalFeaturesConfig(UnknownScoreConfigMixin, PointCloudConfig):
    r"""Configuration of a small network on numbers that describe the surroundings of each point.

    `UnknownScoreConfigMixin` has the settings of the unknown score, here of points. Further fields are those of
    `PointCloudConfig`; layers have no batch norm, so that an answer depends on nothing but the point.

    Args:
        in_channels: Channels of a point: its place, which no layer reads, and its features, as
            `LocalFeaturesProcessor` computes them.
        hidden_sizes: Widths of the hidden layers.
        members: Networks of these layers whose logits are averaged.
        dropout: Dropout behind each hidden layer.
        largest: Standard deviations at which features are clipped, as a place may be unlike all that was learned.
        temperature: Divisor of the logits, which calibrates their softmax.
        smoothing_edge: Edge of voxels, in the unit of the processor; the pipeline averages the probabilities of the
            points in 3 × 3 × 3 of them. 0 for none.
        smoothed_below: Usual distance of neighboring points, up to which scans are smoothed.
        class_codes: Code of each label in files, such as the ASPRS codes of LAS; None if there are none.
        learned_codes: Codes in files that each label was learned from, such as those of three heights of vegetation;
            None for those of `class_codes`.
        seen: Lowest and highest values of the conditions of the scans that were learned, `DescribedScan.conditions`,
            by their names; None if nobody knows.
        learned_rows: Learned points that are stored with the model, so that it can learn once more from a scan
            (`fitting.adapted`); 0 for none.
    """

    model_type = "local_features"

    in_channels: int = 8
    hidden_sizes: list[int] | tuple[int, ...] = (64,)
    members: int = 1
    dropout: float = 0.2
    largest: float = 5.0
    temperature: float = 1.0
    smoothing_edge: float = 0.0
    smoothed_below: float = 1.0
    class_codes: list[int] | tuple[int, ...] | None = None
    learned_codes: list[list[int]] | None = None
    seen: dict[str, list[float]] | None = None
    learned_rows: int = 0

    def __post_init__(self, **kwargs: Any):
        check_settings(
            self, ranges={"in_channels": (4, 4096), "members": (1, 64), "dropout": SHARE, "largest": (1, 1e6)}
        )
        super().__post_init__(**kwargs)
        # Codes are read by the number of a label.
        for name in ("class_codes", "learned_codes"):
            codes = getattr(self, name)
            if codes is not None and len(codes) != self.num_labels:
                raise ValueError(f"{name}={list(codes)}; expected one for each of {self.num_labels} labels")

    @property
    def num_features(self) -> int:
        """Number of features of a point, without its place."""
        return self.in_channels - 3

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden layers of all networks, the size of a point's feature."""
        return self.members * self.hidden_sizes[-1]
