"""Configuration of models that compute features of point clouds without training."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.config_checks import Ranges, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.unknown_score import UnknownScoreConfigMixin
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS, packaged_settings
from hf_any3d.modeling.point_features.depth_views import VIEWS
from hf_any3d.modeling.point_features.descriptors import count_descriptors
from hf_any3d.modeling.pretrained_parts.record import EncoderConfigMixin
from hf_any3d.modeling.records import POINT_ENCODER

# Types of models whose classifiers have a `ClassificationHead`, described by their config.
_WITH_HEADS = ("any2point", POINT_ENCODER)
PART_OF = {"encoder": "encoder", "wrap": "wrap", "views": "vision"}
"""Sets of features that a frozen model computes, and the names of these models: parts, and prefixes of settings."""
FEATURE_SETS = ("descriptors", *PART_OF)
"""Allowed values of `features`."""
# Words for cards, one for each set
_NAMES = {
    "descriptors": "hand-made descriptors of the shape",
    "encoder": "a frozen point encoder",
    "wrap": "a trained wrap around a frozen encoder of another modality",
    "views": "a frozen vision model that sees depth views",
}
_RANGES: Ranges = {
    "wrap_labels": (2, 1_000_000),
    "copies": (1, 64),
    # Either way, so that 180 degrees are any heading.
    "copy_turn": (0, 180),
    "copy_scale": (0.1, 10),
    "copy_jitter": (0, 1),
    "views": (1, VIEWS),
}


class PointFeaturesConfig(UnknownScoreConfigMixin, LibrarySettingsMixin, EncoderConfigMixin, PreTrainedConfig):
    r"""Configuration of features of point clouds, and of a linear head on them.

    `UnknownScoreConfigMixin` has the settings of the unknown score.

    Args:
        features: Which sets of features are concatenated, in this order: "descriptors", hand-made numbers of the
            whole shape; "encoder", the pooled output of a frozen point encoder; "wrap", that of a trained model of
            this package around an encoder of another modality; "views", the mean output of a vision model for depth
            views of the cloud.
        encoder_config: Config of the encoder, of any model of points in this package; None for the encoder that comes
            with the package.
        encoder_weights: "packaged" for those that come with the package, "pretrained" for those of the encoder that
            was named when the model was built, or, as a control, "random".
        encoder_width: Features of the encoder; None to find out.
        encoder_up_axis: The axis that points up in what the encoder reads: clouds with another `up_axis` are turned
            for it. None turns nothing, as models did before there was this field. By default ("known") that of the
            packaged encoder, and None for another one.
        wrap_config: Config of that trained model, the wrap.
        wrap_width: Features of the wrap; None to find out.
        wrap_up_axis: The same axis of the wrap; None turns nothing.
        wrap_adapter: Settings of the adapter with which the wrap was trained, as PEFT writes them, and whose weights
            are stored with the model; None for a wrap without one.
        wrap_labels: Labels of the wrap's own head, whose log-probabilities then are its features; None for its pooled
            output.
        vision_config: Config of the vision model, of any that transformers opens as `AutoModel`.
        vision_width: Features of the vision model; None to find out.
        parts: Where the weights of "encoder", "wrap" and "vision" come from, see `PretrainedPart`; those of others
            are stored with the model.
        in_channels: Channels of a point: 3 for xyz, 6 with colors or normals. A frozen model of points reads its own
            first ones.
        normals: Whether channels 3 to 5 are unit normals, which then are described too.
        up_axis: The axis that points up, "x", "y" or "z": that of the processor.
        copies: Over how many copies of a cloud features are averaged, of which the first is the cloud itself. Views
            are of the cloud itself alone.
        copy_turn: Degrees by which the other copies are turned about the up axis at most, either way; 180 where the
            heading of clouds is unknown.
        copy_scale: Smallest and largest factor by which they are scaled along each axis.
        copy_jitter: By how much their points are moved along each axis at most, in radii of the cloud.
        views: Depth views of a cloud.
        image_size: Width and height of a view; None for that of the vision model, or 224.
        image_mean: Mean of images by channel, subtracted before the vision model.
        image_std: Their standard deviation, which then divides them.
        temperature: Divisor of the logits, which calibrates their softmax.
        one_sided: Whether a second head tells clouds that were seen from one side only from whole ones.
        metric: Whether the encoder's features, which then are the first ones, are compared in a stored metric, see
            `in_metric`, after they are standardized.
        largest_scan: Largest extent of the scans that the head has learned, in the units of their files.
        scan_unit: Length of such a unit in meters; None if the files do not say it.
    """

    model_type = "point_features"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(AutoConfig, model_type=POINT_ENCODER, optional=True),
        "wrap_config": SubConfigSpec(AutoConfig, model_type="any2point", optional=True),
        "vision_config": SubConfigSpec(AutoConfig, model_type="vit", optional=True),
    }

    features: list[str] | tuple[str, ...] = ("descriptors", "encoder")
    encoder_config: dict | PreTrainedConfig | None = None
    encoder_weights: str = "packaged"
    encoder_width: int | None = None
    encoder_up_axis: str | None = "known"
    wrap_config: dict | PreTrainedConfig | None = None
    wrap_width: int | None = None
    wrap_up_axis: str | None = None
    wrap_adapter: dict[str, Any] | None = None
    wrap_labels: int | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vision_width: int | None = None
    parts: dict[str, Any] | None = None
    in_channels: int = 3
    normals: bool = False
    up_axis: str = "y"
    copies: int = 8
    copy_turn: float = 10.0
    copy_scale: list[float] | tuple[float, float] = (0.9, 1.1)
    copy_jitter: float = 0.02
    views: int = VIEWS
    image_size: int | None = None
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    temperature: float = 1.0
    one_sided: bool = False
    metric: bool = False
    largest_scan: float | None = None
    scan_unit: float | None = None

    def __post_init__(self, **kwargs: Any):
        features = list(self.features)
        if not features or len(set(features)) != len(features) or set(features) - set(FEATURE_SETS):
            raise ValueError(f"features={self.features!r}; expected some of {FEATURE_SETS}, each once")
        # Each setting belongs to a set of features, without which it would have no effect.
        owners = {f"{part}_config": name for name, part in PART_OF.items()} | {"wrap_adapter": "wrap"}
        for setting, name in owners.items():
            if getattr(self, setting) is not None and name not in features:
                raise ValueError(f"{setting} with features={features}; expected {name!r} among them")
        # The stored matrix is of the first columns.
        if self.metric and features[0] != "encoder":
            raise ValueError(f"metric=True with features={features}; expected 'encoder' as the first")
        # Only the packaged encoder is known to have been trained with one axis up.
        reads_packaged = "encoder" in self.features and self.encoder_weights == "packaged"
        if self.encoder_up_axis == "known":
            self.encoder_up_axis = PACKAGED_UP_AXIS if reads_packaged else None
        if "encoder" in self.features and self.encoder_config is None:
            # The settings of the packaged weights, which are read from a file beside them.
            self.encoder_config = packaged_settings()
        axes = ("x", "y", "z")
        choices: dict[str, tuple[str | None, ...]] = {
            "encoder_weights": ("packaged", "pretrained", "random"),
            "up_axis": axes,
            "encoder_up_axis": (*axes, None),
            "wrap_up_axis": (*axes, None),
        }
        check_settings(self, choices, _RANGES)
        self.check_parts(tuple(PART_OF.values()))
        super().__post_init__(**kwargs)
        # Other models have other heads.
        if self.wrap_labels is not None and getattr(self.wrap_config, "model_type", None) not in _WITH_HEADS:
            raise ValueError(f"wrap_labels={self.wrap_labels} without a wrap_config of the types {_WITH_HEADS}")
        if self.normals and self.in_channels < 6:
            raise ValueError(f"normals=True with in_channels={self.in_channels}; expected at least 6")
        for name in ("encoder", "wrap"):
            config = getattr(self, f"{name}_config")
            # Features are of clouds in radii, and voxels have an edge in meters.
            if getattr(config, "flat_tokens", False):
                raise ValueError(f"{name}_config reads voxels in their own units ({config.model_type})")

    def widths(self) -> dict[str, int]:
        """Return the number of features of each set, in the order of the features."""
        widths = {}
        for name in self.features:
            part = PART_OF.get(name)
            width = count_descriptors(self.normals) if part is None else getattr(self, f"{part}_width")
            # With its own head, a wrap gives a log-probability for each label.
            widths[name] = self.wrap_labels if part == "wrap" and self.wrap_labels is not None else width
        return widths

    @property
    def hidden_size(self) -> int:
        """Number of all features."""
        return sum(self.widths().values())

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the point encoder, else of the wrap; 0 without them."""
        config = self.wrap_config if self.encoder_config is None else self.encoder_config
        return getattr(getattr(config, "encoder_config", None) or config, "num_hidden_layers", 0)

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return max(getattr(config, "min_points", 2) for config in (self.encoder_config, self.wrap_config))

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Settings that make predictions depend on the other clouds of a batch, those of the wrap."""
        return list(getattr(self.wrap_config, "batch_dependent_flags", []))

    @property
    def described_features(self) -> str:
        """The sets of features in words, as what describes a cloud, for cards."""
        *first, last = (_NAMES[name] for name in self.features)
        text = " and ".join([", ".join(first), last]) if first else last
        # Descriptors are many, of every other set there is one.
        verb = "describe" if first or last == _NAMES["descriptors"] else "describes"
        return f"{text[0].upper()}{text[1:]} {verb} a cloud"
