"""Layers of Point Transformer V3 before and between the stages, with the norms that its two layouts have there.

The encoders of Sonata, Concerto and Utonia have layer norms and a linear stem. The original, supervised layout has a
convolution as stem, and batch norms wherever the number of voxels changes. Trained on several data sets at once, it
has norms for each of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable
from hf_any3d.modeling.layers.heads import HeadNorm, in_precision_of
from hf_any3d.modeling.point_ops import scatter_max, submanifold_convolution
from hf_any3d.modeling.point_transformer_v3.configuration_point_transformer_v3 import PointTransformerV3Config
from hf_any3d.modeling.point_transformer_v3.voxel_stages import Voxels

STEM_SIZE = 5
"""Edge of the stem's kernel."""


class SubmanifoldConvolution(nn.Module):
    """Convolution of occupied cells with a cubic kernel; see `submanifold_convolution`."""

    def __init__(self, in_width: int, width: int, size: int = 3, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, size, size, size, in_width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize like `nn.Linear` with the same fan-in."""
        # Each cell of the kernel adds the channels of one voxel.
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, hidden_states: torch.Tensor, neighbors: NeighborTable) -> torch.Tensor:
        """Convolve `(voxels, channels)`."""
        return submanifold_convolution(hidden_states, self.weight, self.bias, neighbors)


class ConditionNorm(nn.Module):
    """A norm for each data set of the training, of which that of `config.condition` is used (PDNorm).

    Source: Towards Large-scale 3D Representation Learning with Multi-dataset Point Prompt Training, Sec. 3.
    """

    def __init__(self, config: PointTransformerV3Config, norms: list[nn.Module], width: int):
        super().__init__()
        self.config = config
        self.norms = nn.ModuleList(norms)
        size = config.condition_size
        self.modulation = nn.Linear(size, 2 * width) if config.adaptive_norms and size is not None else None

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Normalize `(voxels, channels)`; with `adaptive_norms`, `context (1, condition_size)` shifts and scales."""
        # The config names one data set for all clouds of a batch.
        conditions = self.config.norm_conditions
        normed = self.norms[conditions.index(self.config.condition)](hidden_states)
        if self.modulation is None or context is None:
            return normed
        shift, scale = self.modulation(nn.functional.silu(context)).chunk(2, dim=1)
        # Around 1, so that a layer of zeros changes nothing.
        return normed * (1 + scale) + shift


def stage_norm(config: PointTransformerV3Config, width: int) -> nn.Module:
    """Build the norm of the stem, a pooling or an unpooling."""

    def make() -> nn.Module:
        if config.stage_norm == "layer":
            return nn.LayerNorm(width, eps=config.layer_norm_eps)
        return HeadNorm(width, config.batch_norm_eps, config.batch_norm_momentum, affine=config.norm_affine)

    return _for_conditions(config, make, width, config.condition_batch_norms)


def block_norm(config: PointTransformerV3Config, width: int) -> nn.Module:
    """Build a norm within a block."""

    def make() -> nn.Module:
        # Only norms of their own may leave weight and bias to the modulation.
        affine = config.norm_affine or not config.condition_layer_norms
        return nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=affine)

    return _for_conditions(config, make, width, config.condition_layer_norms)


def _for_conditions(
    config: PointTransformerV3Config, make: Callable[[], nn.Module], width: int, is_conditioned: bool
) -> nn.Module:
    if not is_conditioned:
        return make()
    return ConditionNorm(config, [make() for _ in config.norm_conditions or ()], width)


def normed(norm: nn.Module, hidden_states: torch.Tensor, voxels: Voxels) -> torch.Tensor:
    """Apply a norm, which may depend on the data set that the voxels are from."""
    # Norms that all data sets share take no context.
    if voxels.context is None or isinstance(norm, (nn.LayerNorm, nn.BatchNorm1d)):
        return norm(hidden_states)
    return norm(hidden_states, voxels.context)


class PointTransformerV3Embeddings(nn.Module):
    """From the channels of points to voxels: linear layer or convolution, norm, GELU; then the mask token."""

    def __init__(self, config: PointTransformerV3Config):
        super().__init__()
        width = config.hidden_sizes[0]
        # Coordinates are always the first three channels.
        self.first = 0 if config.reads_coordinates else 3
        channels = config.in_channels - self.first
        if config.stem == "linear":
            self.projection = nn.Linear(channels, width)
        else:
            self.convolution = SubmanifoldConvolution(channels, width, STEM_SIZE, bias=False)
        self.norm = stage_norm(config, width)
        self.mask_token = nn.Parameter(torch.zeros(width)) if config.use_mask_token else None

    def forward(self, points: torch.Tensor, voxels: Voxels, is_masked: torch.Tensor | None = None) -> torch.Tensor:
        """Embed `(voxels, in_channels)`; `is_masked (voxels,)` names voxels that get the mask token."""
        values = in_precision_of(self, points[:, self.first :])
        if hasattr(self, "projection"):
            embedded = self.projection(values)
        else:
            # The original's stem, a kernel of 5³ cells without a bias, as a norm follows.
            embedded = self.convolution(values, voxels.wide_neighbors)
        hidden_states = nn.functional.gelu(normed(self.norm, embedded, voxels))
        if is_masked is None:
            return hidden_states
        # After the stem, as released: the token is no input of the layer.
        return torch.where(is_masked[:, None], self.mask_token.to(hidden_states.dtype), hidden_states)


class PointTransformerV3Pooling(nn.Module):
    """To larger cells: linear layer, maximum over the voxels of a cell, norm, GELU."""

    def __init__(self, config: PointTransformerV3Config, in_width: int, out_width: int):
        super().__init__()
        self.projection = nn.Linear(in_width, out_width)
        self.norm = stage_norm(config, out_width)

    def forward(self, hidden_states: torch.Tensor, pooled: Voxels) -> torch.Tensor:
        """Pool `(voxels, in_width)` to `(pooled voxels, out_width)`."""
        projected = self.projection(hidden_states)
        # The maximum is taken before norm and GELU, as in the released programs.
        largest = scatter_max(projected[None], pooled.inverse[None], len(pooled.cloud))[0]
        return nn.functional.gelu(normed(self.norm, largest, pooled))


class PointTransformerV3Unpooling(nn.Module):
    """From larger cells back to smaller ones: each adds the projected features of its larger cell to its own."""

    def __init__(self, config: PointTransformerV3Config, in_width: int, skip_width: int, out_width: int):
        super().__init__()
        self.is_copied = config.decoder_convolution == "skip"
        self.projection = nn.Linear(in_width, out_width)
        self.norm = stage_norm(config, out_width)
        self.skip_projection = nn.Linear(skip_width, out_width)
        self.skip_norm = stage_norm(config, out_width)

    def forward(
        self, hidden_states: torch.Tensor, skipped: torch.Tensor, pooled: Voxels, voxels: Voxels
    ) -> torch.Tensor:
        """Join `(pooled voxels, in_width)` and `(voxels, skip_width)` to `(voxels, out_width)`."""
        # All voxels of a larger cell get the same from it.
        below = nn.functional.gelu(normed(self.norm, self.projection(hidden_states), pooled))[pooled.inverse]
        own = nn.functional.gelu(normed(self.skip_norm, self.skip_projection(skipped), voxels))
        # For the convolution of the first block, which reads what the encoder has left here, and not the sum.
        if self.is_copied:
            voxels.sources[True, 0] = own
        return own + below


class ClassTextHead(nn.Module):
    """Cosines of projected features with the texts of classes, those of `config.condition`, times a learned scale.

    The order of the texts is that of the data set's classes; a text need not be a name of its class.
    """

    class_embeddings: torch.Tensor

    def __init__(self, config: PointTransformerV3Config):
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.point_feature_size, config.text_embedding_size)
        # Data sets share texts, so their classes are numbers in one list.
        texts = 1 + max(max(rows) for rows in (config.condition_classes or {}).values())
        self.register_buffer("class_embeddings", torch.zeros(texts, config.text_embedding_size))
        # That of the text model, which is not trained.
        self.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute logits `(voxels, classes)` of features `(voxels, channels)`."""
        classes = self.config.condition_classes
        condition = self.config.condition
        projected = self.projection(in_precision_of(self, features))
        projected = projected / projected.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * projected @ self.class_embeddings[classes[condition]].T


class ConditionHeads(nn.Module):
    """A linear layer for each data set, of which that of `config.condition` is used."""

    def __init__(self, config: PointTransformerV3Config):
        super().__init__()
        self.config = config
        classes = config.condition_classes or {}
        self.heads = nn.ModuleList(nn.Linear(config.point_feature_size, len(rows)) for rows in classes.values())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute logits `(voxels, classes)` of features `(voxels, channels)`."""
        place = list(self.config.condition_classes or {}).index(self.config.condition or "")
        return self.heads[place](in_precision_of(self, features))
