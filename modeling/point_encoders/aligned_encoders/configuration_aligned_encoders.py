"""Configuration that point encoders in a space of texts share."""

from typing import Any

from transformers import PreTrainedConfig

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.point_encoders.text_templates import HYPOTHESIS_TEMPLATES
from hf_any3d.modeling.pretrained_parts.record import PartsConfigMixin, part_property, source_property

# Name of the part of the config that holds the text tower.
TEXT_TOWER = "text_tower"


class AlignedEncoderConfig(LibrarySettingsMixin, PartsConfigMixin, PreTrainedConfig):
    """Fields and checks that the configurations of OpenShape, Uni3D and PatchAlign3D have in common.

    Each of them has sizes of its own, with the published ones as defaults.

    Args: Transformer
        drop_path_rate: Stochastic depth rate of the last block; it grows linearly from 0.

    Args: Texts
        aligned_with: Name of the model whose texts and images share the space, for messages.
        parts: Sources of weights, see `PretrainedPart`: of its text tower, "text_tower", if transformers has a class
            for it (without, features of texts that were computed elsewhere can be given), and of the pretrained
            encoder, "base", that an adapter was trained with.
        hypothesis_templates: Texts with `{}` in place of a label, whose vectors are averaged.
        temperature: Initial temperature of the contrastive loss; the scale of cosines is its inverse.

    Args: Classification head
        head_widths: Widths of the head's hidden layers; empty for a linear head.

    Args: Segmentation
        segmentation_layers: Blocks, from 0, whose outputs are propagated to points.
        propagation_widths: Channels of the two layers that propagate tokens to points.
    """

    # What has no row for each cloud, which Trainer would gather as predictions.
    keys_to_ignore_at_inference = ["logits_per_text", "text_embeds", "patch_accuracy", "center_distance"]

    hidden_size: int = 384
    num_hidden_layers: int = 12
    layer_norm_eps: float = 1e-5
    drop_path_rate: float = 0.0
    initializer_range: float = 0.02

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
        # Only some subclasses have balls of a radius; others ignore the range.
        check_settings(self, ranges={"group_radius": (1e-6, 1e6)})
        self.check_parts((TEXT_TOWER, "base"))
        super().__post_init__(**kwargs)

    @property
    def feature_size(self) -> int:
        """Channels of a cloud's feature in the space of texts."""
        return self.hidden_size if self.projection_dim is None else self.projection_dim

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return max(self.num_groups, self.group_size)
