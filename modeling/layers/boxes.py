"""Boxes in space: corners, overlaps of turned boxes, points inside, and the choice of answers among them.

A box is seven numbers: center x, y, z; lengths along its own x, y and z; heading, the angle in radians by which it is
turned counterclockwise about z. All functions are batched, and the overlaps are differentiable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_any3d.modeling.config_checks import SHARE, check_numbers, check_settings

BOX_SIZE = 7
UP_AXES = ("z", "y", "x", "-z", "-y", "-x")
"""Directions that may point up."""
# Signs of the corners along the box's own x and y: a face, counterclockwise seen from below, the bottom face first.
_CORNERS = ((1, 1, -1), (1, -1, -1), (-1, -1, -1), (-1, 1, -1), (1, 1, 1), (1, -1, 1), (-1, -1, 1), (-1, 1, 1))
# The released program of 3DETR clamps the squares of edges, and volumes.
_PUBLISHED_EDGE, _PUBLISHED_VOLUME = 1e-6, 1e-8


def wrap_heading(heading: Tensor) -> Tensor:
    """Return the same directions as angles above -pi up to pi."""
    # The remainder is from 0 on and below a turn: subtracted twice, pi stays pi and is not -pi.
    return math.pi - torch.remainder(math.pi - heading, 2 * math.pi)


def box_corners(boxes: Tensor) -> Tensor:
    """Compute the corners `(…, 8, 3)` of boxes `(…, 7)`: four of the bottom face, then those above them."""
    signs = boxes.new_tensor(_CORNERS)  # (8, 3)
    x, y, z = (signs * (boxes[..., None, 3:6] / 2)).unbind(dim=-1)  # (…, 8) each
    cos = boxes[..., 6:].cos()
    sin = boxes[..., 6:].sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1) + boxes[..., None, :3]


def level_rotation(up: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the smallest rotation `(3, 3)` that turns a direction `(3,)`, of any length, to z."""
    x, y, z = np.asarray(up, dtype=np.float64) / max(float(np.linalg.norm(up)), 1e-300)
    # Otherwise it is no direction near the axis; opposite to z, the formula would divide by 0.
    if not z > 0:
        raise ValueError(f"up={tuple(up)} does not point up along its axis; expected a direction near it")
    # Rodrigues' formula for the turn about (y, -x, 0).
    return np.array(
        [[1 - x * x / (1 + z), -x * y / (1 + z), -x], [-x * y / (1 + z), 1 - y * y / (1 + z), -y], [x, y, z]]
    )


def upright_rotation(up_axis: str, up: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """Return the rotation `(3, 3)` that turns one of `UP_AXES`, or the direction `up (3,)` near it, to z."""
    if up is not None:
        # First the axis itself, by a quarter turn; the rest, by which the scan is tilted, is then small.
        upright = upright_rotation(up_axis)
        return level_rotation(upright @ np.asarray(up, dtype=np.float64)) @ upright
    sign = -1.0 if up_axis.startswith("-") else 1.0
    axis = ("x", "y", "z").index(up_axis.removeprefix("-"))
    if axis == 2:
        return np.diag([1.0, sign, sign])
    matrix = np.eye(3)
    matrix[2, 2] = matrix[axis, axis] = 0.0
    matrix[2, axis], matrix[axis, 2] = sign, -sign
    return matrix


def box_volumes(boxes: Tensor) -> Tensor:
    """Compute the volumes `(…,)` of boxes `(…, 7)`."""
    return boxes[..., 3:6].prod(dim=-1)


def bounding_boxes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest coordinates `(…, 3)` of boxes `(…, 7)`."""
    cos = boxes[..., 6].cos().abs()
    sin = boxes[..., 6].sin().abs()
    length, width, height = boxes[..., 3:6].unbind(dim=-1)
    # Of a turned rectangle, the bounds are the sums of what both sides reach along an axis.
    half = torch.stack([cos * length + sin * width, sin * length + cos * width, height], dim=-1) / 2
    return boxes[..., :3] - half, boxes[..., :3] + half


def points_in_boxes(points: Tensor, boxes: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Return which points `(…, points, 3)` lie in which boxes `(…, boxes, 7)`, faces included: `(…, boxes, points)`.

    A point up to `tolerance` from a face counts as inside.
    """
    check_numbers(0, tolerance=tolerance)
    x, y, z = (points.unsqueeze(-3) - boxes[..., None, :3]).unbind(dim=-1)  # (…, boxes, points) each
    cos = boxes[..., 6:].cos()
    sin = boxes[..., 6:].sin()
    half = boxes[..., 3:6] / 2 + tolerance
    length, width, height = (half[..., axis].unsqueeze(-1) for axis in range(3))
    return ((cos * x + sin * y).abs() <= length) & ((cos * y - sin * x).abs() <= width) & (z.abs() <= height)


def base_intersection(first: Tensor, second: Tensor) -> Tensor:
    """Compute the area in which the bases of boxes overlap, pair by pair.

    In the frame of the second box, the area is the integral over its x axis of the height of the first base, with all
    heights limited to those of the second one. It is a sum over the four edges of the first base, each of which is cut
    at the limits. Unlike a polygon that is cut step by step, the sum is as smooth as the area itself: edges that
    coincide, or nearly so, need no special case.

    Returns:
        Areas `(…,)`, differentiable in both.
    """
    x, y = (first[..., :2] - second[..., :2]).unbind(dim=-1)
    cos = second[..., 6].cos()
    sin = second[..., 6].sin()
    x, y = cos * x + sin * y, cos * y - sin * x  # the first center in the frame of the second box
    turn = first[..., 6] - second[..., 6]
    cos = turn.cos()
    sin = turn.sin()
    length = first[..., 3] / 2
    width = first[..., 4] / 2
    along = torch.stack([cos * length, sin * length], dim=-1)  # (…, 2), half an edge
    across = torch.stack([-sin * width, cos * width], dim=-1)
    center = torch.stack([x, y], dim=-1)
    # Counterclockwise: (…, 4, 2)
    starts = center.unsqueeze(-2) + torch.stack(
        [-along - across, along - across, along + across, across - along], dim=-2
    )
    start_x, start_y = starts.unbind(dim=-1)
    step_x, step_y = (starts.roll(-1, dims=-2) - starts).unbind(dim=-1)
    limit_x, limit_y = (second[..., axis].unsqueeze(-1) / 2 for axis in (3, 4))
    # The part of each edge between the limits of x, as shares of the edge; an edge across x has no area below it.
    from_x, to_x = ((value.minimum(limit_x)).maximum(-limit_x) for value in (start_x, start_x + step_x))
    slope = torch.where(step_x == 0, 0.0, step_y / torch.where(step_x == 0, 1.0, step_x))
    from_y, to_y = (start_y + (value - start_x) * slope for value in (from_x, to_x))
    # Between the limits of y the height is linear, and beyond them constant: trapezoids between the crossings.
    rise = to_y - from_y
    flat = rise == 0
    safe = torch.where(flat, 1.0, rise)
    crossings = [torch.where(flat, 0.0, (limit - from_y) / safe).clamp(0, 1) for limit in (-limit_y, limit_y)]
    early = crossings[0].minimum(crossings[1])
    late = crossings[0].maximum(crossings[1])
    shares = [torch.zeros_like(early), early, late, torch.ones_like(early)]
    heights = [(from_y + share * rise).minimum(limit_y).maximum(-limit_y) for share in shares]
    mean = sum(
        (shares[n + 1] - shares[n]) * (heights[n] + heights[n + 1]) / 2 for n in range(3)
    )  # of the heights along the edge
    # Counterclockwise edges run backward above and forward below: the sum is minus the area. Rounding may leave a
    # little above 0.
    return -((to_x - from_x) * mean).sum(dim=-1).clamp(max=0)


def box_intersection(first: Tensor, second: Tensor) -> Tensor:
    """Compute the volume in which boxes overlap, pair by pair: `(…,)` from `(…, 7)` each, which are broadcast."""
    return base_intersection(first, second) * _common_height(first, second)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the intersection over union of boxes `(…, 7)`, pair by pair: `(…,)`, 0 where neither has a volume."""
    intersection = box_intersection(first, second)
    union = box_volumes(first) + box_volumes(second) - intersection
    # Two boxes without a volume have no union.
    return intersection / union.clamp_min(torch.finfo(union.dtype).tiny)


def box_giou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the generalized intersection over union of boxes, pair by pair, from -1 (far apart) to 1: `(…,)`.

    The box around both is along the axes, as in the released program of 3DETR.

    Source: Generalized Intersection over Union (arXiv 1902.09630), Algorithm 1.
    """
    intersection = box_intersection(first, second)
    union = box_volumes(first) + box_volumes(second) - intersection
    tiny = torch.finfo(union.dtype).tiny
    around = _volume_around(first, second)
    return intersection / union.clamp_min(tiny) - (1 - union / around.clamp_min(tiny))


def published_giou(first: Tensor, second: Tensor, is_turned: bool) -> Tensor:
    """Compute what the released program of 3DETR takes for the generalized intersection over union.

    It counts no overlap for most boxes that are turned by more than 45 degrees: a shortcut compares two corners as if
    they were the smallest and the largest ones. Without `is_turned`, which is whether any box of the batch is turned
    clockwise, it takes that shortcut for the overlap itself. Volumes of thin boxes are rounded up.
    """
    ours, theirs = box_corners(first)[..., :2], box_corners(second)[..., :2]  # (…, 8, 2)
    low = torch.maximum(ours[..., 2, :], theirs[..., 2, :])
    high = torch.minimum(ours[..., 0, :], theirs[..., 0, :])
    area = (high - low).clamp_min(0).prod(dim=-1)
    # The shortcut first: where it finds nothing, the program does not look further.
    if is_turned:
        area = torch.where(area == 0, 0.0, base_intersection(first, second))
    intersection = area * _common_height(first, second)
    volumes = _published_volumes(first) + _published_volumes(second)
    union = (volumes - intersection).clamp_min(_PUBLISHED_VOLUME)
    around = _volume_around(first, second)
    counts = (around > 2 * _PUBLISHED_VOLUME) & (volumes > 4 * _PUBLISHED_VOLUME)
    around = torch.where(counts, around, 1.0)
    return torch.where(counts, intersection / union - (1 - union / around), 0.0)


def _published_volumes(boxes: Tensor) -> Tensor:
    # Edges below a millimeter count as a millimeter.
    edges = boxes[..., 3:6].square().clamp_min(_PUBLISHED_EDGE).sqrt()
    return edges.prod(dim=-1).clamp_min(_PUBLISHED_VOLUME)


def _common_height(first: Tensor, second: Tensor) -> Tensor:
    low = torch.maximum(first[..., 2] - first[..., 5] / 2, second[..., 2] - second[..., 5] / 2)
    high = torch.minimum(first[..., 2] + first[..., 5] / 2, second[..., 2] + second[..., 5] / 2)
    return (high - low).clamp_min(0)


def _volume_around(first: Tensor, second: Tensor) -> Tensor:
    (low, high), (other_low, other_high) = bounding_boxes(first), bounding_boxes(second)
    return (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(dim=-1)


def non_maximum_suppression(overlaps: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Choose boxes by descending score that none already chosen covers by more than `limit`: bool `(boxes,)`.

    `overlaps (boxes, boxes)` are how much the box of the column is covered by that of the row.
    """
    check_numbers(0, 1, limit=limit)
    # Few boxes: comparisons of all pairs at once, then one pass over rows.
    hides = (overlaps > limit).cpu().numpy()
    kept = torch.zeros(len(scores), dtype=torch.bool).numpy()
    open_ = ~kept
    for number in scores.argsort(descending=True, stable=True).tolist():
        if open_[number]:
            kept[number] = True
            open_ &= ~hides[number]
    return torch.from_numpy(kept).to(scores.device)


SUPPRESSIONS = ("turned", "bounds", "base", None)
SCORES = ("best_class", "per_class", "objectness")


@dataclass(frozen=True)
class DetectionRule:
    """Rule by which boxes of a cloud become answers with scores.

    The defaults are for people who look at boxes. `PUBLISHED_RULE` is that of the published evaluation of 3DETR and
    VoteNet.

    Args:
        threshold: Answers with a lower score are left out.
        min_objectness: Boxes whose objectness is not larger are left out.
        nms_iou: Of two boxes that overlap by more, the one with the lower objectness is left out.
        nms: What overlaps: the "turned" boxes; their "bounds" along the axes; the bounds' "base", seen from above;
            None leaves nothing out.
        nms_per_class: Whether only boxes of the same class compete; the "base" has no classes.
        nms_share: Compare the share of the lower box that is covered instead of intersection over union.
        min_points: Boxes with fewer of the cloud's points inside are left out; if none is left, the one with the
            highest objectness stays.
        scores: "best_class": the best class of each box, with its probability; "per_class": each box once for every
            class, with the product of probability and objectness, for average precision; "objectness": the best class
            of each box, with the objectness.
        top_k: Largest number of answers of a cloud, those with the highest scores; None for all.
    """

    threshold: float = 0.5
    min_objectness: float = 0.0
    nms_iou: float = 0.25
    nms: str | None = "turned"
    nms_per_class: bool = False
    nms_share: bool = False
    min_points: int = 0
    scores: str = "best_class"
    top_k: int | None = None

    def __post_init__(self):
        shares = dict.fromkeys(("threshold", "min_objectness", "nms_iou"), SHARE)
        check_settings(
            self, {"nms": SUPPRESSIONS, "scores": SCORES}, {**shares, "top_k": (1, 10**6), "min_points": (0, 10**9)}
        )


PUBLISHED_RULE = DetectionRule(
    0.0, min_objectness=0.05, nms="bounds", nms_per_class=True, min_points=5, scores="per_class"
)
"""That of the published evaluation of 3DETR and VoteNet."""


@torch.no_grad()
def select_detections(
    boxes: Tensor, class_scores: Tensor, objectness: Tensor, rule: DetectionRule, points: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the answers among the boxes of a cloud.

    Args:
        boxes: `(boxes, 7)`.
        class_scores: `(boxes, classes)`, probabilities.
        objectness: `(boxes,)`, probability that there is an object.
        rule: What is left out, and the scores.
        points: `(points, 3)` of the cloud; needed if `rule.min_points` is not 0.

    Returns:
        Number of the box, class and score of each answer, `(answers,)` each: with "per_class" class by class, with
        `top_k` by descending score, else in the order of the boxes.
    """
    best = class_scores.argmax(dim=1)
    kept = torch.ones_like(objectness, dtype=torch.bool)
    if rule.min_points:
        if len(boxes):
            # Box by box: all pairs at once would need hundreds of megabytes for a room.
            kept = torch.stack([points_in_boxes(points, box[None])[0].sum() for box in boxes]) >= rule.min_points
            if not kept.any():
                kept[objectness.argmax()] = True
    number = kept.nonzero().squeeze(1)
    if rule.nms is not None and len(number):
        own = boxes[number]
        classes = best[number]
        overlaps = _overlaps(own, rule)
        if rule.nms_per_class and rule.nms != "base":
            overlaps = overlaps.masked_fill(classes[:, None] != classes, 0.0)
        number = number[non_maximum_suppression(overlaps, objectness[number], rule.nms_iou)]
    number = number[objectness[number] > rule.min_objectness]
    if rule.scores == "per_class":
        count = class_scores.shape[1]
        scores = (class_scores[number] * objectness[number, None]).T.flatten()  # class by class
        labels = torch.arange(count, device=boxes.device).repeat_interleave(len(number))
        number = number.repeat(count)
    else:
        labels = best[number]
        scores = objectness[number] if rule.scores == "objectness" else class_scores[number, labels]
    if rule.threshold > 0:
        good = scores >= rule.threshold
        number = number[good]
        labels = labels[good]
        scores = scores[good]
    if rule.top_k is not None:
        first = scores.argsort(descending=True, stable=True)[: rule.top_k]
        number = number[first]
        labels = labels[first]
        scores = scores[first]
    return number, labels, scores


def _overlaps(boxes: Tensor, rule: DetectionRule) -> Tensor:
    """Return how much the box of the row covers that of the column, `(boxes, boxes)`."""
    if rule.nms == "turned":
        common = box_intersection(boxes[:, None], boxes[None])
        sizes = box_volumes(boxes)
    else:
        low, high = bounding_boxes(boxes)
        axes = 2 if rule.nms == "base" else 3
        low = low[:, :axes]
        high = high[:, :axes]
        common = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_min(0).prod(dim=-1)
        sizes = (high - low).prod(dim=-1)
    whole = sizes[None] if rule.nms_share else sizes[:, None] + sizes[None] - common
    return common / whole.clamp_min(torch.finfo(common.dtype).tiny)
