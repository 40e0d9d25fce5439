"""Configuration of Any2Point models."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.card_info import NamesPackageMixin
from hf_any3d.modeling.config_checks import CHANNELS, EPSILON, SHARE, SPREAD, TOKENS, Ranges, check_numbers
from hf_any3d.modeling.pretrained_parts import EncoderConfigMixin

_RANGES: Ranges = {
    "in_channels": (3, 4096),
    "num_tokens": TOKENS,
    "tokenizer_width": CHANNELS,
    "tokenizer_neighbors": TOKENS,
    "tokenizer_blocks": (0, 64),
    "tokenizer_bottlenecks": CHANNELS,
    "tokenizer_alpha": (1e-6, 1e6),
    "tokenizer_beta": (-1e6, 1e6),
    "offset_eps": EPSILON,
    "num_views": (1, 6),
    "random_places_seed": (0, 2**32 - 1),
    "line_direction": (-1e6, 1e6),
    "line_length": (2, TOKENS[1]),
    "line_cells": (1e-3, TOKENS[1]),
    "plane_distance": (-1e6, 1e6),
    "plane_size": (1, 65_536),
    "plane_cells": (1e-3, TOKENS[1]),
    "token_scale": (0, 1e6),
    "head_widths": CHANNELS,
    "head_dropout": SHARE,
    "propagation_width": CHANNELS,
    "category_parts": (0, 10**6),
    "text_width": CHANNELS,
    "temperature": (0.01, 1e6),
    "final_norm_eps": EPSILON,
    "initializer_range": SPREAD,
    "sampling_min_squared_norm": (0, 1e6),
}
_CHOICES = {
    "tokenizer": ("point_pn", "patch"),
    "offset_normalization": ("group_max", "cloud_std", "batch_std"),
    "attention_axis": ("tokens", "batch"),
    "line_mapping": ("stretch", "wrap"),
    "plane_mapping": ("clamp", "wrap"),
    "token_places": ("projected", "order", "random"),
    "position_injection": ("input", "every_layer", "input_and_every_layer"),
    "rotary_views": ("split_frequencies", "split_heads", "mean_angle", "first_view"),
}


class Any2PointConfig(NamesPackageMixin, EncoderConfigMixin, PreTrainedConfig):
    r"""Everything that defines an Any2Point model around a frozen pretrained encoder (arXiv 2404.07989).

    The defaults are the sound reading of the paper: every statistic belongs to one cloud, so that a prediction never
    depends on the other clouds of its batch. The flags of the last group reproduce accidents of the released programs;
    converted checkpoints switch them on.

    Args:
        encoder_config: Config of the frozen encoder (of one tower for composite checkpoints such as CLIP).
        parts: Where the weights of the "encoder" come from, see `PretrainedPart`: its `name_or_path`, `revision` and
            `checksum`; other weights are refused at loading. Without it they are stored with the model. The fields can
            be read, and given, as `encoder_name_or_path`, `encoder_revision` and `encoder_checksum`.
        encoder_tower: "text", "vision" or "audio" for composite checkpoints.
        in_channels: Channels of a point: 3 for xyz, 6 with colours or normals.
        num_tokens: Tokens (groups) of a cloud; each stage before the last keeps twice as many centres as the next.
        tokenizer: "point_pn", the paper's, in stages, or "patch", a mini-PointNet in one step.
        tokenizer_width: Channels inside the tokenizer. "point_pn": of its last stage, a multiple of
            `6 * 2 ** (stages - 1)`; None for the encoder's width where it fits and is at most 768, else 384; a linear
            layer joins unequal widths. "patch": of the mini-PointNet; None for 192.
        tokenizer_neighbors: Points in a neighbourhood (k), the centre included.
        tokenizer_blocks: Residual blocks of each stage.
        tokenizer_bottlenecks: Hidden width of each stage's blocks; None for half the stage's width.
        tokenizer_alpha: Base of the frequencies of the offsets' sinusoid.
        tokenizer_beta: Factor in front of the offsets in the sinusoid.
        offset_normalization: What neighbour offsets are divided by: "group_max" (per group and axis), "cloud_std", or
            "batch_std", one for all clouds of a batch, as the released programs for ModelNet40 have it.
        offset_eps: Added to that divisor.
        normalize_centers: Move and scale the centres of every cloud into the unit sphere before projection.
        num_views: Virtual views, at most 6.
        token_places: Where tokens stand in the views: "projected", or, to measure what projection is worth, without
            regard to their places in space: "order" spreads them evenly over the line or plane in the order in which
            they were sampled, the same in all views; "random" gives each number of a token a fixed random place in
            each view.
        random_places_seed: Governs the places of `token_places="random"`.
        line_direction: Direction that a rotated cloud is projected on for encoders with a line of positions.
        line_length: Places on the line of encoders that learned no table of them (rotary, relative, convolutional);
            None for `num_tokens`, so that tokens stand as close as words do.
        rotary_views: How a rotary encoder turns by several views: "split_frequencies" (frequencies take turns, each
            belongs to one view; keeps all views in every head), "split_heads" (heads take turns), "mean_angle" (the
            mean place) or "first_view".
        line_cells: Number of cells that a line is cut into for guidance.
        plane_distance: Distance of the virtual camera from the cloud's centre, in units of its radius.
        plane_size: Width and height of the virtual image in pixels; None for 16 pixels a table entry.
        plane_cells: Number of cells along the width of the image.
        position_injection: Where positions are added: "input", "every_layer" or "input_and_every_layer".
        use_input_norm: Apply the encoder's own norm between embeddings and first layer, where it has one.
        token_scale: Norm every channel of the tokens over all tokens, and start with this multiple of the standard
            deviation that the encoder's positions have; None leaves tokens as the tokenizer makes them.
        pooling: What the head reads, in order: any of "max", "mean", "cls".
        head_widths: Widths of the head's hidden layers.
        head_bias: Whether hidden linear layers of the head have a bias.
        head_dropout: Dropout after each hidden layer of the head.
        propagation_width: Segmentation: channels of a point's features.
        propagate_levels: Segmentation: let points also hear what the tokenizer made of them and their neighbours
            before they became tokens, as PointNet++ links its levels.
        category_parts: Part segmentation: for each category of objects, the numbers of its parts among the labels.
        category_names: Part segmentation: names of the categories.
        restrict_to_category_parts: Part segmentation: give parts of other categories no share in logits and loss.
        text_width: Zero-shot: width of the space that clouds and texts share.
        text_pooling: Zero-shot: "mean", "cls" or "max", how the text tower of a sentence encoder pools words.
        hypothesis_templates: Zero-shot: texts with `{}` in place of a label, whose vectors are averaged.
        temperature: Zero-shot: what cosines are divided by at the start of training.
        final_norm_eps: Epsilon of the final norm; None for the encoder's.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centres (released programs:
            1e-3, from their CUDA kernel).
        sampling_tie_rule: "first" or "cuda", how farthest point sampling breaks ties.
        attention_axis: "batch" lets the frozen attention run over the clouds of a batch, as the released CLIP programs
            do; predictions then depend on batch neighbours.
        line_mapping: "wrap" shifts by half a pixel, wraps around, stretches over the whole batch and lets weights
            cancel at integral places, as released.
        plane_mapping: "wrap" shifts by half a pixel and wraps points outside the image to the other side, as released.
        transposed_plane_positions: Reads plane positions from a transposed memory layout, as released.
        swapped_plane_shape: Reads the encoder's table of positions as if it had as many rows as columns and as many
            columns as rows, as the released ImageBind programs do.
    """

    model_type = "any2point"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True)}

    encoder_config: dict | PreTrainedConfig | None = None
    parts: dict[str, Any] | None = None
    encoder_tower: str | None = None

    in_channels: int = 3
    num_tokens: int = 128
    tokenizer: str = "point_pn"
    tokenizer_width: int | None = None
    tokenizer_neighbors: int = 32
    tokenizer_blocks: list[int] | tuple[int, ...] = (2, 1, 1)
    tokenizer_bottlenecks: list[int | None] | tuple[int | None, ...] = (None, None, 32)
    tokenizer_alpha: float = 1000.0
    tokenizer_beta: float = 100.0
    offset_normalization: str = "group_max"
    offset_eps: float = 1e-5

    normalize_centers: bool = True
    num_views: int = 6
    token_places: str = "projected"
    random_places_seed: int = 0
    line_direction: list[float] | tuple[float, ...] = (1.0, -1.0, 0.0)
    line_length: int | None = None
    rotary_views: str = "split_frequencies"
    line_cells: float = 38.5
    plane_distance: float = 1.4
    plane_size: list[int] | tuple[int, ...] | None = None
    plane_cells: float = 20.0
    position_injection: str = "input"
    use_input_norm: bool = True
    token_scale: float | None = None

    pooling: list[str] | tuple[str, ...] = ("max", "cls")
    head_widths: list[int] | tuple[int, ...] = (256, 256)
    head_bias: bool = False
    head_dropout: float = 0.5
    propagation_width: int = 128
    propagate_levels: bool = False
    category_parts: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    category_names: list[str] | tuple[str, ...] | None = None
    restrict_to_category_parts: bool = False
    text_width: int | None = None
    text_pooling: str | None = None
    hypothesis_templates: list[str] | tuple[str, ...] = ("a 3D model of a {}.",)
    temperature: float = 0.07
    final_norm_eps: float | None = None
    initializer_range: float = 0.02

    sampling_min_squared_norm: float | None = None
    sampling_tie_rule: str = "first"
    attention_axis: str = "tokens"
    line_mapping: str = "stretch"
    plane_mapping: str = "clamp"
    transposed_plane_positions: bool = False
    swapped_plane_shape: bool = False

    def __post_init__(self, **kwargs: Any):
        check_numbers(self, _RANGES, kwargs)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")
        if len(self.tokenizer_blocks) != len(self.tokenizer_bottlenecks):
            raise ValueError(
                f"tokenizer_blocks={self.tokenizer_blocks} and tokenizer_bottlenecks={self.tokenizer_bottlenecks} "
                "must have one entry for each stage"
            )
        unknown = set(self.pooling) - {"max", "mean", "cls"}
        if unknown or not self.pooling:
            raise ValueError(f"pooling={self.pooling}; expected some of 'max', 'mean', 'cls'")
        if self.category_names is not None and len(self.category_names) != self.num_categories:
            raise ValueError(
                f"category_names={list(self.category_names)}; expected {self.num_categories} names, as category_parts "
                "has entries"
            )
        super().__post_init__(**kwargs)
        self.check_parts(("encoder",))

    @property
    def num_categories(self) -> int:
        """Categories of objects that a part segmentation model knows."""
        return len(self.category_parts or ())

    @property
    def num_stages(self) -> int:
        """Stages of the tokenizer."""
        return len(self.tokenizer_blocks) if self.tokenizer == "point_pn" else 1

    @property
    def min_points(self) -> int:
        """The fewest points a cloud may have: the first stage takes this many centres."""
        return max(self.num_tokens * 2 ** (self.num_stages - 1), self.tokenizer_neighbors)

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Flags that are on and make a prediction depend on the other clouds of its batch."""
        flags = {"attention_axis": "batch", "line_mapping": "wrap", "offset_normalization": "batch_std"}
        return [f"{name}={value!r}" for name, value in flags.items() if getattr(self, name) == value]
