"""Configuration of Point Transformer V3: Sonata, Concerto, Utonia, the supervised layout, and Find3D."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_any3d.modeling.config_checks import Ranges, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import TEXT_TOWER
from hf_any3d.modeling.point_ops import CURVES
from hf_any3d.modeling.pretrained_parts.record import PartsConfigMixin, part_property, source_property

# The layout of the first release: convolution as stem, batch norms, curves computed once, and a decoder.
_SUPERVISED: dict[str, Any] = {
    "stem": "convolution",
    "reads_coordinates": False,
    "stage_norm": "batch",
    "pooling": "serialized",
    "depth_rule": "max",
    "decoder_convolution": "skip",
    "use_decoder": True,
    "depths": (2, 2, 2, 6, 2),
    "hidden_sizes": (32, 64, 128, 256, 512),
    "num_attention_heads": (2, 4, 8, 16, 32),
    "decoder_depths": (2, 2, 2, 2),
    "decoder_hidden_sizes": (64, 64, 128, 256),
    "decoder_num_attention_heads": (4, 4, 8, 16),
}
PRESETS: dict[str, dict[str, Any]] = {
    "sonata": {},
    # Inferred from the number of parameters; a conversion takes the sizes of the file's own config.
    "concerto_small": {
        "depths": (2, 2, 2, 6, 2),
        "hidden_sizes": (32, 64, 128, 256, 512),
        "num_attention_heads": (2, 4, 8, 16, 32),
    },
    "concerto_base": {},
    "concerto_large": {"hidden_sizes": (64, 128, 256, 512, 768), "num_attention_heads": (4, 8, 16, 32, 48)},
    # Widths of a head are multiples of 6: rotary positions need pairs of channels for three axes.
    "utonia": {
        "hidden_sizes": (54, 108, 216, 432, 576),
        "rope_theta": 10.0,
        "rope_jitter": 1.1,
        "rope_rescale": 1.2,
        "grid_size": 0.01,
    },
    "supervised": {**_SUPERVISED, "lovasz_weight": 1.0},
    # 768 is the width of SigLIP's texts; a column of zeros stands for none of the parts.
    "find3d": {**_SUPERVISED, "text_embedding_size": 768, "none_label": True},
}
"""Sizes and layouts of the released models, as changes of the config's defaults."""
_RANGES: Ranges = {
    "pooling_strides": (1, 64),
    "rope_theta": (1e-6, 1e9),
    **dict.fromkeys(("rope_jitter", "rope_rescale"), (1, 1e3)),
    "grid_size": (1e-9, 1e9),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "shuffle_curves": ("training", "always", "never"),
    "stem": ("linear", "convolution"),
    "stage_norm": ("layer", "batch"),
    "pooling": ("grid", "serialized"),
    "block_rule": ("full", "branch"),
    "depth_rule": ("max", "max_plus_one"),
    "decoder_convolution": ("sum", "skip"),
    "segmentation_head": ("layers", "texts", "conditions"),
}


class PointTransformerV3Config(LibrarySettingsMixin, PartsConfigMixin, PreTrainedConfig):
    r"""Configuration of a Point Transformer V3 encoder and its heads (arXiv 2312.10035).

    The defaults are the sizes of Sonata (arXiv 2503.16429) and of Concerto's base model with sound behavior; `PRESETS`
    has the changes of the other released models, for `PointTransformerV3Config(**PRESETS["utonia"])`, of the original,
    supervised layout, "supervised", and of Find3D (arXiv 2411.13550), which finds parts by name in that layout.

    Args: Voxels
        in_channels: Channels of a point: 9 for xyz, colors in [0, 1] and normals.
        grid_size: Edge of the cells of which each keeps one point, in the units of the model's input; used if the
            input has no `grid_coord`.
        curves: Curves along which voxels are ordered, of "z", "z-trans", "hilbert" and "hilbert-trans"; the blocks of
            a stage take turns.
        shuffle_curves: When the turns are drawn at random at each stage: in "training", "always" as in the released
            programs, whose features therefore differ from call to call, or "never".
        depth_rule: Depth of the curves: "max", as many bits as the largest cell needs, or "max_plus_one", one more.
        reads_coordinates: Whether the first layer reads xyz; otherwise the other channels alone.
        depth_of_batch: Whether Hilbert curves have the depth that the largest cloud of a batch needs, as in the
            released programs; the order inside a cloud then depends on the others.

    Args: Encoder
        depths: Blocks of each stage.
        hidden_sizes: Channels of each stage.
        patch_sizes: Voxels that attend to each other, in each stage.
        pooling_strides: Factor of the cells' edge from each stage to the next.
        mlp_ratio: Hidden channels of a block's MLP, in multiples of its channels.
        attention_scale: Factor of queries times keys; None for `head_dim ** -0.5`.
        attention_dropout: Dropout of attention weights.
        hidden_dropout: Dropout after the last layer of attention and MLP.
        drop_path_rate: Stochastic depth rate of the last block, for each voxel; it grows linearly from 0.
        layer_scale_init_value: Initial factor of the channels of each branch; None for no factors.
        pre_norm: Whether norms precede attention and MLP; otherwise they follow the sums.
        use_mask_token: Whether there is a learned token for masked voxels.
        stem: First layer: "linear", or a "convolution" of 5³ cells.
        pooling: How a stage is grouped to the next: "grid" computes its curves anew; "serialized" takes the upper
            bits of the first stage's, as the original does.
        block_rule: What the convolution of a block reads, from the second one of a stage: "full", the block's input,
            or "branch", what the MLP of the block before added to it. Of weights that were trained with one of them,
            the other makes noise.
        stage_norm: Norm of the stem and where the number of voxels changes: "layer" or "batch".
        batch_norm_momentum: Share of a batch in the running statistics of batch norms.

    Args: Positions
        rope_theta: Base of rotary positions (Utonia); None for none. Coordinates are rotated in three chunks of a
            head's channels, so these must be a multiple of 6.
        rope_shift: Largest shift of the coordinates that are rotated, drawn for each block in training; None for none.
        rope_jitter: The same for a factor along each axis.
        rope_rescale: The same for a common factor.
        relative_position_bias: Whether learned biases of the differences of grid coordinates are added to the
            attention's logits.
        equal_patches: Whether all patches have the size of the smallest cloud, if that is below `patch_sizes`, as the
            original computes without flash attention; results then depend on the other clouds of a batch.
        upcast_attention: Whether attention is computed in float32 in a half precision model.

    Args: Decoder
        use_decoder: Whether a decoder follows the encoder, whose last stage has the voxels of the first.
        decoder_depths: Blocks of each decoder stage, the finest first; so are its other sizes.
        freeze_encoder: Whether only the decoder and heads are trained: the encoder gets no gradient.
        decoder_convolution: What the convolution of a decoder stage's first block reads: the "sum" that the block
            gets, or the projected features of the encoder alone, "skip".

    Args: Data sets of a common training
        norm_conditions: Names of data sets with norms of their own; None for none.
        condition: The one that inputs are from.
        condition_batch_norms: Whether the norms of `stage_norm` are their own.
        condition_layer_norms: Whether the norms within blocks are.
        norm_affine: Whether these norms have weights and biases.
        adaptive_norms: Whether an embedding of the data set shifts and scales what they return.
        condition_size: Channels of that embedding; None for none. Released weights have one that is not used.
        condition_classes: For each data set the numbers of its classes among the texts. The data sets have the order
            of the heads and embeddings, so that files hold pairs of a name and its numbers, which may be given too.

    Args: Heads
        head_widths: Widths of the hidden layers of the classification head; empty for a linear head.
        segmentation_head: Head for points: "layers", or for a common training of data sets "texts", cosines with the
            embeddings of class names, or "conditions", a linear layer for each.
        text_embedding_size: Channels of these embeddings, and of points among texts in zero-shot segmentation.
        lovasz_weight: Weight of the Lovász loss that is added to the cross-entropy of points.
        segmentation_head_widths: The same of the segmentation head.
        text_head_widths: Widths of the hidden layers that lead features of points into a space of texts, for zero-shot
            segmentation.
        none_label: Whether a point may have none of the texts in zero-shot segmentation: a further label, the last,
            whose score is always zero, as of Find3D.
        hypothesis_templates: Texts with `{}` for the name of a part, whose vectors are averaged.
        category_templates: Texts with `{}` for the part and `{}` for the object's category, used if it is given.
        temperature: Inverse of the initial scale of scores among texts, which is learned.
        aligned_with: Name of the model whose texts share the space, for messages.
        label_colors: Colors of the labels, "#rrggbb", in which pictures show them; None for the library's.
        parts: Sources of weights, see `PretrainedPart`: of the pretrained encoder, "base", that an adapter was trained
            with, and of the "text_tower" of zero-shot segmentation.
    """

    model_type = "point_transformer_v3"
    # What has no row for each cloud, but for each voxel, patch or text.
    keys_to_ignore_at_inference = ["voxel_embeds", "text_embeds", "hidden_states", "attentions"]
    # Tokens of a batch are flat, those of one cloud after the other, with offsets.
    flat_tokens: ClassVar[bool] = True
    min_points: ClassVar[int] = 1

    in_channels: int = 9
    grid_size: float = 0.02
    curves: list[str] | tuple[str, ...] = CURVES
    shuffle_curves: str = "training"
    depth_of_batch: bool = False
    # The rule of Sonata, Concerto and Utonia; released supervised weights have "max".
    depth_rule: str = "max_plus_one"
    reads_coordinates: bool = True

    depths: list[int] | tuple[int, ...] = (3, 3, 3, 12, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 192, 384, 512)
    num_attention_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24, 32)
    patch_sizes: list[int] | tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)
    pooling_strides: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention_scale: float | None = None
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    drop_path_rate: float = 0.3
    layer_scale_init_value: float | None = None
    pre_norm: bool = True
    use_mask_token: bool = False
    stem: str = "linear"
    pooling: str = "grid"
    block_rule: str = "full"
    stage_norm: str = "layer"
    layer_norm_eps: float = 1e-5
    # As in the first release, unlike torch's 1e-5 and 0.1.
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    initializer_range: float = 0.02

    rope_theta: float | None = None
    rope_shift: float | None = None
    rope_jitter: float | None = None
    rope_rescale: float | None = None
    relative_position_bias: bool = False
    equal_patches: bool = False
    upcast_attention: bool = False

    use_decoder: bool = False
    decoder_depths: list[int] | tuple[int, ...] = (3, 3, 3, 3)
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (96, 96, 192, 384)
    decoder_num_attention_heads: list[int] | tuple[int, ...] = (6, 6, 12, 32)
    freeze_encoder: bool = False
    decoder_convolution: str = "sum"

    norm_conditions: list[str] | tuple[str, ...] | None = None
    condition: str | None = None
    condition_batch_norms: bool = False
    condition_layer_norms: bool = False
    norm_affine: bool = True
    adaptive_norms: bool = False
    condition_size: int | None = None
    condition_classes: dict[str, list[int]] | None = None

    head_widths: list[int] | tuple[int, ...] = (256, 128)
    head_dropout: float = 0.5
    segmentation_head: str = "layers"
    text_embedding_size: int = 512
    lovasz_weight: float = 0.0
    segmentation_head_widths: list[int] | tuple[int, ...] = ()
    segmentation_head_dropout: float = 0.0
    text_head_widths: list[int] | tuple[int, ...] = (64, 64, 64)
    none_label: bool = False
    hypothesis_templates: list[str] | tuple[str, ...] = ("{}",)
    category_templates: list[str] | tuple[str, ...] = ("{} of a {}",)
    temperature: float = 0.07
    aligned_with: str | None = None
    label_colors: list[str] | None = None
    parts: dict[str, Any] | None = None
    base_name_or_path = source_property("base", "Source of the weights under an adapter; None if stored with it.")
    base_revision = part_property("base", "revision", "Pinned commit of the repository of these weights.")
    base_checksum = part_property("base", "checksum", "Checksum of these weights.")

    def __post_init__(self, **kwargs: Any):
        # Files hold pairs of a name and its numbers, see `to_dict`.
        if self.condition_classes is not None:
            self.condition_classes = dict(self.condition_classes)
        check_settings(self, _CHOICES, _RANGES)
        self._check_stages()
        # The data set of the inputs is among those that have norms or heads of their own.
        has_own_norms = self.condition_batch_norms or self.condition_layer_norms or self.adaptive_norms
        # Heads and norms may be of different lists of data sets, in orders of their own.
        has_own_heads = self.segmentation_head != "layers"
        for is_needed, name in ((has_own_norms, "norm_conditions"), (has_own_heads, "condition_classes")):
            known = getattr(self, name)
            if is_needed and (not known or self.condition not in known):
                raise ValueError(f"condition={self.condition!r}; expected one of {name}, {known and list(known)}")
        for name, rows in (self.condition_classes or {}).items():
            if not rows or min(rows) < 0:  # a negative number would be that of another class
                raise ValueError(f"condition_classes has {rows} for {name!r}; expected numbers from 0")
        super().__post_init__(**kwargs)
        self.check_parts((TEXT_TOWER, "base"))

    def _check_stages(self) -> None:
        """Check that there is a setting for each stage, and that blocks have what their rules read."""
        count = len(self.depths)
        stages: dict[str, int] = {"hidden_sizes": count, "num_attention_heads": count, "patch_sizes": count}
        stages["pooling_strides"] = count - 1
        if self.use_decoder:
            # Every stage but the coarsest has a counterpart in the decoder.
            names = ("decoder_depths", "decoder_hidden_sizes", "decoder_num_attention_heads")
            stages |= dict.fromkeys(names, count - 1)
        for name, expected in stages.items():
            if not count or len(getattr(self, name)) != expected:
                raise ValueError(
                    f"{name}={getattr(self, name)}; expected {expected} entries, as depths={self.depths} has {count}"
                )
        # The upper bits of a place along a curve are its place on a grid of half the edge.
        if self.pooling == "serialized" and any(stride & (stride - 1) for stride in self.pooling_strides):
            raise ValueError(f"pooling_strides={self.pooling_strides}; 'serialized' needs powers of 2")
        if self.condition_layer_norms and not self.pre_norm and self.block_rule == "branch":
            raise ValueError("condition_layer_norms=True with pre_norm=False; expected block_rule='full'")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they are stored: JSON files have sorted names, so data sets are a list of pairs."""
        settings = super().to_dict()
        if self.condition_classes is not None:
            settings["condition_classes"] = [[name, list(rows)] for name, rows in self.condition_classes.items()]
        return settings

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of all stages, those of the decoder included."""
        return sum(self.depths) + (sum(self.decoder_depths) if self.use_decoder else 0)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.decoder_hidden_sizes[0] if self.use_decoder else self.hidden_sizes[-1]

    @property
    def point_feature_size(self) -> int:
        """Channels of a point's features: those of all stages, or of the last one of the decoder."""
        # Without a decoder, points read what all stages have found, carried up (Sonata's linear probe).
        return self.decoder_hidden_sizes[0] if self.use_decoder else sum(self.hidden_sizes)

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Enabled flags that make predictions depend on the other clouds of a batch."""
        return [name for name in ("depth_of_batch", "equal_patches") if getattr(self, name)]
