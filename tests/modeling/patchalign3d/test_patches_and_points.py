"""Scores of patches carried to points, targets of patches, and what the models refuse."""

import numpy as np
import pytest
import torch

from hf_any3d.evaluation.part_names import named_part_iou
from hf_any3d.modeling.patchalign3d import (
    PatchAlign3DForPreTraining,
    PatchAlign3DForZeroShotPointCloudSegmentation,
    PatchAlign3DModel,
)
from hf_any3d.modeling.patchalign3d.modeling_patchalign3d import (
    carry_to_points,
    patch_majorities,
)
from hf_any3d.modeling.point_encoders.part_texts import label_masks
from tests.common.case import varied_clouds
from tests.modeling.aligned_case import AlignedCase
from tests.tiny_aligned import FEATURES, tiny_aligned

TEXT = AlignedCase("patchalign3d_text")


@pytest.fixture(scope="module")
def model():
    return tiny_aligned(PatchAlign3DForZeroShotPointCloudSegmentation)


def test_points_get_the_mean_of_their_patches_or_zero():
    scores = torch.tensor([[[1.0, 0.0], [3.0, 2.0]]])
    index = torch.tensor([[[0, 1], [1, 2]]])
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]]])
    centers = points[:, [0, 2]]
    mean = carry_to_points(scores, points, centers, index, "membership")
    assert mean.tolist() == [[[1, 0], [2, 1], [3, 2], [0, 0]]]
    nearest = carry_to_points(scores, points, centers, index, "nearest")
    assert nearest.tolist() == [[[1, 0], [1, 0], [3, 2], [3, 2]]]  # of equally near patches the first


def test_majorities_agree():
    labels = TEXT.expected["majority.point_labels"].long()[None]
    index = TEXT.expected["majority.patch_index"].long()[None]
    masks = label_masks(torch.where(labels < 0, -100, labels), int(labels.max()) + 1)
    expected = TEXT.expected["majority.expected"].long()
    assert torch.equal(patch_majorities(masks, index)[0], expected)
    nothing = torch.zeros_like(masks)
    assert (patch_majorities(nothing, index) == -1).all()


def test_both_forms_of_iou_agree():
    metrics = TEXT.manifest["metrics"]
    predicted, true = (TEXT.expected[f"metrics.{name}"].long().numpy() for name in ("prediction", "target"))
    for form, key in (("shapenetpart", "shapenetpart"), ("faust", "generic_5_labels")):
        counts = (4, 4, 3) if form == "shapenetpart" else (5, 5, 5)
        own = [named_part_iou(*row, form) for row in zip(predicted, true, counts, strict=True)]
        np.testing.assert_allclose(own, metrics[key]["inst_ious"], atol=1e-6)
    assert (predicted == true).mean() == pytest.approx(metrics["shapenetpart"]["acc"])


def test_positions_are_those_of_the_input_with_y_and_z_exchanged_inside():
    inside = tiny_aligned(PatchAlign3DModel)
    outside = tiny_aligned(PatchAlign3DModel, exchange_axes=False)
    clouds = varied_clouds(2)
    with torch.no_grad():
        one, other = inside(clouds), outside(clouds[..., [0, 2, 1]])
    assert torch.equal(one.last_hidden_state, other.last_hidden_state)
    assert torch.equal(one.centers[..., [0, 2, 1]], other.centers)
    own = torch.gather(clouds, 1, one.center_index.unsqueeze(-1).expand(-1, -1, 3))
    assert torch.equal(one.centers, own) and torch.equal(one.patch_index[..., 0], one.center_index)
    assert (one.last_hidden_state - inside(clouds[..., [0, 2, 1]]).last_hidden_state).abs().max() > 1e-3


def test_numbered_labels_are_masks_that_do_not_overlap(model):
    clouds, texts = varied_clouds(2), torch.randn(4, FEATURES)
    labels = torch.randint(0, 3, clouds.shape[:2])
    labels[:, :5] = -100
    with torch.no_grad():
        one = model(clouds, text_embeds=texts, labels=labels)
        masks = torch.stack([labels == number for number in range(4)], dim=1)
        other = model(clouds, text_embeds=texts.expand(2, -1, -1), labels=masks)
        # The last text names no point.
        counted = torch.tensor([True, True, True, False]).expand(2, -1)
        third = model(clouds, text_embeds=texts, labels=labels, text_mask=counted)
        every = model(clouds, text_embeds=texts, labels=labels, text_mask=torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.loss, third.loss)
    assert one.patch_accuracy == third.patch_accuracy and not torch.isclose(one.loss, every.loss)
    torch.testing.assert_close(one.logits, other.logits)


def test_clouds_without_labels_do_not_count(model):
    clouds, texts = varied_clouds(2), torch.randn(3, FEATURES)
    labels = torch.zeros(clouds.shape[:2], dtype=torch.long)
    labels[0] = -100
    alone = model(clouds[1:], text_embeds=texts, labels=labels[1:]).loss
    torch.testing.assert_close(model(clouds, text_embeds=texts, labels=labels).loss, alone)
    none = model(clouds, text_embeds=texts, labels=torch.full_like(labels, -100))
    none.loss.backward()
    assert none.loss == 0 and none.patch_accuracy.isnan()
    model.zero_grad()


@pytest.mark.parametrize(
    ("trained", "names"),
    [
        ("last_block", ("blocks.layers.2.", "norm.", "patch_encoder.project.", "class_token.", "projection.")),
        ("projection", ("projection.",)),
    ],
)
def test_one_setting_freezes_as_published(trained, names):
    for model_class in (PatchAlign3DForZeroShotPointCloudSegmentation, PatchAlign3DForPreTraining):
        frozen = tiny_aligned(model_class, trained=trained)
        wanted = tuple(f"patchalign3d.{name}" for name in names) + ("alignment.",)
        own = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
        assert own == {name for name, _ in frozen.named_parameters() if name.startswith(wanted)}
