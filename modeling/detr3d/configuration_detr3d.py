"""Configuration of 3DETR (arXiv 2109.08141)."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.config_checks import Ranges, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.point_encoders.set_abstraction import NEIGHBOR_ORDERS
from hf_any3d.modeling.pretrained_parts.record import PartsConfigMixin, source_property
from hf_any3d.modeling.records import POINT_ENCODER

RELEASED: dict[str, Any] = {"sampling_min_squared_norm": 1e-3, "neighbor_order": "first", "published_overlap": True}
"""What the released program does and new models do not, as changes of the config's defaults."""
RELEASED_RADII = (0.4**2, 0.8**2, 1.2**2)
"""Radii of the masked encoder's attention in the released program, which squares them before it compares distances."""
# In meters; wide enough for any unit, but above 0, as lengths are divided by.
_RANGES: Ranges = {
    **dict.fromkeys(("group_radius", "downsampling_radius", "attention_radii"), (1e-6, 1e6)),
    **dict.fromkeys(("max_center_offset", "min_extent"), (1e-6, 1e6)),
    "num_heading_bins": (1, 3600),
}
ACTIVATIONS = ("relu", "gelu", "leaky_relu")


class Detr3DConfig(LibrarySettingsMixin, PartsConfigMixin, PreTrainedConfig):
    r"""Configuration of a 3DETR (arXiv 2109.08141).

    The defaults are the sizes of the released detector for ScanNet with a masked encoder, "3DETR-m", with sound
    behavior.

    Args: Points
        in_channels: Channels of a point: 3 for xyz in meters, z up; more with colors.
        num_tokens: Centers that are sampled from a cloud, each a token of the encoder.
        group_radius: Radius of the ball around a center whose points make its token.
        num_neighbors: Points of a ball that are read.
        group_widths: Widths of the layers that read them, before the last one.
        neighbor_order: Which points of a crowded ball are read: the "nearest", or the "first" ones of the cloud, as in
            the released program; boxes then depend on the order of the points.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centers, except for the first
            point (released program: 1e-3); None samples from all points.

    Args: Encoder
        encoder_hidden_size: Channels of a token.
        encoder_ffn_dim: Hidden channels of a layer's MLP.
        encoder_dropout: Dropout of attention weights and branches.
        encoder_activation: Activation of the MLPs, of "relu", "gelu" and "leaky_relu".
        attention_radii: Distance up to which tokens attend to each other, in each layer, for the masked encoder, which
            also halves the tokens after its first layer; None for the vanilla one, whose tokens all attend to each
            other. The released program squares these radii before it compares distances: (0.16, 0.64, 1.44).
        downsampling_radius: Radius of the balls where the masked encoder halves its tokens.
        downsampling_neighbors: Tokens of such a ball.
        downsampling_widths: Widths of the layers there, before the last one.

    Args: Another encoder
        point_encoder_config: Config of another point encoder in place of groups and encoder, such as that of a
            PointTransformerV3Model, Uni3DModel, ActModel or Any2PointModel; None for 3DETR's own.
        point_encoder_scale: "unit_sphere" moves and scales clouds into it for that encoder, as those of objects need;
            None leaves them in meters.
        point_encoder_up_axis: Axis that pointed up when that encoder was trained: "z", or "y" for most encoders of
            objects, for which clouds are turned.
        freeze_point_encoder: Whether that encoder is not trained, and stays in evaluation mode.
        parts: Source of the weights of that encoder, "point_encoder", see `PretrainedPart`; without one they are
            stored with the model.

    Args: Decoder
        hidden_size: Channels of a query.
        decoder_ffn_dim: Hidden channels of a layer's MLP.
        dropout: Dropout of attention weights and branches.
        num_queries: Boxes of an answer. No weight depends on it.

    Args: Boxes
        num_heading_bins: Directions among which a heading is chosen before it is refined; 1 for boxes along the axes.
        max_center_offset: Largest distance of a box's center from its query along each axis.
        min_extent: Clouds count as at least this long along each axis, which sizes are relative to.
        head_dropout: Dropout after the hidden layers of the heads.

    Args: Training
        class_cost: Weight of a box's class when boxes are matched with objects.
        center_cost: The same for the distance of the centers, in extents of the cloud.
        giou_cost: The same for the overlap.
        objectness_cost: The same for the probability that there is an object.
        no_object_weight: Weight of boxes that no object is matched with, in it.
        focal_gamma: Exponent of the focal loss, which lowers the weight of boxes whose class is found; 0 for plain
            cross-entropy.
        class_loss_weight: Weight of the loss of classes.
        center_loss_weight: The same of the distance of centers, in extents of the cloud.
        size_loss_weight: The same of the difference of sizes, in extents of the cloud.
        giou_loss_weight: The same of the overlap; 0 leaves it out.
        heading_class_loss_weight: The same of the choice of a heading.
        heading_residual_loss_weight: The same of its refinement.
        published_overlap: Whether overlaps are those of the released program, which misses most of those of boxes that
            are turned by more than 45 degrees, in matching and loss.
    """

    model_type = "detr3d"
    sub_configs_defaults = {"point_encoder_config": SubConfigSpec(AutoConfig, model_type=POINT_ENCODER, optional=True)}
    # A list, which Trainer adds to another one.
    keys_to_ignore_at_inference = [
        "auxiliary_outputs",
        "loss_dict",
        "heading_logits",
        "heading_residuals",
        "last_hidden_state",
        "centers",
        "encoder_last_hidden_state",
        "encoder_centers",
        "encoder_mask",
    ]

    min_points: ClassVar[int] = 1

    in_channels: int = 3
    num_tokens: int = 2048
    group_radius: float = 0.2
    num_neighbors: int = 64
    group_widths: list[int] | tuple[int, ...] = (64, 128)
    # The two released quirks of sampling, see `RELEASED`, are off.
    neighbor_order: str = "nearest"
    sampling_min_squared_norm: float | None = None

    encoder_hidden_size: int = 256
    encoder_layers: int = 3
    encoder_attention_heads: int = 4
    encoder_ffn_dim: int = 128
    encoder_dropout: float = 0.1
    encoder_activation: str = "relu"
    attention_radii: list[float] | tuple[float, ...] | None = (0.4, 0.8, 1.2)
    downsampling_radius: float = 0.4
    downsampling_neighbors: int = 32
    downsampling_widths: list[int] | tuple[int, ...] = (256, 256)

    point_encoder_config: dict | PreTrainedConfig | None = None
    point_encoder_scale: str | None = None
    point_encoder_up_axis: str = "z"
    freeze_point_encoder: bool = False
    parts: dict | None = None

    hidden_size: int = 256
    decoder_layers: int = 8
    decoder_attention_heads: int = 4
    decoder_ffn_dim: int = 256
    dropout: float = 0.1
    num_queries: int = 256
    layer_norm_eps: float = 1e-5

    num_heading_bins: int = 12
    max_center_offset: float = 0.5
    min_extent: float = 0.1
    head_dropout: float = 0.3

    # Costs and weights are those of the released detector for ScanNet.
    class_cost: float = 1.0
    center_cost: float = 0.0
    giou_cost: float = 2.0
    objectness_cost: float = 0.0
    class_loss_weight: float = 1.0
    no_object_weight: float = 0.25
    focal_gamma: float = 0.0
    center_loss_weight: float = 5.0
    size_loss_weight: float = 1.0
    giou_loss_weight: float = 1.0
    heading_class_loss_weight: float = 0.1
    heading_residual_loss_weight: float = 0.5
    published_overlap: bool = False

    def __post_init__(self, **kwargs: Any):
        choices = {
            "neighbor_order": NEIGHBOR_ORDERS,
            "encoder_activation": ACTIVATIONS,
            "point_encoder_scale": ("unit_sphere", None),
            "point_encoder_up_axis": ("y", "z"),
        }
        check_settings(self, choices, _RANGES)
        self.check_parts(("point_encoder",))
        # The masked encoder has one mask a layer.
        if self.attention_radii is not None and len(self.attention_radii) != self.encoder_layers:
            raise ValueError(f"attention_radii={self.attention_radii}; expected one for each layer, or None")
        # Queries are sampled from the tokens; how many another encoder returns is known only when it runs.
        if self.point_encoder_config is None and self.num_queries > self.num_encoder_tokens:
            raise ValueError(
                f"num_queries={self.num_queries}; expected at most the {self.num_encoder_tokens} tokens of the encoder"
            )
        super().__post_init__(**kwargs)

    point_encoder_name_or_path = source_property(
        "point_encoder", "Source of the weights of the other point encoder; None if stored with the model."
    )

    @property
    def num_encoder_tokens(self) -> int:
        """Tokens of a cloud after the encoder."""
        # The masked encoder halves its tokens after the first layer (Sec. 3.4).
        return self.num_tokens if self.attention_radii is None else self.num_tokens // 2

    @property
    def described_tokens(self) -> str:
        """Words for the tokens that the decoder reads, for cards."""
        if self.point_encoder_config is None:
            return "groups of points"
        kind = "frozen" if self.freeze_point_encoder else "trained"
        return f"tokens of a {kind} {self.point_encoder_config.model_type} encoder"

    @property
    def num_hidden_layers(self) -> int:
        """Layers of encoder and decoder; of the decoder alone behind another encoder."""
        return (self.encoder_layers if self.point_encoder_config is None else 0) + self.decoder_layers

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the decoder."""
        return self.decoder_attention_heads
