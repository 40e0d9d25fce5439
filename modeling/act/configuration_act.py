"""Configurations of ACT: the discrete autoencoder with its teacher, and the point transformer with its tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.act.distillation_losses import DISTILLATION_LOSSES
from hf_any3d.modeling.act.masking import MASKS
from hf_any3d.modeling.config_checks import SHARE, CategoriesConfigMixin, Ranges, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.heads import HEAD_ACTIVATIONS
from hf_any3d.modeling.layers.unknown_score import UnknownScoreConfigMixin
from hf_any3d.modeling.pretrained_parts.record import (
    EncoderConfigMixin,
    PartsConfigMixin,
    part_property,
    source_property,
)
from hf_any3d.modeling.setting_groups import SettingGroup, SettingGroupsMixin

# Fine points that the autoencoder's decoder folds around each coarse point.
POINTS_PER_COARSE_POINT = 4
# Of the group norms of its graphs.
NUM_GROUPS = 4
_AUTOENCODER_RANGES: Ranges = {
    "code_scale": (1e-6, 1e6),
    **dict.fromkeys(("code_restart_share", "code_ema_decay"), SHARE),
}
_AUTOENCODER_CHOICES = {
    "code_scores": ("projection", "distance", "cosine"),
    "quantizer": ("gumbel", "nearest"),
    "prompt_depth": ("shallow", "deep"),
    "position_injection": ("input", "every_layer"),
}


@dataclass
class ReleasedAutoencoder(SettingGroup):
    """Quirks of ACT's released programs with the teacher; converted checkpoints need them.

    Args:
        noise_in_eval: Draw Gumbel noise in eval mode too; the codes of a cloud then vary.
        teacher_dropout: Apply the teacher's own dropout in training, as the released programs do with BERT.
        detach_teacher: Run the teacher without a gradient, as the released programs do without prompts; the layers
            before it then learn from the KL term alone.
        attention_axis: "batch" applies the teacher's attention over the clouds of a batch, as the released program
            does with CLIP and deep prompts; prompts then have no effect, and features depend on the rest of the batch.
    """

    choices = {"attention_axis": ("tokens", "batch")}  # noqa: RUF012

    noise_in_eval: bool = False
    teacher_dropout: bool = False
    detach_teacher: bool = False
    attention_axis: str = "tokens"


class ActAutoencoderConfig(SettingGroupsMixin, LibrarySettingsMixin, EncoderConfigMixin, PreTrainedConfig):
    r"""Configuration of a discrete autoencoder with a frozen cross-modal teacher (ACT, arXiv 2212.08320).

    The defaults are the published sizes with sound behavior; converted checkpoints switch on deviations of their
    released programs (the last group).

    Args: Teacher
        encoder_config: Config of the frozen teacher (of one tower for composite checkpoints such as CLIP); None for no
            teacher, as in Point-BERT's dVAE (published with `hidden_size=256`).
        parts: Source of the weights of the teacher, "encoder", see `PretrainedPart`; other weights are rejected when
            loading. Without it they are stored with the model. Its fields are also arguments and properties:
            `encoder_name_or_path`, `encoder_revision`, `encoder_checksum`.
        encoder_tower: "text", "vision" or "audio" for composite checkpoints.

    Args: Patches, codes and decoder
        in_channels: Channels of an input point; only xyz is reconstructed.
        num_groups: Patches, and therefore tokens, per cloud.
        group_size: Points per patch, including the center; a multiple of 4.
        patch_widths: Output channels of the first, second and third layer of the patch encoder.
        hidden_size: Channels of a token and of the decoder's input.
        patch_token_width: Channels of a patch's token before the graph convolutions; None for `hidden_size`.
        decoder_width: Channels of the decoder's input; None for `hidden_size`.
        num_codes: Size of the codebook.
        graph_neighbors: Neighbors of a token in the graph convolutions, including itself.
        graph_input_width: Output channels of the first linear layer of a graph convolution.
        graph_widths: Output channels of its edge convolutions.
        coarse_width: Hidden channels of the decoder's layers for coarse points.
        folding_width: Hidden channels of the decoder's folding layers.

    Args: Selection of codes
        code_scores: Scores of a patch's codes: a "projection" of its token, as published, or the negative "distance"
            (VQ-VAE, arXiv 1711.00937) or "cosine" similarity (ViT-VQGAN, arXiv 2110.04627) of token and code vector.
        code_width: Channels of a code vector, which a linear layer maps to `hidden_size`; few of them make codes
            easier to tell apart (ViT-VQGAN, Sec. 3.2). None for `hidden_size` without such a layer.
        code_scale: Factor of the scores; cosine similarities need more than 1 next to Gumbel noise.
        code_norm: Batch norm, without gain and shift, of the scores, or of the tokens that are compared with codes: it
            removes what all patches have in common (arXiv 2005.08520, Sec. 3).
        quantizer: "gumbel", a Gumbel softmax over all codes, as published; or "nearest", the code with the highest
            score, with a straight-through gradient and without noise and temperature (VQ-VAE).
        commitment_weight: With the nearest codes: weight of the distance from tokens to their codes (VQ-VAE, Eq. 3).
        code_ema_decay: With the nearest codes: code vectors are moving averages of their tokens with this decay per
            step (VQ-VAE, Appendix A.1); None trains them by gradients.
        code_restart_share: Codes that get less than this share of the mean number of patches are replaced by tokens of
            the batch (Jukebox, arXiv 2005.00341, Sec. 3.1), and so are all codes in the first step; 0 for no restarts.

    Args: Prompts and positions
        num_prompts: Learned tokens before those of the cloud in the teacher; 0 for none.
        prompt_depth: "deep": every layer of the teacher has its own prompts; "shallow": the prompts of the first layer
            pass through all layers.
        prompt_dropout: Dropout of prompts in training.
        position_injection: Where learned positions of the centers are added: before "every_layer" or at the "input".
        use_input_norm: Apply the teacher's norm before its first layer, if it has one, before positions are added.
        use_final_norm: Apply the teacher's norm after its last layer, if it has one.
        initializer_range: Standard deviation of initial prompts.

    Args: Deviations of the released programs
        sampling_min_squared_norm: Points this close to the origin are never sampled as centers (released programs:
            1e-3, from their CUDA kernel).
        released: Other deviations, see `ReleasedAutoencoder`.
    """

    model_type = "act3d_autoencoder"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = [
        "logits",
        "neighborhoods",
        "token_ids",
        "reconstruction_loss",
        "kl_loss",
        "code_loss",
    ]

    encoder_config: dict | PreTrainedConfig | None = None
    parts: dict[str, Any] | None = None
    encoder_tower: str | None = None

    in_channels: int = 3
    num_groups: int = 64
    group_size: int = 32
    patch_widths: list[int] | tuple[int, int, int] = (128, 256, 512)
    hidden_size: int = 384
    patch_token_width: int | None = None
    decoder_width: int | None = None
    num_codes: int = 8192
    graph_neighbors: int = 4
    graph_input_width: int = 128
    graph_widths: list[int] | tuple[int, ...] = (256, 512, 512, 1024)
    coarse_width: int = 1024
    folding_width: int = 512

    code_scores: str = "projection"
    code_width: int | None = None
    code_scale: float = 1.0
    code_norm: bool = False
    # As published: all codes are mixed, and none is restarted.
    quantizer: str = "gumbel"
    commitment_weight: float = 0.25
    code_ema_decay: float | None = None
    code_restart_share: float = 0.0

    # 64 prompts before each of the teacher's layers, as published for a ViT
    num_prompts: int = 64
    prompt_depth: str = "deep"
    prompt_dropout: float = 0.1
    position_injection: str = "every_layer"
    use_input_norm: bool = True
    use_final_norm: bool = True
    initializer_range: float = 0.02

    sampling_min_squared_norm: float | None = None
    released: Any = field(default_factory=ReleasedAutoencoder)

    def __post_init__(self, **kwargs: Any):
        check_settings(self, _AUTOENCODER_CHOICES, _AUTOENCODER_RANGES)
        # The decoder folds a grid of so many points around each coarse point.
        if self.group_size % POINTS_PER_COARSE_POINT:
            raise ValueError(f"group_size={self.group_size}; expected a multiple of {POINTS_PER_COARSE_POINT}")
        if self.released.detach_teacher and self.num_prompts:
            raise ValueError(
                f"detach_teacher=True with num_prompts={self.num_prompts}: prompts would get no gradient; expected 0"
            )
        if self.code_ema_decay is not None and self.quantizer != "nearest":
            raise ValueError(
                f"code_ema_decay={self.code_ema_decay} with quantizer={self.quantizer!r}; expected 'nearest': moving "
                "averages need one code per patch"
            )
        if self.code_scores == "projection":
            # These options compare tokens with code vectors, which a projection does not.
            for name, off in (("quantizer", "gumbel"), ("code_restart_share", 0)):
                value = getattr(self, name)
                if value != off:
                    raise ValueError(
                        f"{name}={value!r} with code_scores='projection'; expected code_scores 'distance' or 'cosine'"
                    )
        super().__post_init__(**kwargs)
        self.check_parts(("encoder",))

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return max(self.num_groups, self.group_size)

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Enabled flags that make features depend on the other clouds of a batch."""
        return ["attention_axis='batch'"] if self.released.attention_axis == "batch" else []


_CHOICES = {
    "head_activation": tuple(HEAD_ACTIVATIONS),
    "segmentation_pooling": ("tokens", "prompts"),
}
_STUDENT_CHOICES = {
    "mask_type": MASKS,
    "distillation_loss": DISTILLATION_LOSSES,
    "reconstruction_loss": ("chamfer_l2", "chamfer_l1"),
    "target_layer": ("graph_decoder", "teacher"),
    "teacher_dtype": (None, "float32", "bfloat16", "float16"),
}


class PointTransformerConfig(
    UnknownScoreConfigMixin, LibrarySettingsMixin, CategoriesConfigMixin, PartsConfigMixin, PreTrainedConfig
):
    r"""Configuration that ACT's point transformer, others of its form, and their heads have in common.

    The defaults are the published sizes with sound behavior; converted checkpoints switch on deviations of their
    released programs.

    Args: Patches and transformer
        in_channels: Channels of a point: 3 for xyz, 6 with colors or normals.
        num_groups: Patches, and therefore tokens, per cloud.
        group_size: Points per patch, including the center.
        patch_widths: Output channels of the first, second and third layer of the patch encoder.
        patch_pooled_width: Channels of a pooled patch before a final linear layer (Point-BERT, MiniGPT-3D: 256); None
            without that layer.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `hidden_size`.
        drop_path_rate: Stochastic depth rate of the last block; it grows linearly from 0.
        use_class_token: Whether a learned token precedes the patches; segmentation models have none.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centers (released programs:
            1e-3, from their CUDA kernel).
        side_network: Whether to add a second patch encoder, mixed with the model by a learned weight (side tuning).

    Args: Classification head
        pooling: Pooled features that the head reads, in order: any of "cls", "max", "mean", and of the prompts that an
            adapter leaves behind the last block "prompt_max", "prompt_mean".
        head_widths: Widths of the head's hidden layers; empty for a linear head.
        head_bias: Whether hidden linear layers of the head have a bias.
        head_norm: Whether hidden layers of the head have a batch norm; Point-BERT's has none.
        head_dropout: Dropout after each hidden layer of the head.
        head_activation: "relu", or "gelu" as in PPT, after each hidden layer of the head.

    Args: Segmentation
        segmentation_layers: Blocks, from 0, whose outputs are propagated to points.
        segmentation_pooling: What the head reads of a cloud: maximum and mean of the "tokens", or the "prompts" that
            IDPT adds to these blocks, before and after them.
        propagation_widths: Channels of the two layers that propagate tokens to points.
        segmentation_levels: Point-BERT's part segmentation: points of the two levels between patches and cloud, the
            finer one first.
        category_width: Part segmentation: channels of the category embedding.
        category_parts: Part segmentation: for each category of objects, the labels of its parts.
        category_names: Part segmentation: names of the categories.
        restrict_to_category_parts: Part segmentation: exclude parts of other categories from logits and loss.

    Args: Adapters
        parts: Source of the pretrained transformer, "base", that an adapter was trained with, see `PretrainedPart`.
            Its fields are also properties: `base_name_or_path`, `base_revision`, `base_checksum`.
    """

    _parts: ClassVar[tuple[str, ...]] = ("base",)

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
    head_norm: bool = True
    head_dropout: float = 0.5
    head_activation: str = "relu"

    segmentation_layers: list[int] | tuple[int, ...] = (3, 7, 11)
    segmentation_pooling: str = "tokens"
    propagation_widths: list[int] | tuple[int, ...] = (1536, 1024)
    segmentation_levels: list[int] | tuple[int, ...] = (512, 256)
    category_width: int = 64
    segmentation_head_widths: list[int] | tuple[int, ...] = (512, 256)
    segmentation_head_dropout: list[float] | tuple[float, ...] = (0.5, 0.0)
    category_parts: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    category_names: list[str] | tuple[str, ...] | None = None
    restrict_to_category_parts: bool = False

    parts: dict[str, Any] | None = None
    base_name_or_path = source_property("base", "Source of the weights under an adapter; None if stored with it.")
    base_revision = part_property("base", "revision", "Pinned commit of the repository of these weights.")
    base_checksum = part_property("base", "checksum", "Checksum of these weights.")

    def __post_init__(self, **kwargs: Any):
        check_settings(self, _CHOICES)
        super().__post_init__(**kwargs)
        self.check_parts(self._parts)

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return max(self.num_groups, self.group_size)


class ActConfig(PointTransformerConfig):
    r"""Configuration of an ACT point transformer and its heads (arXiv 2212.08320); see also `PointTransformerConfig`.

    Args: Pretraining
        autoencoder_config: Config of the frozen autoencoder, the teacher.
        student_config: Config of a student of another kind: recon, pointgpt, an encoder that is aligned with texts
            (openshape, patchalign3d, uni3d), or of voxels (point_transformer_v3); None for ACT's transformer. An
            encoder of voxels does not see points of hidden patches, and a patch gets the mean of its points' features.
        mask_ratio: Share of the patches that are hidden from the student, below 1; with 0 it sees all and predicts the
            teacher's features of each, without a decoder.
        mask_type: "random" patches, or a "block" of neighbors.
        encode_visible_only: Encode only visible patches with the mini-PointNet. The released program encodes all and
            then drops the hidden ones; these affect only the norms' batch statistics, at five times the work.
        decoder_num_attention_heads: Heads per decoder block; None for `num_attention_heads`.
        distillation_loss: "cosine", "l2", "smooth_l1", "contrastive" or "barlow".
        target_layer: Teacher features that the student predicts: the output of the "graph_decoder", which enters the
            point decoder, or the output of the "teacher" before it, as in the paper.
        class_token_loss: Also predict hidden patches from an inner block's tokens and the class token, so that the
            latter has to represent the full cloud.
        class_token_layer: Number of that block, from 0.
        feature_head_width: Width of two layers, never trained, that the released program applies to the class token
            for linear probes; None probes the features that a head would read. In Point-BERT these layers are trained
            to tell clouds apart.
        teacher_dtype: Dtype of the autoencoder's frozen encoder, "float32", "bfloat16" or "float16"; None leaves it
            unchanged.
        noisy_targets: Select the teacher's codes with Gumbel noise, as the released program does; the targets of a
            patch then vary.
        teacher_in_training_mode: Run the frozen autoencoder with batch statistics, which drift, and prompt dropout, as
            the released program does.

    Args: Pretraining of Point-MAE and Point-BERT
        reconstruction_loss: Point-MAE: Chamfer distance between the points of a hidden patch and those predicted,
            "chamfer_l2", as released, or "chamfer_l1".
        mask_ratio_range: Point-BERT: smallest and largest share of a cloud's patches that are hidden, a block of
            neighbors.
        contrast_temperature: Point-BERT: temperature of the comparison with features of other clouds.
        contrast_momentum: Point-BERT: share of its weights that the moving average of the student keeps in a step.
        contrast_queue_size: Point-BERT: number of earlier clouds that a cloud is compared with.
        contrast_whole_clouds: Point-BERT: compare clouds that are not mixed, too; off in the released settings.
    """

    model_type = "act3d"
    sub_configs_defaults = {
        "autoencoder_config": SubConfigSpec(ActAutoencoderConfig, optional=True),
        "student_config": SubConfigSpec(AutoConfig, model_type="uni3d", optional=True),
    }

    keys_to_ignore_at_inference = [
        *UnknownScoreConfigMixin.keys_to_ignore_at_inference,
        "code_loss",
        "mix_loss",
        "contrast_loss",
    ]

    autoencoder_config: dict | PreTrainedConfig | None = None
    student_config: dict | PreTrainedConfig | None = None
    # As published: four of five patches are hidden.
    mask_ratio: float = 0.8
    mask_type: str = "random"
    encode_visible_only: bool = True
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_drop_path_rate: float = 0.1
    distillation_loss: str = "cosine"
    target_layer: str = "graph_decoder"
    class_token_loss: bool = False
    # Where the released program decodes a second time
    class_token_layer: int = 9
    feature_head_width: int | None = None
    teacher_dtype: str | None = None
    noisy_targets: bool = False
    teacher_in_training_mode: bool = False

    reconstruction_loss: str = "chamfer_l2"
    mask_ratio_range: list[float] | tuple[float, ...] = (0.25, 0.45)
    contrast_temperature: float = 0.07
    contrast_momentum: float = 0.999
    contrast_queue_size: int = 16384
    contrast_whole_clouds: bool = False

    def __post_init__(self, **kwargs: Any):
        # The second prediction is made from that token.
        if self.class_token_loss and not self.use_class_token:
            raise ValueError("class_token_loss=True with use_class_token=False; expected a class token")
        check_settings(self, _STUDENT_CHOICES, {"contrast_temperature": (1e-6, 1e6), "contrast_momentum": SHARE})
        super().__post_init__(**kwargs)
