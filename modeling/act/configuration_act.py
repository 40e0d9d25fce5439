"""Configuration of ACT's student and of the tasks that it is fine-tuned on."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.act.configuration_act_autoencoder import ActAutoencoderConfig
from hf_any3d.modeling.act.distillation_losses import DISTILLATION_LOSSES
from hf_any3d.modeling.act.masking import MASKS
from hf_any3d.modeling.card_info import NamesPackageMixin
from hf_any3d.modeling.config_checks import (
    CHANNELS,
    EPSILON,
    HEADS,
    LAYERS,
    SHARE,
    SPREAD,
    TOKENS,
    Ranges,
    check_numbers,
)
from hf_any3d.modeling.pretrained_parts import PartsConfigMixin
from hf_any3d.modeling.pretrained_parts.tensors import CHECKSUM_PREFIX

_RANGES: Ranges = {
    "in_channels": (3, 4096),
    "num_groups": TOKENS,
    "group_size": TOKENS,
    "patch_widths": CHANNELS,
    "patch_pooled_width": CHANNELS,
    "hidden_size": CHANNELS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "mlp_ratio": (0, 256),
    "layer_norm_eps": EPSILON,
    "drop_path_rate": SHARE,
    "initializer_range": SPREAD,
    "sampling_min_squared_norm": (0, 1e6),
    "head_widths": CHANNELS,
    "head_dropout": SHARE,
    "segmentation_layers": (0, LAYERS[1]),
    "propagation_widths": CHANNELS,
    "category_width": CHANNELS,
    "segmentation_head_widths": CHANNELS,
    "segmentation_head_dropout": SHARE,
    "category_parts": (0, 10**6),
    "mask_ratio": SHARE,
    "decoder_num_hidden_layers": (0, LAYERS[1]),
    "decoder_num_attention_heads": HEADS,
    "decoder_drop_path_rate": SHARE,
    "class_token_layer": (0, LAYERS[1]),
    "feature_head_width": CHANNELS,
}
_TARGET_LAYERS = ("graph_decoder", "teacher")
_TEACHER_DTYPES = (None, "float32", "bfloat16", "float16")


class ActConfig(NamesPackageMixin, PartsConfigMixin, PreTrainedConfig):
    r"""Everything that defines an ACT point transformer and its heads (arXiv 2212.08320).

    The defaults are the published sizes with the sound behaviour; converted checkpoints switch on what their released
    programs did otherwise.

    Args:
        in_channels: Channels of a point: 3 for xyz, 6 with colours or normals.
        num_groups: Patches, and so tokens, of a cloud.
        group_size: Points of a patch, the centre included.
        patch_widths: Channels behind the first, second and third layer of the network that reads a patch.
        patch_pooled_width: Channels of a patch before a linear layer makes it a token (MiniGPT-3D: 256); None where
            the network makes tokens itself.
        hidden_size: Channels of a token.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Heads of each.
        mlp_ratio: Hidden width of a block's MLP, in multiples of `hidden_size`.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_norm_eps: Epsilon of the layer norms.
        drop_path_rate: How often the last block's branches are left out in training; earlier ones less.
        initializer_range: Standard deviation of fresh weights.
        use_class_token: Whether a learned token goes in front of the patches; segmentation models have none.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centres (released programs:
            1e-3, from their CUDA kernel).
        side_network: A second patch encoder beside the frozen one, mixed in with a learned share ("side" tuning).
        pooling: What the head reads, in order: any of "cls", "max", "mean".
        head_widths: Widths of the head's hidden layers; none for a linear head.
        head_bias: Whether hidden linear layers of the head have a bias.
        head_dropout: Dropout after each hidden layer of the head.
        segmentation_layers: Segmentation: blocks, from 0, whose outputs points hear.
        propagation_widths: Segmentation: channels of the two layers that bring tokens to points.
        category_width: Part segmentation: channels of what points hear about the object's category.
        segmentation_head_widths: Segmentation: widths of the head's hidden layers.
        segmentation_head_dropout: Segmentation: dropout after each of them.
        category_parts: Part segmentation: for each category of objects, the numbers of its parts among the labels.
        category_names: Part segmentation: names of the categories.
        restrict_to_category_parts: Part segmentation: give parts of other categories no share in logits and loss.
        parts: Adapters: where the pretrained transformer, the "base" that an adapter stands on, comes from, see
            `PretrainedPart`. The fields can be read as `base_name_or_path`, `base_revision` and `base_checksum`.
        autoencoder_config: Pretraining: config of the frozen autoencoder that teaches.
        mask_ratio: Pretraining: share of the patches that the student does not see, below 1; with 0 it sees all and
            says of each what the teacher makes of it, without a decoder.
        mask_type: Pretraining: "random" patches, or a "block" of neighbours.
        encode_visible_only: Pretraining: let the mini-PointNet read visible patches alone. The released program reads
            all and drops the hidden ones behind it; hidden patches then have a share in the norms' batch statistics
            and nothing else, at five times the work.
        decoder_num_hidden_layers: Pretraining: blocks of the decoder.
        decoder_num_attention_heads: Pretraining: heads of each; None for `num_attention_heads`.
        decoder_drop_path_rate: Pretraining: how often the decoder's last block is left out in training.
        distillation_loss: Pretraining: "cosine", "l2", "smooth_l1", "contrastive" or "barlow".
        target_layer: Pretraining: what the student guesses of the teacher: what enters its point decoder, behind the
            "graph_decoder", or what leaves the "teacher" in front of it, as the paper has it.
        class_token_loss: Pretraining: also guess hidden patches from an inner block's tokens and the class token, so
            that the latter has to know the whole cloud.
        class_token_layer: Pretraining: number of that block, from 0.
        feature_head_width: Pretraining: width of two layers, never trained, that the released program has behind the
            class token for linear probes; None probes what a head would read.
        teacher_dtype: Pretraining: precision of the autoencoder's foreign encoder, "float32", "bfloat16" or "float16";
            None leaves it as it is.
        noisy_targets: Pretraining: choose the teacher's codes under Gumbel noise, as the released program does; a
            patch then has other targets each time.
        teacher_in_training_mode: Pretraining: run the frozen autoencoder with batch statistics, which drift, and with
            dropout of its prompts, as the released program does.
    """

    model_type = "act3d"
    sub_configs_defaults = {"autoencoder_config": SubConfigSpec(ActAutoencoderConfig, optional=True)}

    in_channels: int = 3
    num_groups: int = 64
    group_size: int = 32
    patch_widths: list[int] | tuple[int, int, int] = (128, 256, 512)
    patch_pooled_width: int | None = None
    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    layer_norm_eps: float = 1e-5
    drop_path_rate: float = 0.1
    initializer_range: float = 0.02
    sampling_min_squared_norm: float | None = None
    use_class_token: bool = True
    side_network: bool = False

    pooling: list[str] | tuple[str, ...] = ("cls", "max")
    head_widths: list[int] | tuple[int, ...] = (256, 256)
    head_bias: bool = True
    head_dropout: float = 0.5

    segmentation_layers: list[int] | tuple[int, ...] = (3, 7, 11)
    propagation_widths: list[int] | tuple[int, ...] = (1536, 1024)
    category_width: int = 64
    segmentation_head_widths: list[int] | tuple[int, ...] = (512, 256)
    segmentation_head_dropout: list[float] | tuple[float, ...] = (0.5, 0.0)
    category_parts: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    category_names: list[str] | tuple[str, ...] | None = None
    restrict_to_category_parts: bool = False

    parts: dict[str, Any] | None = None

    autoencoder_config: dict | PreTrainedConfig | None = None
    mask_ratio: float = 0.8
    mask_type: str = "random"
    encode_visible_only: bool = True
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_drop_path_rate: float = 0.1
    distillation_loss: str = "cosine"
    target_layer: str = "graph_decoder"
    class_token_loss: bool = False
    class_token_layer: int = 9
    feature_head_width: int | None = None
    teacher_dtype: str | None = None
    noisy_targets: bool = False
    teacher_in_training_mode: bool = False

    def __post_init__(self, **kwargs: Any):
        check_numbers(self, _RANGES, kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads}; expected a divisor of hidden_size={self.hidden_size}"
            )
        if not self.pooling or set(self.pooling) - {"max", "mean", "cls"}:
            raise ValueError(f"pooling={self.pooling}; expected some of 'max', 'mean', 'cls'")
        if self.category_names is not None and len(self.category_names) != self.num_categories:
            raise ValueError(
                f"category_names={list(self.category_names)}; expected {self.num_categories} names, as category_parts "
                "has entries"
            )
        choices = {
            "mask_type": MASKS,
            "distillation_loss": DISTILLATION_LOSSES,
            "target_layer": _TARGET_LAYERS,
            "teacher_dtype": _TEACHER_DTYPES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(map(repr, allowed))}")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio}; expected at least 0 and below 1")
        if self.class_token_loss and not self.use_class_token:
            raise ValueError("class_token_loss=True with use_class_token=False; expected a class token")
        if self.class_token_loss and not 0 < self.class_token_layer < self.num_hidden_layers:
            raise ValueError(
                f"class_token_layer={self.class_token_layer}; expected 1 to {self.num_hidden_layers - 1}, a block "
                "behind the first"
            )
        super().__post_init__(**kwargs)
        self.check_parts(("base",))

    @property
    def num_categories(self) -> int:
        """Categories of objects that a part segmentation model knows."""
        return len(self.category_parts or ())

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Flags that make a prediction depend on the other clouds of its batch: there are none."""
        return []

    @property
    def min_points(self) -> int:
        """The fewest points a cloud may have."""
        return max(self.num_groups, self.group_size)

    @property
    def base_name_or_path(self) -> str | None:
        """Where the weights come from that an adapter stands on; None where they lie beside it."""
        part = self.part("base")
        return None if part.stored else part.name_or_path

    @base_name_or_path.setter
    def base_name_or_path(self, value: str | None) -> None:
        self.change_part("base", name_or_path=value, stored=False)

    @property
    def base_revision(self) -> str | None:
        """The commit of that repository."""
        return self.part("base").revision

    @base_revision.setter
    def base_revision(self, value: str | None) -> None:
        self.change_part("base", revision=value)

    @property
    def base_checksum(self) -> str | None:
        """Checksum of those weights."""
        return self.part("base").checksum

    @base_checksum.setter
    def base_checksum(self, value: str | None) -> None:
        # Earlier versions named the tensors' checksum like that of a file.
        if value is not None and not value.startswith(CHECKSUM_PREFIX):
            value = CHECKSUM_PREFIX + value.removeprefix("sha256:")
        self.change_part("base", checksum=value)
