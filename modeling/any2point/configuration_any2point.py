"""Configuration of Any2Point models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.config_checks import CategoriesConfigMixin, Ranges, check_settings
from hf_any3d.modeling.encoders import ENCODER_DTYPES
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.heads import SEQUENCE_POOLING
from hf_any3d.modeling.layers.unknown_score import UnknownScoreConfigMixin
from hf_any3d.modeling.pretrained_parts.record import EncoderConfigMixin
from hf_any3d.modeling.setting_groups import SettingGroup, SettingGroupsMixin

_RANGES: Ranges = {
    **dict.fromkeys(("line_cells", "plane_cells"), (1e-3, 1e5)),
    # As many rotations as there are views
    "num_views": (1, 6),
    "line_length": (2, 100_000),
    "temperature": (0.01, 1e6),
}
_CHOICES = {
    "encoder_dtype": (None, *ENCODER_DTYPES),
    "tokenizer": ("point_pn", "point_pn_full", "patch"),
    "height_axis": (None, 0, 1, 2),
    "tokenizer_weights": ("random", "generated_shapes"),
    "rotary_views": ("split_frequencies", "split_heads", "mean_angle", "first_view"),
}
# What the default is built around: the shape of all-MiniLM-L6-v2, whose words no model of points reads.
_DEFAULT_ENCODER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 1,
}


@dataclass
class ReleasedTokenizer(SettingGroup):
    """Quirks of released programs in the tokenizer and before the head; the defaults are the sound behavior.

    Args:
        sampling_min_squared_norm: Points this close to the origin are never sampled as centers (1e-3, from their CUDA
            kernel).
        sampling_tie_rule: "first" or "cuda", how farthest point sampling breaks ties.
        offset_normalization: Divisor of neighbor offsets: "group_max" (per group and axis), "cloud_std", or
            "batch_std", one for all clouds of a batch, as for ModelNet40.
        offset_eps: Added to that divisor.
        pooler_dropout: Dropout of what a classification head reads; 0.1 in APPT's program.
    """

    choices = {  # noqa: RUF012
        "sampling_tie_rule": ("first", "cuda"),
        "offset_normalization": ("group_max", "cloud_std", "batch_std"),
    }

    sampling_min_squared_norm: float | None = None
    sampling_tie_rule: str = "first"
    offset_normalization: str = "group_max"
    offset_eps: float = 1e-5
    pooler_dropout: float = 0.0


@dataclass
class ReleasedAny2Point(ReleasedTokenizer):
    """Quirks of the released Any2Point programs; converted checkpoints need them.

    Args: Further settings, beside those of `ReleasedTokenizer`
        attention_axis: "batch" runs the frozen attention over the clouds of a batch, as the CLIP programs do;
            predictions then depend on the other clouds.
        line_mapping: "wrap" shifts by half a pixel, wraps around, stretches over the whole batch and returns zero at
            integral places.
        plane_mapping: "wrap" shifts by half a pixel and wraps points outside the image to the other side.
        plane_size: Width and height of the virtual image in pixels; None for 16 pixels per table entry. Without
            wrapping it is the unit of an adapter's `cell_size` and nothing else.
        transposed_plane_positions: Reads plane positions from a transposed memory layout.
        swapped_plane_shape: Reads the encoder's position table with rows and columns swapped (ImageBind).
        position_injection: Where positions are added: "input", "every_layer" or "input_and_every_layer".
        use_input_norm: Whether to apply the encoder's norm between embeddings and first layer, if it has one.
        final_norm_eps: Epsilon of the final norm; None for the encoder's.
    """

    choices = {  # noqa: RUF012
        **ReleasedTokenizer.choices,
        "attention_axis": ("tokens", "batch"),
        "line_mapping": ("stretch", "wrap"),
        "plane_mapping": ("clamp", "wrap"),
        "position_injection": ("input", "every_layer", "input_and_every_layer"),
    }

    attention_axis: str = "tokens"
    line_mapping: str = "stretch"
    plane_mapping: str = "clamp"
    plane_size: list[int] | tuple[int, ...] | None = None
    transposed_plane_positions: bool = False
    swapped_plane_shape: bool = False
    position_injection: str = "input"
    use_input_norm: bool = True
    final_norm_eps: float | None = None


@dataclass
class Controls(SettingGroup):
    """Places of the tokens that do not depend on the coordinates, to measure the effect of projection.

    Args:
        token_places: "projected", or "order", which spreads the tokens evenly over the line or plane in the order of
            sampling, in all views alike, or "random", which assigns each token number a fixed random place in each
            view.
        seed: Seed of the random places.
    """

    choices = {"token_places": ("projected", "order", "random")}  # noqa: RUF012

    token_places: str = "projected"
    seed: int = 0


class TokenizerConfig(SettingGroupsMixin, LibrarySettingsMixin, PreTrainedConfig):
    """Settings of a tokenizer of points, of pooling and of a classification head.

    Args:
        num_tokens: Tokens (groups) of a cloud; each stage before the last has twice as many centers as the next.
        height_axis: Axis, 0 to 2, along which the tokenizer gets the height above the lowest point of the cloud as one
            more channel of every point, in the units of the input; None for no such channel.
        tokenizer: "point_pn", the paper's, in stages; "point_pn_full", Point-PN's own form as in APPT, where a linear
            layer opens each stage, encoded offsets also multiply features, and maximum plus mean pool the neighbors;
            or "patch", a mini-PointNet in one step.
        tokenizer_width: Channels inside the tokenizer. "point_pn": of its last stage, a multiple of
            `6 * 2 ** (stages - 1)`; None for the encoder's width if it is such a multiple and at most 768, else 384.
            If it differs from the encoder's width, a linear layer follows. "point_pn_full": of its last stage, a
            multiple of all `tokenizer_expansions`; None for the encoder's. "patch": of the mini-PointNet; None for
            192.
        tokenizer_expansions: "point_pn_full": by how much each stage widens the features.
        tokenizer_weights: With which a new tokenizer starts: "random", or "generated_shapes", weights of the package
            that were learned on shapes generated from code. Those need `tokenizer="patch"`, `tokenizer_width=96`,
            `in_channels=3`, a `token_scale`, and an encoder of width 384.
        tokenizer_neighbors: Points in a neighborhood (k), including the center.
        tokenizer_blocks: Residual blocks of each stage.
        token_scale: Normalize every channel over all tokens, with this multiple of the standard deviation of the
            encoder's positions as initial gain; None for no norm.
        pooling: Input of the head, in order: any of "max", "mean", "cls", and "max_plus_mean", the sum of maximum and
            mean over all tokens, class token and APPT's prompts included, or "max_plus_first_mean", which takes the
            mean of the first cloud of a batch for all, as APPT's released program.
        head_widths: Widths of the head's hidden layers.
        head_bias: Whether these hidden layers have a bias.
        head_dropout: Dropout after each of these hidden layers.
        released: Quirks of released programs, see `ReleasedTokenizer`.
    """

    in_channels: int = 3
    height_axis: int | None = None
    num_tokens: int = 128
    tokenizer: str = "point_pn"
    tokenizer_width: int | None = None
    tokenizer_expansions: list[int] | tuple[int, ...] = (2, 2, 1)
    tokenizer_weights: str = "random"
    tokenizer_neighbors: int = 32
    tokenizer_blocks: list[int] | tuple[int, ...] = (2, 1, 1)
    token_scale: float | None = None

    pooling: list[str] | tuple[str, ...] = ("max", "cls")
    head_widths: list[int] | tuple[int, ...] = (256, 256)
    head_bias: bool = False
    head_dropout: float = 0.5
    initializer_range: float = 0.02
    released: Any = field(default_factory=ReleasedTokenizer)

    def __post_init__(self, **kwargs: Any):
        # Subclasses have some of the choices.
        check_settings(self, {name: allowed for name, allowed in _CHOICES.items() if hasattr(self, name)}, _RANGES)
        super().__post_init__(**kwargs)

    @property
    def num_stages(self) -> int:
        """Stages of the tokenizer."""
        return 1 if self.tokenizer == "patch" else len(self.tokenizer_blocks)

    @property
    def token_channels(self) -> int:
        """Channels of a point that the tokenizer embeds, with those that it computes."""
        return self.in_channels + (self.height_axis is not None)

    @property
    def min_points(self) -> int:
        """Smallest number of points of a cloud: that of the first stage's centers, at least that of neighbors."""
        return max(self.num_tokens * 2 ** (self.num_stages - 1), self.tokenizer_neighbors)

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Fields whose values make predictions depend on the other clouds of a batch."""
        # Attention over clouds, a line stretched over all, one divisor of all offsets: each ties clouds together.
        flags = {"attention_axis": "batch", "line_mapping": "wrap", "offset_normalization": "batch_std"}
        found = [f"{name}={value!r}" for name, value in flags.items() if getattr(self.released, name, None) == value]
        if "max_plus_first_mean" in self.pooling:
            found.append("pooling='max_plus_first_mean'")
        return found


class PointTokenizerConfig(TokenizerConfig):
    r"""Configuration of an Any2Point model without its encoder: tokenizer, pooling and classification head.

    Fields are those of `Any2PointConfig`, and `hidden_size`, the width of the encoder that is left out; `pooling` is
    of "max" and "mean", as there is no class token.
    """

    model_type = "point_tokenizer"

    hidden_size: int = 384
    pooling: list[str] | tuple[str, ...] = ("max", "mean")

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if not self.pooling or set(self.pooling) - {"max", "mean"}:
            raise ValueError(f"pooling={self.pooling}; expected some of 'max', 'mean': there is no class token")

    @classmethod
    def without_encoder(cls, config: Any2PointConfig) -> PointTokenizerConfig:
        """Return the settings of an Any2Point classifier that still have an effect without its encoder.

        Args:
            config: With an `encoder_config`, whose width the tokens keep.
        """
        pooling = tuple(how for how in config.pooling if how in ("max", "mean"))
        # What pools complete sequences has a maximum and a mean.
        if SEQUENCE_POOLING.intersection(config.pooling):
            pooling = pooling or ("max", "mean")
        # All that both have, heads included.
        shared = {name: getattr(config, name) for name in TokenizerConfig.__annotations__}
        released = {name: getattr(config.released, name) for name in ReleasedTokenizer.names()}
        return cls(
            **shared | {"pooling": pooling, "released": released},
            hidden_size=config.encoder_config.hidden_size,
            id2label=config.id2label,
            label2id=config.label2id,
            problem_type=config.problem_type,
        )

    @property
    def num_hidden_layers(self) -> int:
        """Number of transformer layers: none."""
        return 0


class Any2PointConfig(UnknownScoreConfigMixin, CategoriesConfigMixin, EncoderConfigMixin, TokenizerConfig):
    r"""Configuration of an Any2Point model around a frozen pretrained encoder (arXiv 2404.07989).

    The defaults follow the paper, around a small encoder of random weights; predictions do not depend on the other
    clouds of a batch. What the method needs are fields. Quirks of the released programs, which converted checkpoints
    need, the calibration of an unknown score and the control of a study are a group each, such as
    `released={"line_mapping": "wrap"}`, read as `config.released.line_mapping`.

    Args:
        encoder_config: Config of the frozen encoder (of one tower for composite checkpoints such as CLIP); None for a
            small one, a BERT of 6 layers of width 384.
        parts: Source of the weights of the "encoder", see `PretrainedPart`; other weights are refused at loading.
            Without it they are stored with the model. Its fields can also be read and set as `encoder_name_or_path`,
            `encoder_revision` and `encoder_checksum`.
        encoder_tower: "text", "vision" or "audio" for composite checkpoints.
        encoder_dtype: "bfloat16", "float16" or "float32": keeps the frozen encoder in this dtype, while everything
            that is trained stays in float32; None for the dtype of the model.
        normalize_centers: Move and scale the centers of every cloud into the unit sphere before projection.
        num_views: Virtual views, at most 6.
        line_direction: Direction on which a rotated cloud is projected for encoders with a line of positions.
        line_length: Places on the line of encoders without a table of positions (rotary, relative, convolutional);
            None for `num_tokens`, so that tokens are as close as words.
        rotary_views: How a rotary encoder uses several views: "split_frequencies" (each frequency belongs to one
            view, in turns; every head has all views), "split_heads" (each head belongs to one view, in turns),
            "mean_angle" (the mean place) or "first_view".
        line_cells: Number of cells on a line for guidance.
        plane_distance: Distance of the virtual camera from the cloud's center, in units of its radius.
        plane_cells: Number of cells along the width of the image.
        propagation_width: Segmentation: channels of a point's features.
        propagate_levels: Segmentation: whether the features of a point include those of the tokenizer's stages, like
            the skip connections of PointNet++.
        category_parts: Part segmentation: for each category of objects, the numbers of its parts among the labels.
        category_names: Part segmentation: names of the categories.
        restrict_to_category_parts: Part segmentation: whether to exclude the parts of other categories from logits
            and loss.
        text_width: Zero-shot: width of the common space of clouds and texts.
        text_pooling: Zero-shot: "mean", "cls" or "max", how the text tower of a sentence encoder pools words.
        hypothesis_templates: Zero-shot: texts with `{}` in place of a label, whose vectors are averaged.
        temperature: Zero-shot: initial divisor of the cosines.
        released: Quirks of the released programs, see `ReleasedAny2Point`.
        controls: Places of the tokens as a control of a study, see `Controls`.
    """

    model_type = "any2point"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(AutoConfig, model_type="bert", init_kwargs=_DEFAULT_ENCODER),
    }
    keys_to_ignore_at_inference = [
        *UnknownScoreConfigMixin.keys_to_ignore_at_inference,
        "logits_per_text",
        "text_embeds",  # these have no row for each cloud
    ]

    encoder_config: dict | PreTrainedConfig | None = None
    parts: dict[str, Any] | None = None
    encoder_tower: str | None = None
    encoder_dtype: str | None = None

    # Clouds of any unit then fill the views alike.
    normalize_centers: bool = True
    num_views: int = 6
    line_direction: list[float] | tuple[float, ...] = (1.0, -1.0, 0.0)
    line_length: int | None = None
    rotary_views: str = "split_frequencies"
    line_cells: float = 38.5
    plane_distance: float = 1.4
    plane_cells: float = 20.0

    propagation_width: int = 128
    propagate_levels: bool = False
    category_parts: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    category_names: list[str] | tuple[str, ...] | None = None
    restrict_to_category_parts: bool = False
    text_width: int | None = None
    text_pooling: str | None = None
    hypothesis_templates: list[str] | tuple[str, ...] = ("a 3D model of a {}.",)
    temperature: float = 0.07

    released: Any = field(default_factory=ReleasedAny2Point)
    controls: Any = field(default_factory=Controls)

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.check_parts(("encoder",))
        # A direction of zeros would put all tokens in one place.
        if len(self.line_direction) != 3 or not any(self.line_direction):
            raise ValueError(f"line_direction={list(self.line_direction)}; expected three numbers, not all 0")
