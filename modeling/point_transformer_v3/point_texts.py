"""Points in a space of texts, as Find3D compares them (arXiv 2411.13550): the head, and the loss of its training."""

from __future__ import annotations

import math

import torch
from torch import nn

from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_transformer_v3.configuration_point_transformer_v3 import PointTransformerV3Config


class PointTextHead(nn.Module):
    """Leads features of voxels into a space of texts: linear layers with ReLU between them, and a learned scale.

    The vectors have no fixed length, so that a voxel that resembles no text can be near the origin.
    """

    def __init__(self, config: PointTransformerV3Config):
        super().__init__()
        widths = (config.point_feature_size, *config.text_head_widths)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.out = nn.Linear(widths[-1], config.text_embedding_size)
        self.initial_scale = math.log(1 / config.temperature)
        self.logit_scale = nn.Parameter(torch.tensor(self.initial_scale))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors `(voxels, text_embedding_size)` of features `(voxels, channels)`, and the scale."""
        hidden_states = in_precision_of(self, features)
        for layer in self.hidden:
            hidden_states = nn.functional.relu(layer(hidden_states))
        # In float32: exp turns a rounding error of the logarithm in half precision into one of percents of the scale.
        return self.out(hidden_states).float(), self.logit_scale.float().exp()


def products(embeds: torch.Tensor, texts: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    """Return the products of voxels and texts, `(voxels, texts)`.

    `embeds` `(voxels, width)` are those of all clouds, with `counts` voxels each; `texts` are `(texts, width)`, or
    `(clouds, texts, width)`, own texts for each cloud.
    """
    # One list of texts for all clouds is a single product.
    if texts.ndim == 2:
        return embeds @ texts.T
    return torch.cat([own @ words.T for own, words in zip(embeds.split(counts), texts, strict=True)])


def mask_means(
    embeds: torch.Tensor, named: torch.Tensor, voxel: torch.Tensor, counts: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean vector of the points that each text names, and their numbers `(clouds, texts)`.

    Vectors `embeds` `(voxels, width)` are those of all clouds, with `counts` voxels each, and become `(clouds, texts,
    width)`; `named` `(points, texts)` says whether a text names a point, and `voxel` `(points,)` where that is.
    """
    # How many points of each voxel a text names, (voxels, texts): vectors are per voxel, which is far fewer.
    points = embeds.new_zeros(len(embeds), named.shape[1]).index_add_(0, voxel, named.to(embeds))
    parts = list(zip(points.split(counts), embeds.split(counts), strict=True))
    numbers = torch.stack([own.sum(dim=0) for own, _ in parts])  # (clouds, texts)
    sums = torch.stack([own.T @ vectors for own, vectors in parts])  # (clouds, texts, width)
    # Masks without points have a mean of 0, not NaN; the loss leaves them out.
    return sums / (numbers + 1e-12)[..., None], numbers


def mask_text_loss(
    means: torch.Tensor, numbers: torch.Tensor, texts: torch.Tensor, counted: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Compute the contrastive loss of masks and their texts, over all clouds of the batch.

    Masks without points have no target, and stay among the others' wrong answers. `means` and `numbers` are from
    `mask_means`; `texts` are unit vectors, `(texts, width)` or `(clouds, texts, width)`; `counted (clouds, texts)`
    names the masks that there are.

    Source: Find3D, Sec. 4; of each direction, losses of exactly zero are left out of the mean, as in its program.
    """
    rows = counted.nonzero(as_tuple=True)
    logits = scale * texts.expand_as(means)[rows] @ means[rows].T  # (texts, masks)
    own = torch.arange(len(logits), device=logits.device)
    # Texts and masks have one order, so the right answer of each is its own number.
    targets = torch.where(numbers[rows] > 0, own, -100)

    def mean_loss(scores: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(scores, targets, reduction="none")
        return losses.sum() / (losses > 0).sum().clamp(min=1)

    return (mean_loss(logits) + mean_loss(logits.T)) / 2
