"""Configuration of Uni3D's point encoders (arXiv 2310.06773)."""

from typing import Any

from hf_any3d.modeling.aligned_encoders import AlignedEncoderConfig
from hf_any3d.modeling.config_checks import CHANNELS
from hf_any3d.modeling.pretrained_parts import part_property, source_property
from hf_any3d.modeling.text_towers import HYPOTHESIS_TEMPLATES


class Uni3DConfig(AlignedEncoderConfig):
    r"""Configuration of a Uni3D point encoder and its heads (arXiv 2310.06773).

    The defaults are the sizes of Uni3D-base with sound behaviour; converted checkpoints switch on a deviation of their
    program.

    Args: Patches and transformer
        in_channels: Channels of a point: 6 for xyz and colours.
        num_groups: Patches, and therefore tokens, per cloud.
        group_size: Points per patch, including the centre.
        patch_widths: Output channels of the first, second and third layer of the patch encoder.
        patch_pooled_width: Channels of a pooled patch before the linear layer that makes it a token.
        hidden_size: Channels of a token.
        intermediate_size: Hidden channels of a block's MLP.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Attention heads per block.
        gated_mlp: Whether the MLP is SwiGLU rather than two layers with GELU.
        mlp_norm: Whether a gated MLP has a layer norm before its last layer.
        qkv_bias: Whether queries, keys and values have a bias. That of keys has no effect and is zero in converted
            checkpoints.
        layer_norm_eps: Epsilon of the layer norms.
        drop_path_rate: Stochastic depth rate of the last block; it grows linearly from 0.
        initializer_range: Standard deviation of initial weights.
        projection_dim: Channels of the feature in the space of texts and images; None for the class token itself.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centres (released programs:
            1e-3, from their CUDA kernel).

    Args: Texts
        aligned_with: Name of the model whose texts and images share the space, for messages.
        parts: Sources of weights, see `PretrainedPart`: of its text tower, "text_tower", if transformers has a class
            for it (without, features of texts that were computed elsewhere can be given), and of the pretrained
            encoder, "base", that an adapter was trained with.
        hypothesis_templates: Texts with `{}` in place of a label, whose vectors are averaged.
        temperature: Initial temperature of the contrastive loss; the scale of cosines is its inverse.

    Args: Classification head
        head_widths: Widths of the head's hidden layers; empty for a linear head.
        head_dropout: Dropout after each hidden layer of the head.

    Args: Segmentation
        segmentation_layers: Blocks, from 0, whose outputs are propagated to points.
        propagation_widths: Channels of the two layers that propagate tokens to points.
        segmentation_head_widths: Widths of the head's hidden layers.
        segmentation_head_dropout: Dropout after each hidden layer.
    """

    model_type = "uni3d"

    in_channels: int = 6
    num_groups: int = 512
    group_size: int = 64
    patch_widths: list[int] | tuple[int, int, int] = (128, 256, 512)
    patch_pooled_width: int = 512
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    gated_mlp: bool = True
    mlp_norm: bool = True
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    drop_path_rate: float = 0.0
    initializer_range: float = 0.02
    projection_dim: int | None = 1024
    sampling_min_squared_norm: float | None = None

    aligned_with: str | None = None
    parts: dict[str, Any] | None = None
    base_name_or_path = source_property("base", "Source of the weights under an adapter; None if stored with it.")
    base_revision = part_property("base", "revision", "Pinned commit of the repository of these weights.")
    base_checksum = part_property("base", "checksum", "Checksum of these weights.")
    hypothesis_templates: list[str] | tuple[str, ...] = HYPOTHESIS_TEMPLATES
    temperature: float = 0.07

    head_widths: list[int] | tuple[int, ...] = ()
    head_dropout: float = 0.0

    segmentation_layers: list[int] | tuple[int, ...] = (3, 7, 11)
    propagation_widths: list[int] | tuple[int, int] = (1536, 1024)
    segmentation_head_widths: list[int] | tuple[int, ...] = (512, 256)
    segmentation_head_dropout: list[float] | tuple[float, ...] = (0.5, 0.0)

    def __post_init__(self, **kwargs: Any):
        self.check({"patch_pooled_width": CHANNELS}, kwargs)
        if len(self.patch_widths) != 3:
            raise ValueError(f"patch_widths={self.patch_widths}; expected three widths")
        super().__post_init__(**kwargs)
