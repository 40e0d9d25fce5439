"""Uni3D's point encoders and their heads (arXiv 2310.06773), on the base classes of `aligned_encoders`.

Shapes: B clouds, G tokens, H width of a token.
"""

import torch
from torch import nn

from hf_any3d.modeling.layers.heads import ClassToken, in_precision_of, precision_of
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import (
    AlignedClassifier,
    AlignedEncoder,
    AlignedPreTrainedModel,
    AlignedSegmenter,
    AlignedZeroShotClassifier,
    Tokens,
)
from hf_any3d.modeling.point_encoders.patches import PatchEncoder, Patches, cut_patches
from hf_any3d.modeling.point_encoders.zero_shot import LARGEST_SCALE
from hf_any3d.modeling.uni3d.configuration_uni3d import Uni3DConfig


class Uni3DPreTrainedModel(AlignedPreTrainedModel):
    """Base class of all Uni3D models."""

    config_class = Uni3DConfig
    config: Uni3DConfig
    base_model_prefix = "uni3d"

    @classmethod
    def base_class(cls) -> "type[Uni3DModel]":
        """Class of the encoder."""
        return Uni3DModel


class Uni3DModel(Uni3DPreTrainedModel, AlignedEncoder):
    """Uni3D's point encoder: patches, mini-PointNet, positions, blocks of an image transformer, norm, projection.

    Positions are added once, before the first block. The blocks are those of EVA-02 or EVA without their rotary
    embedding.

    Source: Uni3D, Sec. 3.1.
    """

    def __init__(self, config: Uni3DConfig):
        super().__init__(config, final_norm=True)
        width = config.hidden_size
        self.patch_encoder = PatchEncoder(
            config.in_channels, width, config.patch_widths, pooled_width=config.patch_pooled_width
        )
        self.class_token = ClassToken(width)
        # 128 channels between, in all released sizes
        self.position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.post_init()

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into the patches that the config describes."""
        return cut_patches(points, self.config, precision_of(self.position_embed))

    def embed(self, patches: Patches) -> Tokens:
        """Turn patches, all or some of each cloud, into the input of the first block."""
        tokens = self.patch_encoder(patches.neighborhoods)  # (B, G, H)
        # Centers are float32 up to here: in half precision, near ones would coincide.
        positions = self.position_embed(in_precision_of(self.position_embed, patches.centers))
        tokens, positions = self.class_token(tokens, positions)  # (B, 1 + G, H) each
        # Positions are added once, before the first block, as in image transformers.
        return Tokens(tokens + positions, patches.centers, patches.center_index)


class Uni3DForPointCloudClassification(Uni3DPreTrainedModel, AlignedClassifier):
    """`Uni3DModel` with a classification head on the feature in the space of texts.

    Example:
        ```python
        import torch
        from hf_any3d import Uni3DConfig, Uni3DForPointCloudClassification

        config = Uni3DConfig(num_labels=3, num_hidden_layers=2, num_groups=64)
        model = Uni3DForPointCloudClassification(config)
        points = torch.rand(2, 1024, 6)  # xyz and colors
        model(points=points).logits.shape  # (2, 3)
        ```
    """


class Uni3DForPointCloudSegmentation(Uni3DPreTrainedModel, AlignedSegmenter):
    """`Uni3DModel` with a head that predicts a class for every point of a scene or an object.

    Example:
        ```python
        import torch
        from hf_any3d import Uni3DConfig, Uni3DForPointCloudSegmentation

        config = Uni3DConfig(num_labels=3, num_hidden_layers=2, num_groups=64, segmentation_layers=[0, 1])
        model = Uni3DForPointCloudSegmentation(config)
        points = torch.rand(2, 1024, 6)  # xyz and colors
        model(points=points).logits.shape  # (2, 1024, 3)
        ```
    """


class Uni3DForZeroShotPointCloudClassification(Uni3DPreTrainedModel, AlignedZeroShotClassifier):
    """`Uni3DModel` that compares clouds with texts; published encoders open as this class.

    Example:
        ```python
        import torch
        from hf_any3d import Uni3DConfig, Uni3DForZeroShotPointCloudClassification

        model = Uni3DForZeroShotPointCloudClassification(Uni3DConfig(num_hidden_layers=2, num_groups=64))
        points = torch.rand(2, 1024, 6)  # xyz and colors
        texts = torch.rand(5, 1024)  # or model.encode_labels([…]) of a published model
        model(points=points, text_embeds=texts).logits_per_point_cloud.shape  # (2, 5)
        ```
    """

    # The released program keeps the scale below this after every step of training.
    _largest_scale = LARGEST_SCALE
