"""Encoders that are aligned with texts, their heads and their settings, one by one."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from hf_any3d.modeling.openshape import (
    OpenShapeForPointCloudClassification,
    OpenShapeForPointCloudSegmentation,
    OpenShapeForZeroShotPointCloudClassification,
)
from hf_any3d.modeling.openshape.modeling_openshape import BallPatchEncoder
from hf_any3d.modeling.patchalign3d import (
    PatchAlign3DForPreTraining,
    PatchAlign3DForZeroShotPointCloudSegmentation,
)
from hf_any3d.modeling.patchalign3d.modeling_patchalign3d import (
    part_loss,
    patch_accuracy,
    patch_majorities,
    patch_shares,
)
from hf_any3d.modeling.point_encoders.part_texts import label_masks
from hf_any3d.modeling.uni3d import (
    Uni3DForPointCloudSegmentation,
    Uni3DForZeroShotPointCloudClassification,
)
from tests.common.case import varied_clouds
from tests.errors import raises
from tests.tiny_aligned import FEATURES, tiny_aligned

ZERO_SHOT = (OpenShapeForZeroShotPointCloudClassification, Uni3DForZeroShotPointCloudClassification)


def points_of(model: nn.Module, batch: int = 3) -> torch.Tensor:
    return varied_clouds(batch, channels=model.config.in_channels)


def linear(model: nn.Module) -> dict[str, tuple[int, int, bool]]:
    return {
        name: (layer.in_features, layer.out_features, layer.bias is not None)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }


@torch.no_grad()
def test_a_classifier_reads_features_and_a_segmenter_tokens_near_each_point():
    model = tiny_aligned(OpenShapeForPointCloudClassification, head_widths=(10, 6), head_dropout=0.2)
    assert linear(model.classifier) == {
        "hidden.0": (FEATURES, 10, True),
        "hidden.1": (10, 6, True),
        "out": (6, 3, True),
    }
    assert [layer.p for layer in model.classifier.dropouts] == [0.2, 0.2]
    points = points_of(model)
    output = model(points, labels=torch.tensor([0, 2, 1]), output_hidden_states=True)
    torch.testing.assert_close(output.logits, model.classifier(model.openshape(points).pooler_output))
    assert len(output.hidden_states) == 4 and output.loss > 0 and model(points).loss is None
    for model_class in (OpenShapeForPointCloudSegmentation, Uni3DForPointCloudSegmentation):
        model = tiny_aligned(model_class, segmentation_head_dropout=(0.3, 0.1))
        assert model.segmenter.dropout.p == 0.3 and [part.p for part in model.segmenter.head.dropouts] == [0.1]
        points, base = points_of(model), model.base_model
        states = base(points, output_hidden_states=True)
        tokens = torch.cat([base.norm(states.hidden_states[number + 1])[:, 1:] for number in (0, 2)], dim=-1)
        near = model.propagation(points[..., :3], states.centers, tokens)
        clouds = torch.cat([tokens.amax(dim=1), tokens.mean(dim=1), states.pooler_output], dim=-1)
        torch.testing.assert_close(model(points).logits, model.segmenter(near, clouds))


@torch.no_grad()
@pytest.mark.parametrize("model_class", ZERO_SHOT)
def test_clouds_are_compared_with_texts_by_their_cosines(model_class):
    model, texts = tiny_aligned(model_class, temperature=0.2), 5 * torch.randn(4, FEATURES)
    points = points_of(model)
    output = model(points, text_embeds=texts)
    embeds, words = normalize(model.base_model(points).pooler_output, dim=-1), normalize(texts, dim=-1)
    torch.testing.assert_close(output.logits_per_point_cloud, 5 * embeds @ words.T)
    assert torch.equal(output.logits_per_text, output.logits_per_point_cloud.T) and output.loss is None
    torch.testing.assert_close(output.point_embeds, embeds)
    torch.testing.assert_close(output.text_embeds, words)
    torch.testing.assert_close(model.get_point_features(points), embeds)
    alone = model(points, output_hidden_states=True)
    assert alone.logits_per_point_cloud is alone.text_embeds is alone.loss is None and len(alone.hidden_states) == 4
    # Only Uni3D bounds its scale.
    model.alignment.logit_scale.fill_(6.0)
    scale = 100.0 if model_class is Uni3DForZeroShotPointCloudClassification else math.exp(6)
    torch.testing.assert_close(model(points, text_embeds=texts).logits_per_point_cloud, scale * embeds @ words.T)


@torch.no_grad()
def test_a_loss_is_returned_with_labels_or_on_request():
    model, texts = tiny_aligned(ZERO_SHOT[0]), torch.randn(3, FEATURES)
    points, labels = points_of(model), torch.tensor([4, 2, 4])
    logits = model(points, text_embeds=texts).logits_per_point_cloud
    pairs = torch.arange(3)
    plain = (nn.functional.cross_entropy(logits, pairs) + nn.functional.cross_entropy(logits.T, pairs)) / 2
    torch.testing.assert_close(model(points, text_embeds=texts, return_loss=True).loss, plain)
    equal = (labels[:, None] == labels).float()
    targets = equal / equal.sum(dim=1, keepdim=True)
    shared = (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(model(points, text_embeds=texts, labels=labels).loss, shared)
    assert model(points, text_embeds=texts, labels=labels, return_loss=False).loss is None
    fewer = model(points, text_embeds=texts[:2], labels=labels, text_labels=torch.tensor([4, 2]))
    rows = nn.functional.cross_entropy(logits[:, :2], torch.tensor([0, 1, 0]))
    columns = nn.functional.cross_entropy(logits[:, :2].T, torch.tensor([[0.5, 0, 0.5], [0, 1, 0]]))
    torch.testing.assert_close(fewer.loss, (rows + columns) / 2)
    for given, message in (
        ({"return_loss": True}, "input_ids is missing"),
        ({"text_embeds": texts[:2], "return_loss": True}, r"expected \(3,\) and \(2,\)"),
        (
            {"text_embeds": texts, "labels": labels[:2]},
            r"labels have shape \(2,\) and text_labels \(2,\); expected \(3,\) and \(3,\)",
        ),
        ({"text_embeds": texts[:, :7]}, rf"text_embeds has shape \(3, 7\); expected \(texts, {FEATURES}\)"),
        ({"text_embeds": texts[0]}, rf"text_embeds has shape \({FEATURES},\); expected \(texts, {FEATURES}\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(points, **given)


def test_texts_need_a_known_tower():
    for name, shown in ((None, "a text tower that its config does not name"), ("OpenCLIP", "OpenCLIP")):
        model = tiny_aligned(ZERO_SHOT[0], aligned_with=name)
        message = f"the encoder is aligned with {shown}, which cannot be opened here; give text_embeds"
        with pytest.raises(ValueError, match=message):
            model.encode_labels(["chair"])


@pytest.mark.parametrize(
    ("grad", "training", "dtype", "hook"),
    [
        (False, False, torch.float32, False),
        (False, False, torch.float64, False),
        (False, False, torch.bfloat16, False),
        (True, False, torch.float32, False),
        (False, True, torch.float32, False),
        (False, False, torch.float32, True),
    ],
)
def test_ball_patches_are_encoded_as_by_plain_layers_and_norms(grad, training, dtype, hook):
    torch.manual_seed(0)
    encoder = BallPatchEncoder(5, (8, 6)).to(dtype).train(training)
    for norm in encoder.norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.uniform_(0.5, 1.5)
    if hook:
        for layer in encoder.layers:
            layer.register_forward_hook(lambda *_: None)
    rows = torch.randn(2, 3, 4, 5, dtype=dtype)
    expected = rows.flatten(0, 2)
    with torch.no_grad():
        for layer, norm in zip(encoder.layers, encoder.norms, strict=True):
            expected = layer(expected)
            mean, var = (
                (expected.mean(dim=0), expected.var(dim=0, correction=0))
                if training
                else (norm.running_mean, norm.running_var)
            )
            expected = ((expected - mean) * (var + norm.eps).rsqrt() * norm.weight + norm.bias).relu()
    expected = expected.view(2, 3, 4, 6).amax(dim=2)
    with torch.set_grad_enabled(grad):
        found = encoder(rows)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert found.requires_grad is grad


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


@torch.no_grad()
def test_distillation_compares_each_patch_with_the_nearest_target():
    model = tiny_aligned(PatchAlign3DForPreTraining)
    clouds, targets, centers = varied_clouds(2), torch.randn(2, 5, FEATURES), torch.rand(2, 5, 3)
    output = model(clouds, targets, centers)
    base = model.patchalign3d(clouds)
    distances = torch.cdist(base.centers, centers)
    own = torch.stack([rows[place] for rows, place in zip(targets, distances.argmin(dim=2), strict=True)])
    predicted = model.patchalign3d.projection(base.last_hidden_state[:, 1:])
    torch.testing.assert_close(output.predictions, predicted)
    torch.testing.assert_close(output.loss, (1 - cosine_similarity(predicted, own, dim=-1)).mean())
    torch.testing.assert_close(output.center_distance, distances.amin(dim=2).mean(), rtol=1e-4, atol=1e-5)
    for given in ({}, {"target_features": targets, "target_centers": centers, "return_loss": False}):
        without = model(clouds, **given)
        assert without.loss is without.center_distance is None and torch.equal(without.predictions, predicted)
    with raises(ValueError, naming="channels >= 3"):
        model(clouds, targets, centers[..., :2])
    for given, missing in (
        ({"target_features": targets}, "target_centers"),
        ({"target_centers": centers}, "target_features"),
    ):
        with raises(ValueError, naming=f"{missing} is missing"):
            model(clouds, **given)


def test_labels_are_numbers_of_texts_or_none():
    labels = torch.tensor([[0, 2, -100], [1, -100, 2]])
    masks = label_masks(labels, 3)
    assert masks.shape == (2, 3, 3) and masks.dtype == torch.bool
    assert masks.nonzero().tolist() == [[0, 0, 0], [0, 2, 1], [1, 1, 0], [1, 2, 2]]
    expected = "expected 0 to 1, one for each text, or -100 for points without a label"
    for wrong, number in ((labels, 2), (labels.clamp(max=1) - (labels == 0) * 2, -2)):
        with pytest.raises(ValueError, match=re.escape(f"labels has {number}; {expected}")):
            label_masks(wrong, 2)


class Tower:
    """Embeds a text as a vector of its own, and remembers the texts."""

    def embed(self, texts, device):
        self.texts, self.device = texts, device
        generator = torch.Generator().manual_seed(0)
        return normalize(torch.randn(len(texts), FEATURES, generator=generator), dim=-1)


def test_labels_are_embedded_with_the_templates_of_the_config_for_parts_and_categories():
    settings = {"hypothesis_templates": ("one {}", "two {}"), "category_templates": ("{} of {}",)}
    model = tiny_aligned(PatchAlign3DForZeroShotPointCloudSegmentation, **settings)
    model.text_tower = tower = Tower()
    for given, texts in (
        ((["leg", "arm"],), ["one leg", "two leg", "one arm", "two arm"]),
        ((["leg"], None, "sofa"), ["leg of sofa"]),
        ((["leg"], "part_only"), ["leg", "a leg", "leg part"]),
        ((["leg"], ["{} in {}"], "sofa"), ["leg in sofa"]),
    ):
        vectors = model.encode_labels(*given)
        assert tower.texts == texts and tower.device == model.device
        rows = tower.embed(texts, None).unflatten(0, (len(given[0]), -1)).mean(dim=1)
        torch.testing.assert_close(vectors, normalize(rows, dim=-1))
    shapes = tiny_aligned(ZERO_SHOT[0], hypothesis_templates=("a {} here",))
    shapes.text_tower = tower
    shapes.encode_labels(["cup"])
    assert tower.texts == ["a cup here"]
    shapes.encode_labels(["cup"], ["{} there", "no {}"])
    assert tower.texts == ["cup there", "no cup"]
