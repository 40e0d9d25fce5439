"""OpenShape's point encoders and their heads (arXiv 2305.10764), on the base classes of `aligned_encoders`.

Shapes: B clouds, G tokens, M points of a patch.
"""

import torch
from torch import nn

from hf_any3d.modeling.layers.direct_weights import is_unmodified
from hf_any3d.modeling.layers.heads import in_precision_of, precision_of
from hf_any3d.modeling.openshape.configuration_openshape import OpenShapeConfig
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import (
    AlignedClassifier,
    AlignedEncoder,
    AlignedPreTrainedModel,
    AlignedSegmenter,
    AlignedZeroShotClassifier,
    Tokens,
)
from hf_any3d.modeling.point_encoders.patches import Patches
from hf_any3d.modeling.point_ops import ball_query, farthest_point_sample, gather_points, group, in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels


def ball_patches(points: torch.Tensor, num_groups: int, group_size: int, radius: float) -> Patches:
    """Group clouds `(batch, points, channels)` into balls around centers from farthest point sampling.

    It starts at the first point; the released program starts at a random one, so that its features vary from call to
    call. Of more than `group_size` points the first ones of the cloud are kept; fewer are filled up.
    """
    xyz = points[..., :3].contiguous()
    index = farthest_point_sample(xyz, num_groups)
    centers = gather_points(xyz, index)  # (B, G, 3)
    neighbors = group(points, ball_query(centers, xyz, radius, group_size))  # (B, G, M, channels)
    offsets = neighbors[..., :3] - centers.unsqueeze(2)
    # As released, absolute coordinates follow the offsets.
    return Patches(torch.cat([offsets, neighbors], dim=-1), centers, index)


class BallPatchEncoder(nn.Module):
    """Shared layers with batch norm and ReLU, and a maximum over the points of a patch.

    Shape: `(batch, groups, neighbors, in_channels)` to `(batch, groups, widths[-1])`.
    """

    def __init__(self, in_channels: int, widths: list[int] | tuple[int, ...]):
        super().__init__()
        inputs = [in_channels, *widths[:-1]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(inputs, widths, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Encode patches; see the class."""
        rows = in_precision_of(self, neighborhoods.flatten(0, 2))  # (B * G * neighbors, channels)
        last = len(self.layers) - 1
        for number, (linear, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            # In eval mode the norm is part of the layer: a third of the passes over the rows. Half precision would
            # round the product of both weights.
            is_evaluated = not (norm.training or torch.is_grad_enabled()) and is_unmodified(linear, norm)
            if is_evaluated and linear.weight.dtype in (torch.float32, torch.float64):
                scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                shift = norm.bias + (linear.bias - norm.running_mean) * scale
                rows = nn.functional.linear(rows, linear.weight * scale.unsqueeze(1), shift.to(rows.dtype))
            else:
                rows = norm(linear(rows))
            if number < last:
                rows = rows.relu_()
        rows = rows.view(*neighborhoods.shape[:3], -1)
        # amax is faster, but shares a gradient between equal rows. The maximum of the activations is the activation of
        # the maximum.
        pooled = rows.max(dim=2).values if torch.is_grad_enabled() else rows.amax(dim=2)
        return pooled.relu_()


class OpenShapePreTrainedModel(AlignedPreTrainedModel):
    """Base class of all OpenShape models."""

    config_class = OpenShapeConfig
    config: OpenShapeConfig
    base_model_prefix = "openshape"

    @classmethod
    def base_class(cls) -> "type[OpenShapeModel]":
        """Class of the encoder."""
        return OpenShapeModel


class OpenShapeModel(OpenShapePreTrainedModel, AlignedEncoder):
    """OpenShape's point encoder: balls of points, shared layers with a maximum, transformer blocks, projection.

    Positions enter through the coordinates among the channels of patches and tokens; there is no position embedding
    and no final norm.

    Source: OpenShape, Sec. 3.2; PointBERT of its program.
    """

    def __init__(self, config: OpenShapeConfig):
        super().__init__(config, final_norm=False)
        self.patch_encoder = BallPatchEncoder(3 + config.in_channels, config.patch_widths)
        self.lift = nn.Linear(3 + config.patch_widths[-1], config.hidden_size)
        self.lift_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.class_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.post_init()

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into the patches that the config describes."""
        config = self.config
        check_channels(points, config.in_channels)
        points = in_full_precision(points, precision_of(self.lift))
        return ball_patches(points, config.num_groups, config.group_size, config.group_radius)

    def embed(self, patches: Patches) -> Tokens:
        """Turn patches, all or some of each cloud, into the input of the first block."""
        features = self.patch_encoder(patches.neighborhoods)  # (B, G, width)
        # There are no positions besides the centers' coordinates.
        tokens = self.lift_norm(self.lift(torch.cat([patches.centers.to(features.dtype), features], dim=-1)))
        class_token = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        return Tokens(torch.cat([class_token, tokens], dim=1), patches.centers, patches.center_index)


class OpenShapeForPointCloudClassification(OpenShapePreTrainedModel, AlignedClassifier):
    """`OpenShapeModel` with a classification head on the feature in the space of texts.

    Example:
        ```python
        import torch
        from hf_any3d import OpenShapeConfig, OpenShapeForPointCloudClassification

        config = OpenShapeConfig(num_labels=3, num_hidden_layers=2)
        model = OpenShapeForPointCloudClassification(config)
        points = torch.rand(2, 1024, 6)  # xyz and colors
        model(points=points).logits.shape  # (2, 3)
        ```
    """


class OpenShapeForPointCloudSegmentation(OpenShapePreTrainedModel, AlignedSegmenter):
    """`OpenShapeModel` with a head that predicts a class for every point of a scene or an object.

    Example:
        ```python
        import torch
        from hf_any3d import OpenShapeConfig, OpenShapeForPointCloudSegmentation

        config = OpenShapeConfig(num_labels=3, num_hidden_layers=2, segmentation_layers=[0, 1])
        model = OpenShapeForPointCloudSegmentation(config)
        points = torch.rand(2, 1024, 6)  # xyz and colors
        model(points=points).logits.shape  # (2, 1024, 3)
        ```
    """


class OpenShapeForZeroShotPointCloudClassification(OpenShapePreTrainedModel, AlignedZeroShotClassifier):
    """`OpenShapeModel` that compares clouds with texts; published encoders open as this class.

    Example:
        ```python
        import torch
        from hf_any3d import OpenShapeConfig, OpenShapeForZeroShotPointCloudClassification

        model = OpenShapeForZeroShotPointCloudClassification(OpenShapeConfig(num_hidden_layers=2))
        points = torch.rand(2, 1024, 6)  # xyz and colors
        texts = torch.rand(5, 1280)  # or model.encode_labels([…]) of a published model
        model(points=points, text_embeds=texts).logits_per_point_cloud.shape  # (2, 5)
        ```
    """
