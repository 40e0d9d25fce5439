"""Matching of boxes with objects, and the loss of 3DETR (arXiv 2109.08141, Sec. 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from hf_any3d.modeling.detr3d.configuration_detr3d import Detr3DConfig
from hf_any3d.modeling.layers.boxes import BOX_SIZE, box_giou, published_giou, wrap_heading

# Of a heading; beyond a full turn it is taken for degrees.
_FULL_TURN = 2 * math.pi + 1e-3
# A heading this small is one along the axes.
_ALONG = 1e-4


class BoxPredictions(NamedTuple):
    """Predictions of some layers of the decoder: centers from the cloud's smallest coordinates, in its extents."""

    logits: torch.Tensor  # (layers, batch, queries, labels + 1)
    centers: torch.Tensor  # (layers, batch, queries, 3)
    sizes: torch.Tensor  # (layers, batch, queries, 3), in extents of the cloud
    heading_logits: torch.Tensor  # (layers, batch, queries, bins)
    heading_residuals: torch.Tensor  # (layers, batch, queries, bins), in halves of a bin
    boxes: torch.Tensor  # (layers, batch, queries, 7), in the units of the cloud

    def outputs_of(self, layer: int) -> dict[str, torch.Tensor]:
        """Return what a model's output has of one layer."""
        return {
            "logits": self.logits[layer],
            "pred_boxes": self.boxes[layer],
            "heading_logits": self.heading_logits[layer],
            "heading_residuals": self.heading_residuals[layer],
        }


@dataclass
class BoxTargets:
    """Objects of a batch, padded to the most of a cloud: classes `(batch, objects)`, boxes `(batch, objects, 7)`."""

    classes: torch.Tensor
    boxes: torch.Tensor
    counts: list[int]

    @classmethod
    def checked(cls, labels: Any, batch: int, config: Detr3DConfig) -> BoxTargets:
        """Check the labels of a batch and pad them."""
        if len(labels) != batch:
            raise ValueError(f"labels has {len(labels)} entries; expected {batch}, one for each cloud")
        classes = []
        boxes = []
        for number, objects in enumerate(labels):
            check_boxes(objects["class_labels"], objects["boxes"], f"labels[{number}]", config)
            classes.append(objects["class_labels"])
            dtype = torch.promote_types(objects["boxes"].dtype, torch.float32)
            boxes.append(objects["boxes"].to(dtype).reshape(-1, BOX_SIZE))
        # A unit box as padding: its overlaps are numbers, and nothing is matched with it.
        unit = nn.utils.rnn.pad_sequence(boxes, batch_first=True)
        counts = [len(numbers) for numbers in classes]
        padding = torch.arange(unit.shape[1], device=unit.device) >= torch.tensor(counts, device=unit.device)[:, None]
        filler = unit.new_tensor([0.0, 0, 0, 1, 1, 1, 0])
        unit = torch.where(padding.unsqueeze(2), filler, unit)
        return cls(nn.utils.rnn.pad_sequence(classes, batch_first=True).long(), unit, counts)


def check_boxes(class_labels: torch.Tensor, boxes: torch.Tensor, where: str, config: Detr3DConfig) -> None:
    """Check the `class_labels (objects,)` and `boxes (objects, 7)` of one cloud; `where` is for messages."""
    count = len(class_labels) if class_labels.ndim == 1 else -1
    # A cloud without objects may have an empty list of boxes, which has no second axis.
    shapes = [(count, BOX_SIZE), (0,)] if count == 0 else [(count, BOX_SIZE)]
    if class_labels.ndim != 1 or class_labels.is_floating_point() or tuple(boxes.shape) not in shapes:
        raise ValueError(
            f"{where}: class_labels have shape {tuple(class_labels.shape)} and type {class_labels.dtype}, boxes "
            f"{tuple(boxes.shape)}; expected (objects,) whole numbers and (objects, {BOX_SIZE}): center, size, heading"
        )
    if count > config.num_queries:
        raise ValueError(f"{where}: {count} boxes; expected at most num_queries={config.num_queries}")
    if not count:
        return
    classes = class_labels.detach().cpu()
    values = boxes.detach().double().cpu()
    heading = values[:, 6].abs()
    bins = config.num_heading_bins
    for wrong, expected in (
        (~values.isfinite().all(dim=1), "finite numbers"),
        ((values[:, 3:6] <= 0).any(dim=1), "sizes above 0"),
        (heading > _FULL_TURN, "a heading in radians, -2π to 2π"),
        ((classes < 0) | (classes >= config.num_labels), f"a class from 0 to {config.num_labels - 1}"),
        ((heading > _ALONG) & (bins == 1), "heading 0, as num_heading_bins=1 is for boxes along the axes"),
    ):
        if wrong.any():
            first = int(wrong.nonzero()[0])
            shown = [round(value, 4) for value in values[first].tolist()]
            raise ValueError(f"{where}: box {first} is {shown} of class {int(classes[first])}; expected {expected}")


def heading_targets(headings: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split headings into the number of the nearest bin and the rest, in halves of a bin, from -1 to 1."""
    width = 2 * math.pi / bins
    # The middle of bin k is at k widths, so that bin 0 is around 0.
    shifted = torch.remainder(headings + width / 2, 2 * math.pi)
    number = (shifted / width).long().clamp(max=bins - 1)
    return number, (shifted - number * width - width / 2) / (width / 2)


@torch.no_grad()
def match_boxes(
    predictions: BoxPredictions,
    targets: BoxTargets,
    overlaps: torch.Tensor,
    centers: torch.Tensor,
    config: Detr3DConfig,
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Assign objects to queries at the lowest total cost, in each layer and cloud; returns the numbers of both.

    `overlaps (layers, batch, queries, objects)` are generalized intersections over unions, `centers (batch, objects,
    3)` those of the objects in extents of the cloud.
    """
    probabilities = predictions.logits.float().softmax(dim=-1)  # (layers, batch, queries, labels + 1)
    layers, batch, queries = probabilities.shape[:3]
    index = targets.classes.to(probabilities.device)[None, :, None].expand(layers, batch, queries, -1)
    # Of probabilities, not logarithms, so that all costs are of one size, as in DETR.
    costs = -config.class_cost * probabilities.gather(-1, index)
    # The same for all objects of a query: it decides only which queries are used.
    costs = costs - config.objectness_cost * (1 - probabilities[..., -1:])
    if config.center_cost:
        costs = costs + config.center_cost * torch.cdist(predictions.centers.to(centers), centers, p=1)
    costs = (costs - config.giou_cost * overlaps).double().cpu().numpy()
    return [
        [linear_sum_assignment(own[:, :count]) for own, count in zip(layer, targets.counts, strict=True)]
        for layer in costs
    ]


def detection_loss(
    predictions: BoxPredictions, targets: BoxTargets, low: torch.Tensor, extent: torch.Tensor, config: Detr3DConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Match boxes with objects in each layer, and compute the loss of all layers and its weighted terms.

    Sums over matched boxes are divided by the number of objects, and those over queries by the sum of their weights,
    each the mean over all processes. `low` `(batch, 1, 3)` are the smallest coordinates of the clouds, `extent` of the
    same shape their lengths.
    """
    boxes = targets.boxes.to(predictions.boxes)
    # In extents of the cloud, as the model predicts them.
    centers = (boxes[..., :3] - low) / extent
    sizes = boxes[..., 3:6] / extent
    layers, _, _, classes = predictions.logits.shape
    # The released program tests for headings above 0, which are below 0 here: it turns boxes clockwise.
    is_turned = any(bool((own[:count, 6] < 0).any()) for own, count in zip(boxes, targets.counts, strict=True))

    def overlap(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return published_giou(ours, theirs, is_turned) if config.published_overlap else box_giou(ours, theirs)

    with torch.no_grad():
        # Layer by layer: the edges of all pairs of all layers would need a gigabyte.
        pairs_of_layers = [overlap(own.unsqueeze(2), boxes.unsqueeze(1)) for own in predictions.boxes]
        overlaps = torch.stack(pairs_of_layers)  # (layers, batch, queries, objects)
    matches = match_boxes(predictions, targets, overlaps, centers, config)
    # (matches,) each: which layer, cloud and query found which object
    layer, cloud, query, number = _rows_of(matches).to(boxes.device).T
    # Without any object there are no matches, and sums of nothing are 0.
    count = _mean_over_processes(boxes.new_tensor(float(sum(targets.counts)))).clamp_min(1)
    bins, residuals = heading_targets(wrap_heading(boxes[cloud, number, 6]), config.num_heading_bins)
    own_residuals = predictions.heading_residuals[layer, cloud, query].to(boxes)  # (matches, bins)
    own_residuals = own_residuals.gather(1, bins.unsqueeze(1)).squeeze(1)
    own_logits = predictions.heading_logits[layer, cloud, query].to(boxes)
    center_error = (predictions.centers[layer, cloud, query] - centers[cloud, number]).abs().sum(dim=1)
    size_error = (predictions.sizes[layer, cloud, query] - sizes[cloud, number]).abs().sum(dim=1)
    sums = {
        "center": (config.center_loss_weight, center_error),
        "size": (config.size_loss_weight, size_error),
        "heading_class": (
            config.heading_class_loss_weight,
            nn.functional.cross_entropy(own_logits, bins, reduction="none"),
        ),
        "heading_residual": (
            config.heading_residual_loss_weight,
            nn.functional.huber_loss(own_residuals, residuals, reduction="none"),
        ),
    }
    if config.giou_loss_weight:
        # Again, with a gradient, for the matched boxes alone.
        matched = overlap(predictions.boxes[layer, cloud, query], boxes[cloud, number])
        sums["giou"] = (config.giou_loss_weight, 1 - matched)
    terms = {
        name: weight * values.new_zeros(layers).index_add(0, layer, values) / count  # (layers,)
        for name, (weight, values) in sums.items()
        if weight
    }

    # Queries without an object are to answer "no object".
    wanted = torch.full(predictions.logits.shape[:3], classes - 1, device=boxes.device)
    wanted[layer, cloud, query] = targets.classes.to(boxes.device)[cloud, number]
    if config.class_loss_weight:
        terms["class"] = config.class_loss_weight * _class_loss(predictions.logits, wanted, config)
    # With all weights at 0 there are no terms, but a training step still needs a gradient.
    loss = torch.stack(list(terms.values())).sum() if terms else predictions.logits.sum() * 0
    with torch.no_grad():
        # For logs only, as in DETR.
        answers = (predictions.logits.argmax(dim=-1) != classes - 1).sum(dim=2)  # (layers, batch)
        objects = torch.tensor(targets.counts, device=answers.device)
        terms["cardinality"] = (answers - objects).abs().float().mean(dim=1)
    # Names of terms `(layers,)` as in DETR: those of the last layer have no number.
    named = {}
    for name, values in terms.items():
        suffixes = [*(f"_{number}" for number in range(len(values) - 1)), ""]
        for suffix, value in zip(suffixes, values.detach(), strict=True):
            named[f"loss_{name}{suffix}"] = value
    return loss, named


def _rows_of(matches: list[list[tuple[np.ndarray, np.ndarray]]]) -> torch.Tensor:
    """Return the matched boxes of all layers and clouds `(matches, 4)`: numbers of layer, cloud, query and object."""
    rows = []
    for layer, clouds in enumerate(matches):
        for cloud, (queries, objects) in enumerate(clouds):
            for query, number in zip(queries, objects, strict=True):
                rows.append((layer, cloud, query, number))
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 4)


def _mean_over_processes(sums: torch.Tensor) -> torch.Tensor:
    """Return the mean over all processes of what a loss is divided by.

    Gradients are averaged over processes: divided by a mean, all objects and queries count the same.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sums = sums.clone()
        torch.distributed.all_reduce(sums)
        sums = sums / torch.distributed.get_world_size()
    return sums


def _class_loss(logits: torch.Tensor, wanted: torch.Tensor, config: Detr3DConfig) -> torch.Tensor:
    """Return the cross-entropy of each layer, `(layers,)`, its weighted mean over the queries of all processes."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logs = logits.log_softmax(dim=-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)  # (layers, batch, queries)
    # Most queries have no object: with full weight, they would outweigh the others.
    weights = torch.where(wanted == logits.shape[-1] - 1, config.no_object_weight, 1.0).to(logs)
    rows = -logs
    if config.focal_gamma:
        rows = rows * (1 - logs.exp()) ** config.focal_gamma
    total = _mean_over_processes(weights.sum(dim=(1, 2)))
    return (weights * rows).sum(dim=(1, 2)) / total.clamp_min(torch.finfo(logs.dtype).tiny)
