"""Encoders that are aligned with texts, their heads and their settings, one by one."""

import re

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.modeling.openshape import OpenShapeForZeroShotPointCloudClassification
from hf_any3d.modeling.patchalign3d import PatchAlign3DForZeroShotPointCloudSegmentation
from hf_any3d.modeling.patchalign3d.modeling_patchalign3d import (
    part_loss,
    patch_accuracy,
    patch_majorities,
    patch_shares,
)
from hf_any3d.modeling.point_encoders.part_texts import label_masks
from hf_any3d.modeling.uni3d import Uni3DForZeroShotPointCloudClassification
from tests.common.case import varied_clouds
from tests.tiny_aligned import FEATURES, tiny_aligned

ZERO_SHOT = (OpenShapeForZeroShotPointCloudClassification, Uni3DForZeroShotPointCloudClassification)


def test_texts_need_a_known_tower():
    for name, shown in ((None, "a text tower that its config does not name"), ("OpenCLIP", "OpenCLIP")):
        model = tiny_aligned(ZERO_SHOT[0], aligned_with=name)
        message = f"the encoder is aligned with {shown}, which cannot be opened here; give text_embeds"
        with pytest.raises(ValueError, match=message):
            model.encode_labels(["chair"])


@torch.no_grad()
def test_patches_of_parts_are_scored_by_the_config_and_the_call():
    model = tiny_aligned(PatchAlign3DForZeroShotPointCloudSegmentation, temperature=0.25, patch_to_point="membership")
    clouds, texts = varied_clouds(2), 3 * torch.randn(3, FEATURES)
    output = model(clouds, text_embeds=texts)
    embeds = model.get_patch_features(clouds)
    torch.testing.assert_close(output.patch_embeds, embeds)
    torch.testing.assert_close(output.patch_logits, 4 * embeds @ normalize(texts, dim=-1).T)
    base = model.patchalign3d(clouds)
    sums, counts = torch.zeros(2, 48, 3), torch.zeros(2, 48, 1)
    for cloud, patch in ((cloud, patch) for cloud in range(2) for patch in range(12)):
        for point in base.patch_index[cloud, patch]:
            sums[cloud, point] += output.patch_logits[cloud, patch]
            counts[cloud, point] += 1
    torch.testing.assert_close(output.logits, sums / counts.clamp(min=1))
    nearest = torch.cdist(clouds, base.centers).argmin(dim=2)
    expected = torch.stack([scores[own] for scores, own in zip(output.patch_logits, nearest, strict=True)])
    torch.testing.assert_close(model(clouds, text_embeds=texts, patch_to_point="nearest").logits, expected)
    assert output.loss is output.patch_accuracy is None
    alone = model(clouds, output_hidden_states=True)
    assert alone.logits is alone.text_embeds is None and len(alone.hidden_states) == 4
    torch.testing.assert_close(alone.patch_embeds, embeds)
    # The scale of the loss is learned, that of the scores is not.
    labels = torch.arange(48).expand(2, -1) % 3
    before = model(clouds, text_embeds=texts, labels=labels)
    masks, cosines = label_masks(labels, 3), output.patch_logits / 4
    counted = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(before.loss, part_loss(4 * cosines, patch_shares(masks, base.patch_index), counted))
    majorities = patch_majorities(masks, base.patch_index)
    assert before.patch_accuracy == patch_accuracy(cosines, majorities, counted)
    model.alignment.logit_scale.fill_(9.0)
    after = model(clouds, text_embeds=texts, labels=labels)
    assert torch.equal(before.logits, after.logits) and not torch.isclose(before.loss, after.loss)
    assert model.alignment(torch.ones(1, 2))[1].item() == 100


def test_labels_are_numbers_of_texts_or_none():
    labels = torch.tensor([[0, 2, -100], [1, -100, 2]])
    masks = label_masks(labels, 3)
    assert masks.shape == (2, 3, 3) and masks.dtype == torch.bool
    assert masks.nonzero().tolist() == [[0, 0, 0], [0, 2, 1], [1, 1, 0], [1, 2, 2]]
    expected = "expected 0 to 1, one for each text, or -100 for points without a label"
    for wrong, number in ((labels, 2), (labels.clamp(max=1) - (labels == 0) * 2, -2)):
        with pytest.raises(ValueError, match=re.escape(f"labels has {number}; {expected}")):
            label_masks(wrong, 2)
