"""The choice of answers among boxes, against plain loops, for every kind of rule; directions that point up."""

import itertools
import math

import numpy as np
import pytest
import torch

from hf_any3d.modeling.layers.boxes import (
    PUBLISHED_RULE,
    DetectionRule,
    bounding_boxes,
    box_giou,
    box_intersection,
    box_iou,
    level_rotation,
    non_maximum_suppression,
    points_in_boxes,
    select_detections,
    upright_rotation,
)
from tests.errors import raises


def drawn() -> tuple[torch.Tensor, ...]:
    """Boxes that overlap in part, scores of their classes, objectness, and points among them."""
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(16, 3, generator=generator) * torch.tensor([2.0, 2.0, 1.0])
    sizes = 0.3 + torch.rand(16, 3, generator=generator)
    boxes = torch.cat([places, sizes, 3 * torch.rand(16, 1, generator=generator)], dim=1)
    scores = (3 * torch.randn(16, 3, generator=generator)).softmax(dim=1)
    return boxes, scores, torch.rand(16, generator=generator), 2 * torch.rand(60, 3, generator=generator)


def covered(first: torch.Tensor, second: torch.Tensor, rule: DetectionRule) -> float:
    """How much the first box covers of the second."""
    if rule.nms == "turned":
        common = float(box_intersection(first, second))
        sizes = [float(box[3:6].prod()) for box in (first, second)]
    else:
        axes = 2 if rule.nms == "base" else 3
        (low, high), (other_low, other_high) = bounding_boxes(first), bounding_boxes(second)
        common = math.prod(
            max(0.0, min(float(high[axis]), float(other_high[axis])) - max(float(low[axis]), float(other_low[axis])))
            for axis in range(axes)
        )
        sizes = [float((top - bottom)[:axes].prod()) for bottom, top in ((low, high), (other_low, other_high))]
    return common / (sizes[1] if rule.nms_share else sum(sizes) - common)


def by_loops(boxes, class_scores, objectness, points, rule: DetectionRule) -> list[tuple[int, int, float]]:
    best = [int(row.argmax()) for row in class_scores]
    kept = list(range(len(boxes)))
    if rule.min_points:
        inside = [int(points_in_boxes(points, box[None]).sum()) for box in boxes]
        kept = [number for number in kept if inside[number] >= rule.min_points] or [int(objectness.argmax())]
    if rule.nms is not None:
        chosen: list[int] = []
        for number in sorted(kept, key=lambda number: -float(objectness[number])):
            rivals = [
                other
                for other in chosen
                if not rule.nms_per_class or rule.nms == "base" or best[other] == best[number]
            ]
            if all(covered(boxes[other], boxes[number], rule) <= rule.nms_iou for other in rivals):
                chosen.append(number)
        kept = sorted(chosen)
    kept = [number for number in kept if objectness[number] > rule.min_objectness]
    if rule.scores == "per_class":
        pairs = [(number, label) for label in range(class_scores.shape[1]) for number in kept]
        answers = [(*pair, float(class_scores[pair] * objectness[pair[0]])) for pair in pairs]
    else:
        source = {"objectness": lambda n: objectness[n], "best_class": lambda n: class_scores[n, best[n]]}
        answers = [(number, best[number], float(source[rule.scores](number))) for number in kept]
    answers = [answer for answer in answers if answer[2] >= rule.threshold]
    if rule.top_k is not None:
        answers = sorted(answers, key=lambda answer: -answer[2])[: rule.top_k]
    return answers


RULES = [
    DetectionRule(nms=nms, nms_share=share, nms_per_class=per_class, threshold=threshold, nms_iou=iou)
    for (nms, share, per_class), threshold, iou in zip(
        itertools.product(("turned", "bounds", "base"), (False, True), (False, True)),
        itertools.cycle((0.5, 0.0, 0.7)),
        itertools.cycle((0.25, 0.1, 0.4, 0.05)),
        strict=False,
    )
] + [
    DetectionRule(),
    DetectionRule(nms=None, threshold=0.8, top_k=4),
    DetectionRule(nms=None, scores="objectness", threshold=0.4, min_objectness=0.6),
    DetectionRule(scores="per_class", threshold=0.3, top_k=50),
    DetectionRule(scores="objectness", top_k=1, threshold=0.0),
    DetectionRule(min_points=3, threshold=0.0, nms_iou=0.9),
    DetectionRule(min_points=1000, threshold=0.0),
    PUBLISHED_RULE,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.nms} {rule.scores}")
def test_answers_are_those_of_plain_loops(rule):
    boxes, scores, objectness, points = drawn()
    number, labels, values = select_detections(boxes, scores, objectness, rule, points)
    expected = by_loops(boxes, scores, objectness, points, rule)
    assert 0 < len(expected) < 16 * 3 and list(zip(number.tolist(), labels.tolist(), strict=True)) == [
        answer[:2] for answer in expected
    ]
    assert values.tolist() == pytest.approx([answer[2] for answer in expected], rel=1e-5)


def test_limits_themselves_are_kept_or_left_out():
    boxes = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0], [5.0, 0, 0, 1, 1, 1, 0]])
    scores, objectness = torch.tensor([[0.25, 0.5], [0.5, 0.25]]), torch.tensor([0.25, 0.75])
    assert select_detections(boxes, scores, objectness, DetectionRule(threshold=0.5))[0].tolist() == [0, 1]
    strict = DetectionRule(threshold=0.0, min_objectness=0.25)
    assert select_detections(boxes, scores, objectness, strict)[0].tolist() == [1]
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0]])
    most = select_detections(boxes, scores, objectness, DetectionRule(threshold=0.0, min_points=2), points)
    assert [part.tolist() for part in most] == [[0], [1], [0.5]]
    for rule in (DetectionRule(), PUBLISHED_RULE):
        none = select_detections(boxes[:0], scores[:0], objectness[:0], rule, points)
        assert [part.tolist() for part in none] == [[], [], []]
    overlaps = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert non_maximum_suppression(overlaps, torch.tensor([0.3, 0.4]), 0.5).tolist() == [True, True]
    assert non_maximum_suppression(overlaps, torch.tensor([0.3, 0.4]), 0.49).tolist() == [False, True]
    # Of equal scores the first counts more.
    assert non_maximum_suppression(overlaps, torch.tensor([0.3, 0.3]), 0.0).tolist() == [True, False]


def test_boxes_without_a_volume_have_no_overlap():
    flat = torch.tensor([[0.0, 0, 0, 1, 1, 0, 0.3], [0, 0, 0, 1, 1, 0, 0.3]])
    assert box_iou(flat, flat).tolist() == [0, 0]
    far = torch.tensor([1000.0, 0, 0, 1, 1, 1, 0])
    near = torch.tensor([0.0, 0, 0, 1, 1, 1, 0])
    # The box around both is 1001 long, of which they fill 2.
    assert float(box_giou(near, far)) == pytest.approx(2 / 1001 - 1, abs=1e-5)


def test_directions_that_do_not_point_up_are_refused():
    for wrong in ((0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)):
        with raises(ValueError, naming=f"up={wrong}"):
            level_rotation(wrong)


@pytest.mark.parametrize("axis", ["z", "y", "x", "-z", "-y", "-x"])
def test_a_direction_near_an_axis_is_turned_to_z(axis):
    place, sign = "xyz".index(axis[-1]), -1 if axis.startswith("-") else 1
    exact = np.zeros(3)
    exact[place] = sign
    plain = upright_rotation(axis)
    np.testing.assert_allclose(plain @ exact, [0, 0, 1])
    assert np.linalg.det(plain) == pytest.approx(1) and np.abs(plain).sum() == 3
    tilted = exact + np.array([0.1, -0.2, 0.15]) * (np.arange(3) != place)
    rotation = upright_rotation(axis, tilted)
    np.testing.assert_allclose(rotation @ tilted, [0, 0, np.linalg.norm(tilted)], atol=1e-12)
    np.testing.assert_allclose(upright_rotation(axis, exact * 7), plain, atol=1e-12)
    # The smallest turn after that of the axis.
    np.testing.assert_allclose(rotation @ plain.T, level_rotation(plain @ tilted), atol=1e-12)
