"""Configuration of PatchAlign3D's point encoder (arXiv 2601.02457)."""

from typing import Any

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import AlignedEncoderConfig
from hf_any3d.modeling.point_encoders.text_templates import CATEGORY_TEMPLATES, PART_TEMPLATES

ASSIGNMENTS = ("nearest", "membership")
"""Ways to give points the scores of patches."""
TRAINED = ("all", "last_block", "projection")
"""Training stages, which differ in the trained parts."""


class PatchAlign3DConfig(AlignedEncoderConfig):
    r"""Configuration of a PatchAlign3D point encoder and its heads (arXiv 2601.02457).

    The defaults are the sizes of the published encoder with sound behavior; converted checkpoints switch on a
    deviation of their program. Further fields are those of `AlignedEncoderConfig`. Scores of parts are cosines divided
    by `temperature`; in training, the scale of cosines starts at its inverse and is learned, though as in the released
    program the learned scale is only part of the loss.

    Args: Patches and transformer
        exchange_axes: Whether the model exchanges y and z of the clouds that it is given, as the published one, which
            takes clouds with y up. Positions that it returns are those of the input.
        patch_pooled_width: Channels of a pooled patch before the linear layer that makes it a token.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centers (released programs:
            1e-3, from their CUDA kernel).

    Args: Texts
        hypothesis_templates: Texts with `{}` for the name of a part, whose vectors are averaged.
        category_templates: Texts with `{}` for the part and `{}` for the object's category, used if it is given.
        patch_to_point: How points get the scores of patches: "nearest", those of the patch with the nearest center;
            "membership", the mean over all patches that they are in, 0 for points in none.

    Args: Training
        trained: What is trained: "all"; "last_block", the last block, the final norm, the last layer of the patch
            encoder, the class token, projection and scale, as in the published second stage; "projection", this and
            the scale.
    """

    model_type = "patchalign3d"

    in_channels: int = 3
    num_groups: int = 128
    group_size: int = 32
    # It mirrors a cloud, so that clouds which are only turned give other features.
    exchange_axes: bool = True
    patch_widths: list[int] | tuple[int, int, int] = (128, 256, 512)
    # As Point-BERT's: a pooled patch of 256 channels, and a layer to the width of a token.
    patch_pooled_width: int = 256
    intermediate_size: int = 1536
    num_attention_heads: int = 6
    qkv_bias: bool = False
    drop_path_rate: float = 0.1
    projection_dim: int | None = 1280
    sampling_min_squared_norm: float | None = None

    hypothesis_templates: list[str] | tuple[str, ...] = PART_TEMPLATES
    category_templates: list[str] | tuple[str, ...] = CATEGORY_TEMPLATES
    patch_to_point: str = "nearest"

    trained: str = "all"

    def __post_init__(self, **kwargs: Any):
        check_settings(self, {"patch_to_point": ASSIGNMENTS, "trained": TRAINED})
        super().__post_init__(**kwargs)
