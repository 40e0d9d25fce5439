"""Configuration of ReCon (arXiv 2302.02318)."""

from typing import Any, ClassVar

from hf_any3d.modeling.act.configuration_act import PointTransformerConfig
from hf_any3d.modeling.act.masking import MASKS
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import TEXT_TOWER
from hf_any3d.modeling.point_encoders.text_templates import HYPOTHESIS_TEMPLATES


class ReconConfig(PointTransformerConfig):
    r"""Configuration of ReCon and its heads (arXiv 2302.02318); see also `PointTransformerConfig`.

    Args: Classification head
        pooling: As elsewhere; also "image" and "text", its other queries, "queries", the maximum of all three, and
            "max+mean", the sum of both over the patches. Its plain features are ("queries", "max+mean").

    Args: Pretraining
        mask_ratio: Share of the patches that are hidden, below 1.
        mask_type: "random" patches, or a "block" of neighbors.
        decoder_num_attention_heads: Heads per decoder block; None for `num_attention_heads`.
        encode_visible_only: Encode only visible patches with the mini-PointNet. The released program encodes all;
            hidden ones then count in the norms' batch statistics.
        reconstruction_loss: Chamfer distance between the points of a hidden patch and those predicted, "chamfer_l2",
            as released, or "chamfer_l1".
        image_width: Channels of the features of images, which the image query predicts; None for no such loss.
        text_width: The same of texts.
        contrast_widths: Widths of two layers on the class token, which tell clouds of one text from others; None for
            no such loss, as published: the class token then learns in fine-tuning alone.
        contrast_temperature: Temperature of that loss.

    Args: Texts
        text_weight: Factor of the text query's projection, which is added to that of the image query. ReCon has 0.25
            for ModelNet40, 0.2 for ModelNet10, and 0.05, 0.1 and 0.15 for ScanObjectNN (hardest, with background,
            objects only).
        aligned_with: Name of the model whose texts and images share the space, for messages.
        parts: Also its text tower, "text_tower".
        hypothesis_templates: Texts with `{}` in place of a label, whose vectors are averaged.
        temperature: Inverse of the scale of cosines.
    """

    model_type = "recon"
    keys_to_ignore_at_inference = [
        *PointTransformerConfig.keys_to_ignore_at_inference,
        *("reconstruction_loss", "image_loss", "text_loss", "contrast_loss", "logits_per_text", "text_embeds"),
    ]
    _parts: ClassVar[tuple[str, ...]] = ("base", TEXT_TOWER)

    pooling: list[str] | tuple[str, ...] = ("cls", "image", "text", "max")

    mask_ratio: float = 0.6
    mask_type: str = "random"
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int | None = None
    decoder_drop_path_rate: float = 0.1
    encode_visible_only: bool = True
    reconstruction_loss: str = "chamfer_l2"
    image_width: int | None = 768
    text_width: int | None = 512
    contrast_widths: list[int] | tuple[int, int] | None = None
    contrast_temperature: float = 0.1

    text_weight: float = 0.25
    aligned_with: str | None = None
    hypothesis_templates: list[str] | tuple[str, ...] = HYPOTHESIS_TEMPLATES
    temperature: float = 0.07

    def __post_init__(self, **kwargs: Any):
        choices = {"mask_type": MASKS, "reconstruction_loss": ("chamfer_l2", "chamfer_l1")}
        # Its blocks are made for the class token.
        check_settings(self, {**choices, "use_class_token": (True,)}, {"contrast_temperature": (1e-6, 1e6)})
        super().__post_init__(**kwargs)
