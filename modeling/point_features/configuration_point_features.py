"""Configuration of models that compute features of point clouds without training."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.card_info import NamesPackageMixin
from hf_any3d.modeling.config_checks import CHANNELS, Ranges, check_choices, check_numbers
from hf_any3d.modeling.layers.unknown_score import UNKNOWN_RANGES, UnknownScoreConfigMixin
from hf_any3d.modeling.point_features.descriptors import count_descriptors
from hf_any3d.modeling.point_features.packaged_encoder import packaged_settings
from hf_any3d.modeling.pretrained_parts import EncoderConfigMixin

FEATURE_SETS = ("descriptors", "encoder")
"""Allowed values of `features`."""
_RANGES: Ranges = {
    **UNKNOWN_RANGES,
    "in_channels": (3, 4096),
    "encoder_width": CHANNELS,
    "copies": (1, 64),
    "copy_turn": (0, 180),
    "copy_scale": (0.1, 10),
    "copy_jitter": (0, 1),
    "temperature": (1e-3, 1e3),
}


class PointFeaturesConfig(UnknownScoreConfigMixin, NamesPackageMixin, EncoderConfigMixin, PreTrainedConfig):
    r"""Configuration of features of point clouds, and of a linear head on them.

    Args:
        features: Which sets of features are concatenated, in this order: "descriptors", hand-made numbers of the
            whole shape, and "encoder", the pooled output of a frozen point encoder.
        encoder_config: Config of the encoder, of any model of points in this package; None for the encoder that comes
            with the package.
        parts: Where the weights of the "encoder" come from, see `PretrainedPart`; without it they are stored with the
            model.
        encoder_weights: "packaged" for those that come with the package, "pretrained" for those of the encoder that
            was named when the model was built, or, as a control, "random".
        encoder_width: Features of the encoder; None to find out.
        in_channels: Channels of a point: 3 for xyz, 6 with colors or normals. The encoder reads its own first ones.
        normals: Whether channels 3 to 5 are unit normals, which then are described too.
        up_axis: The axis that points up, "x", "y" or "z": that of the processor.
        copies: Over how many copies of a cloud features are averaged; the first one is the cloud itself.
        copy_turn: Degrees by which the other copies are turned about the up axis at most, either way.
        copy_scale: Smallest and largest factor by which they are scaled along each axis.
        copy_jitter: By how much their points are moved along each axis at most, in radii of the cloud.
        temperature: Divisor of the logits, which calibrates their softmax.
    """

    model_type = "point_features"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="act3d", optional=True)}

    features: list[str] | tuple[str, ...] = ("descriptors", "encoder")
    encoder_config: dict | PreTrainedConfig | None = None
    parts: dict[str, Any] | None = None
    encoder_weights: str = "packaged"
    encoder_width: int | None = None
    in_channels: int = 3
    normals: bool = False
    up_axis: str = "y"
    copies: int = 8
    copy_turn: float = 10.0
    copy_scale: list[float] | tuple[float, float] = (0.9, 1.1)
    copy_jitter: float = 0.02
    temperature: float = 1.0

    def __post_init__(self, **kwargs: Any):
        if not isinstance(self.features, (list, tuple)) or not self.features:
            raise ValueError(f"features={self.features!r}; expected some of {', '.join(map(repr, FEATURE_SETS))}")
        for name in self.features:
            if name not in FEATURE_SETS or list(self.features).count(name) > 1:
                raise ValueError(
                    f"features={list(self.features)}; expected some of {', '.join(map(repr, FEATURE_SETS))}, each once"
                )
        if "encoder" not in self.features:
            if self.encoder_config is not None:
                raise ValueError(f"encoder_config with features={list(self.features)}; expected 'encoder' among them")
        elif self.encoder_config is None:
            self.encoder_config = packaged_settings()
        check_choices(self, {"encoder_weights": ("packaged", "pretrained", "random"), "up_axis": ("x", "y", "z")})
        check_numbers(self, _RANGES, kwargs)
        if len(self.copy_scale) != 2 or self.copy_scale[0] > self.copy_scale[1]:
            raise ValueError(f"copy_scale={list(self.copy_scale)}; expected the smallest and the largest factor")
        self.check_parts(("encoder",))
        super().__post_init__(**kwargs)
        if self.normals and self.in_channels < 6:
            raise ValueError(f"normals=True with in_channels={self.in_channels}; expected at least 6")
        needed = getattr(self.encoder_config, "in_channels", 3)
        if needed > self.in_channels:
            raise ValueError(f"in_channels={self.in_channels}; expected at least {needed}, which the encoder reads")

    def widths(self) -> dict[str, int]:
        """Return the number of features of each set, in the order of the features.

        Raises:
            ValueError: If `encoder_width` is not known yet.
        """
        known = {"descriptors": count_descriptors(self.normals), "encoder": self.encoder_width}
        found = {}
        for name in self.features:
            width = known[name]
            if width is None:
                raise ValueError(f"{name}_width=None; expected a number where a model is built without its weights")
            found[name] = width
        return found

    @property
    def hidden_size(self) -> int:
        """Number of all features."""
        return sum(self.widths().values())

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder; 0 without one."""
        return getattr(self.encoder_config, "num_hidden_layers", 0)

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return max(2, getattr(self.encoder_config, "min_points", 2))

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Settings that make predictions depend on the other clouds of a batch: none."""
        return []
