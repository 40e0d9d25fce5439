"""3DETR beyond the released program: ragged batches, small and flat clouds, wrong objects, training without boxes."""

import math

import pytest
import torch
from torch import nn

from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection, Detr3DModel
from tests.common.case import relative_difference, varied_clouds
from tests.errors import raises
from tests.tiny_detr3d import objects, tiny_detr3d


@pytest.fixture(scope="module")
def model():
    """A detector whose norms have seen clouds, in eval mode."""
    made = tiny_detr3d(Detr3DForPointCloudObjectDetection)
    made.train()
    with torch.no_grad():
        for seed in range(3):
            made(varied_clouds(8, seed=seed))
    return made.eval()


@pytest.mark.parametrize("order", ["nearest", "first"])
@pytest.mark.parametrize("radii", [(0.8, 1.2), None])
@torch.no_grad()
def test_a_cloud_has_the_same_answer_alone_and_in_a_ragged_batch(radii, order):
    sizes = {"attention_radii": radii, "neighbor_order": order}
    made = tiny_detr3d(Detr3DForPointCloudObjectDetection, **sizes)
    clouds = [varied_clouds(1, count, seed=count) for count in (60, 48, 30, 17, 5)]
    longest = 60
    padded = torch.full((len(clouds), longest, 3), torch.nan)
    mask = torch.zeros(len(clouds), longest, dtype=torch.bool)
    for row, cloud in enumerate(clouds):
        padded[row, : cloud.shape[1]], mask[row, : cloud.shape[1]] = cloud[0], True
    together = made(padded, points_mask=mask)
    assert together.encoder_mask.sum(dim=1).tolist() == ([24, 24, 24, 17, 5] if radii is None else [12, 12, 12, 12, 5])
    for row, cloud in enumerate(clouds):
        alone = made(cloud)
        assert relative_difference(together.logits[row], alone.logits[0]) < 1e-4
        torch.testing.assert_close(together.pred_boxes[row], alone.pred_boxes[0], atol=1e-4, rtol=1e-4)
    everything = made(clouds[0], points_mask=torch.ones(1, longest, dtype=torch.bool))
    assert torch.equal(everything.logits, made(clouds[0]).logits)


def test_padding_of_a_batch_is_checked(model):
    cloud = varied_clouds(2)
    with raises(ValueError, naming="points_mask"):
        model(cloud, points_mask=torch.ones(2, 5))
    with raises(ValueError, naming="points_mask"):
        model(cloud, points_mask=torch.tensor([[True], [False]]).expand(2, 48))


@torch.no_grad()
def test_boxes_are_in_the_frame_of_the_cloud(model):
    cloud = varied_clouds(2)
    here = model(cloud).pred_boxes
    shift = torch.tensor([3.0, -2.0, 0.5])
    there = model(cloud + shift).pred_boxes
    torch.testing.assert_close(there[..., :3], here[..., :3] + shift, atol=1e-3, rtol=0)
    torch.testing.assert_close(there[..., 3:6], here[..., 3:6], atol=1e-3, rtol=0)
    extent = cloud.amax(dim=1) - cloud.amin(dim=1)
    assert (here[..., 3:6] <= extent.unsqueeze(1) + 1e-6).all() and (here[..., 3:6] > 0).all()
    assert here[..., 6].abs().max() <= math.pi


@torch.no_grad()
def test_boxes_along_the_axes_have_heading_0():
    along = tiny_detr3d(Detr3DForPointCloudObjectDetection, num_heading_bins=1)
    along.heading_residual_head.out.bias.fill_(-0.5)
    heading = along(varied_clouds(2)).pred_boxes[..., 6]
    assert (heading == 0).all() and not heading.signbit().any()  # -0 would be printed as such


@torch.no_grad()
def test_flat_clouds_have_finite_boxes(model):
    flat = varied_clouds(2)
    flat[..., 2] = 1.0
    output = model(flat)
    assert output.pred_boxes.isfinite().all() and output.logits.isfinite().all()
    assert (output.pred_boxes[..., 5] <= model.config.min_extent).all()
    point = model(torch.ones(1, 40, 3))
    assert point.pred_boxes.isfinite().all()


def test_a_batch_without_objects_trains_all_heads():
    made = tiny_detr3d(Detr3DForPointCloudObjectDetection).train()
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 7)}
    output = made(varied_clouds(2), labels=[empty, empty])
    output.loss.backward()
    # Otherwise several processes would wait for each other's gradients forever.
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert output.loss_dict["loss_center"] == 0 and output.loss_dict["loss_class"] > 0


@pytest.mark.slow
def test_training_finds_the_boxes_of_two_clouds():
    torch.manual_seed(0)
    made = tiny_detr3d(
        Detr3DForPointCloudObjectDetection, dropout=0.0, encoder_dropout=0.0, head_dropout=0.0, num_heading_bins=4
    )
    clouds, labels = varied_clouds(2, seed=5), [objects(3)[0], objects(3)[2]]
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    losses = []
    made.train()
    for _ in range(30):
        optimizer.zero_grad()
        output = made(clouds, labels=labels)
        output.loss.backward()
        nn.utils.clip_grad_norm_(made.parameters(), 0.5)
        optimizer.step()
        losses.append(float(output.loss))
    assert losses[-1] < 0.7 * losses[0]
    assert len(output.auxiliary_outputs) == 1
    assert output.auxiliary_outputs[0]["pred_boxes"].shape == output.pred_boxes.shape


def wrong(**changes):
    box = torch.tensor([0.0, 0, 0, 1, 1, 1, 0])
    for place, value in changes.items():
        if place != "label":
            box[{"center": 0, "size": 4, "heading": 6}[place]] = value
    return {
        "class_labels": torch.tensor([0, changes.get("label", 1)]),
        "boxes": torch.stack([torch.tensor([1.0, 1, 1, 1, 1, 1, 0]), box]),
    }


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (wrong(size=0.0), r"labels\[1\]: box 1 is \[.*\] of class 1; expected sizes above 0"),
        (wrong(size=-1.0), "expected sizes above 0"),
        (wrong(center=math.nan), "expected finite numbers"),
        (wrong(heading=90.0), "expected a heading in radians"),
        (wrong(label=3), "expected a class from 0 to 2"),
        (wrong(label=-1), "expected a class from 0 to 2"),
        ({"class_labels": torch.zeros(2).long(), "boxes": torch.ones(1, 7)}, r"boxes \(1, 7\); expected"),
        ({"class_labels": torch.zeros(1), "boxes": torch.ones(1, 7)}, "whole numbers"),
        (
            {"class_labels": torch.zeros(9).long(), "boxes": torch.ones(9, 7)},
            r"labels\[1\]: 9 boxes; expected at most num_queries=8",
        ),
    ],
)
def test_wrong_objects_are_named(model, labels, match):
    with pytest.raises(ValueError, match=match):
        model(varied_clouds(2), labels=[objects(1)[0], labels])


def test_objects_of_each_cloud_are_expected(model):
    with pytest.raises(ValueError):
        model(varied_clouds(2), labels=objects(1))
    along = tiny_detr3d(Detr3DForPointCloudObjectDetection, num_heading_bins=1)
    with raises(ValueError, naming="num_heading_bins"):
        along(varied_clouds(1), labels=[wrong(heading=0.5)])
    assert along(varied_clouds(1), labels=[wrong()]).loss.isfinite()


def test_focal_loss_lowers_the_weight_of_classes_that_are_found():
    clouds, labels = varied_clouds(2), objects(2)
    losses = [
        tiny_detr3d(Detr3DForPointCloudObjectDetection, focal_gamma=gamma)(clouds, labels=labels).loss_dict[
            "loss_class"
        ]
        for gamma in (0.0, 2.0)
    ]
    assert 0 < losses[1] < 0.8 * losses[0]


@pytest.mark.slow
def test_directions_of_positions_stay_in_full_precision(tmp_path):
    made = tiny_detr3d(Detr3DModel)
    frequencies = made.positions.frequencies.clone()
    made.save_pretrained(tmp_path)
    for dtype in (torch.float16, torch.bfloat16):
        for half in (tiny_detr3d(Detr3DModel).to(dtype), Detr3DModel.from_pretrained(tmp_path, dtype=dtype)):
            assert half.dtype == dtype and torch.equal(half.positions.frequencies, frequencies)
