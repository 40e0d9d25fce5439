"""Between patches and points: scores carried to points, and the targets and losses of the two training stages."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.point_ops import gather_points, group, knn, scatter_mean

UNLABELED = -1
"""Majority of a patch without labeled points."""


def carry_to_points(
    scores: torch.Tensor, points: torch.Tensor, centers: torch.Tensor, patch_index: torch.Tensor, how: str
) -> torch.Tensor:
    """Carry scores of patches `(batch, groups, channels)` to points, xyz first: `(batch, points, channels)`.

    With "nearest" a point gets those of the patch with the nearest of `centers (batch, groups, 3)`, of equally near
    ones the first; with "membership" the mean over all patches of `patch_index (batch, groups, group_size)` that it is
    in, 0 if in none.
    """
    if how == "nearest":
        nearest = knn(points[..., :3], centers, 1).squeeze(-1)  # (batch, points)
        return gather_points(scores, nearest)
    spread = scores.unsqueeze(2).expand(-1, -1, patch_index.shape[2], -1)  # (batch, groups, group_size, channels)
    return scatter_mean(spread.flatten(1, 2), patch_index.flatten(1), points.shape[1])


def patch_shares(masks: torch.Tensor, patch_index: torch.Tensor) -> torch.Tensor:
    """Return the share of each patch's points that each label has: `(batch, groups, labels)`, from 0 to 1.

    `masks` `(batch, labels, points)` are True for points with the label, which may overlap; `patch_index` is
    `(batch, groups, group_size)`.
    """
    # The mean over the points of a patch, of (batch, groups, group_size, labels).
    return group(masks.transpose(1, 2).float(), patch_index).mean(dim=2)


def patch_majorities(masks: torch.Tensor, patch_index: torch.Tensor) -> torch.Tensor:
    """Return the label that most points of each patch have: `(batch, groups)`, -1 if no point has one.

    A point with several labels counts for the last of them; of labels with as many points the first is returned.
    Arguments are those of `patch_shares`.
    """
    count = masks.shape[1]
    numbers = torch.arange(1, count + 1, device=masks.device).view(1, -1, 1)
    last = (masks * numbers).amax(dim=1)  # (batch, points), 0 without a label
    own = (last.unsqueeze(1) == numbers).transpose(1, 2).float()  # (batch, points, labels)
    votes = group(own, patch_index).sum(dim=2)  # (batch, groups, labels)
    # argmax may return any of several maxima, on a GPU in particular.
    first = torch.where(votes == votes.amax(dim=-1, keepdim=True), numbers.view(1, 1, -1), count + 1).amin(dim=-1) - 1
    return torch.where(votes.amax(dim=-1) > 0, first, UNLABELED)


def part_loss(scores: torch.Tensor, shares: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of patches and labels, in which positives weigh as much as all other labels together.

    Scores `(batch, groups, labels)` are cosines times a scale, 0 for as likely as not; shares, of the same shape, are
    those of `patch_shares`. The mean is over patches and the labels that count for a cloud, `counted (batch, labels)`,
    then over clouds with such labels; 0 if there are none.

    Source: stage 2 of the released program; the paper describes a contrastive loss.
    """
    number = counted.sum(dim=1)  # (batch,)
    weight = (number - 1).clamp(min=1).to(scores.dtype).view(-1, 1, 1)
    terms = -(
        weight * shares * nn.functional.logsigmoid(scores) + (1 - shares) * nn.functional.logsigmoid(-scores)
    )  # (batch, groups, labels)
    sums = terms.mean(dim=1).masked_fill(~counted, 0).sum(dim=1)  # (batch,)
    return (sums / number.clamp(min=1)).sum() / (number > 0).sum().clamp(min=1)


def patch_accuracy(scores: torch.Tensor, majorities: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the share of patches whose best label by `scores (batch, groups, labels)` is that of most points.

    Patches without a label, or with one that does not count for the cloud (`counted` `(batch, labels)`), are left out
    of `majorities` `(batch, groups)`; NaN if no patch is left.
    """
    best = scores.masked_fill(~counted.unsqueeze(1), -torch.inf).argmax(dim=-1)  # (batch, groups)
    # Patches without a label have -1, which is no index; the first condition leaves them out.
    valid = (majorities >= 0) & counted.gather(1, majorities.clamp(min=0))
    return ((best == majorities) & valid).sum() / valid.sum()


def nearest_targets(
    centers: torch.Tensor, target_centers: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target whose center is nearest to each patch: `(batch, groups, channels)`, and the distances.

    Targets `(batch, targets, channels)` have centers `(batch, targets, 3)` in the units and axes of those of patches.
    """
    if target_centers.shape != (len(centers), targets.shape[1], 3):
        raise ValueError(
            f"target_centers has shape {tuple(target_centers.shape)}; expected ({len(centers)}, {targets.shape[1]}, 3)"
        )
    index, distances = knn(centers, target_centers, 1, return_distances=True)
    # `knn` returns squares.
    return gather_points(targets, index.squeeze(-1)), distances.squeeze(-1).sqrt()
