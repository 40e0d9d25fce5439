"""Overlaps of turned boxes: against stored values of the released program, exact clipping, and each other."""

import math

import pytest
import torch

from hf_any3d.modeling.layers.boxes import (
    base_intersection,
    box_corners,
    box_giou,
    box_iou,
    non_maximum_suppression,
    points_in_boxes,
    published_giou,
    wrap_heading,
)
from tests.modeling.aligned_case import AlignedCase


@pytest.fixture(scope="module")
def stored():
    """The case, and its two boxes of each pair, with headings counterclockwise."""
    case = AlignedCase("detr3d_giou")
    sign = torch.tensor([1.0, 1, 1, 1, 1, 1, -1]).double()
    return case, *(case.expected[name].double() * sign for name in ("box1", "box2"))


def test_corners_are_those_of_the_released_program(stored):
    case, first, _ = stored
    x, y, z = case.expected["corners1"].double().unbind(dim=-1)
    torch.testing.assert_close(box_corners(first), torch.stack([x, z, -y], dim=-1), atol=1e-6, rtol=0)


def test_sound_overlaps_are_exact(stored):
    case, first, second = stored
    torch.testing.assert_close(box_iou(first, second), case.expected["sound_iou"].double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(box_giou(first, second), case.expected["sound_giou"].double(), atol=1e-6, rtol=0)
    single = box_giou(first.float(), second.float())
    torch.testing.assert_close(single, case.expected["sound_giou"], atol=2e-5, rtol=0)


def test_published_overlaps_are_those_of_the_released_program(stored):
    case, first, second = stored
    found = published_giou(first, second, True)
    compared = [n for n in range(len(found)) if n not in case.manifest["rounding_dependent"]]
    expected = case.expected["giou"].double()
    torch.testing.assert_close(found[compared], expected[compared], atol=2e-5, rtol=0)
    along = published_giou(first, second, False)
    torch.testing.assert_close(along, case.expected["giou_axis_aligned"].double(), atol=2e-5, rtol=1e-3)
    lost = [n for n in case.manifest["intersection_lost_by_the_shortcut"] if n in compared]
    gained = (box_giou(first, second) - found)[lost]
    assert gained.min() > -1e-6 and (gained > 0.01).sum() >= 8


def test_gradients_are_those_of_the_released_program(stored):
    case, first, second = stored
    first = first.clone().requires_grad_()
    published_giou(first, second, True).sum().backward()
    compared = [n for n, kind in enumerate(case.manifest["kinds"]) if kind.startswith(("random", "disjoint"))]
    for name, own in (("grad_center", first.grad[:, :3]), ("grad_size", first.grad[:, 3:6])):
        torch.testing.assert_close(own[compared], case.expected[name].double()[compared], atol=1e-4, rtol=1e-3)
    turned = [n for n in compared if case.manifest["kinds"][n] == "random"]
    expected = case.expected["grad_angle"].double()[turned]
    torch.testing.assert_close(-first.grad[turned, 6], expected, atol=1e-4, rtol=1e-3)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 3, generator=generator) * 2 - 1
    sizes = 0.05 + 2 * torch.rand(count, 3, generator=generator)
    headings = (torch.rand(count, 1, generator=generator) * 2 - 1) * math.pi
    return torch.cat([places, sizes, headings], dim=1).double()


def test_equal_and_nearly_equal_boxes_overlap_completely():
    boxes = random_boxes(500, 2)
    torch.testing.assert_close(box_iou(boxes, boxes), torch.ones(500).double())
    for amount in (1e-12, 1e-8, 1e-5):
        nearly = boxes + amount * torch.randn(boxes.shape, generator=torch.Generator().manual_seed(3)).double()
        assert (box_iou(boxes, nearly) - 1).abs().max() < 1000 * amount + 1e-9
        assert (box_iou(boxes.float(), nearly.float()) - 1).abs().max() < 1000 * amount + 1e-4
    nearly = boxes.float().requires_grad_()
    box_giou(nearly, boxes.float()).sum().backward()
    assert nearly.grad is not None and nearly.grad.isfinite().all()


@pytest.mark.slow
def test_gradients_of_sound_overlaps_are_those_of_differences():
    first, second = random_boxes(4, 4).requires_grad_(), random_boxes(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(box_giou, (first, second), eps=1e-7, atol=1e-5)


def test_points_inside_are_found_in_a_turned_box():
    box = torch.tensor([[1.0, 1, 1, 4, 2, 2, math.pi / 2]])
    points = torch.tensor([[1.0, 2.9, 1], [2.9, 1, 1], [1, 1, 2], [1, 1, 2.1], [1, 3, 2], [2, -1, 0]])
    assert points_in_boxes(points, box).tolist() == [[True, False, True, False, True, True]]


def test_headings_are_wrapped_counterclockwise():
    headings = torch.tensor([0.0, math.pi, -math.pi / 2, 3 * math.pi / 2, 5.0, -4.0])
    expected = [0, math.pi, -math.pi / 2, -math.pi / 2, 5 - 2 * math.pi, 2 * math.pi - 4]
    assert wrap_heading(headings).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_suppressed_box_suppresses_no_other():
    overlaps = torch.tensor([[1.0, 0.6, 0], [0.6, 1, 0.6], [0, 0.6, 1]])
    assert non_maximum_suppression(overlaps, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [True, False, True]


def test_overlaps_of_ten_thousand_turned_pairs_are_those_of_shapely():
    shapely = pytest.importorskip("shapely", reason="shapely is not installed; make install does it")
    first, second = random_boxes(10_000, 0), random_boxes(10_000, 1)
    # Some along the axes, and some that share a heading.
    first[::10, 6], second[::10, 6] = 0, math.pi / 2
    second[5::10, 6] = first[5::10, 6]
    bases = [shapely.polygons(box_corners(boxes)[:, :4, :2].numpy()) for boxes in (first, second)]
    areas = torch.from_numpy(shapely.area(shapely.intersection(*bases)))
    assert (areas > 0.1).double().mean() > 0.3 and (areas == 0).double().mean() > 0.05
    for one, other in ((first, second), (second, first)):
        torch.testing.assert_close(base_intersection(one, other), areas, rtol=0, atol=1e-9)
    torch.testing.assert_close(base_intersection(first.float(), second.float()).double(), areas, rtol=0, atol=1e-5)
    low = torch.maximum(first[:, 2] - first[:, 5] / 2, second[:, 2] - second[:, 5] / 2)
    high = torch.minimum(first[:, 2] + first[:, 5] / 2, second[:, 2] + second[:, 5] / 2)
    common = areas * (high - low).clamp_min(0)
    expected = common / (first[:, 3:6].prod(dim=1) + second[:, 3:6].prod(dim=1) - common)
    torch.testing.assert_close(box_iou(first, second), expected, rtol=0, atol=1e-6)
