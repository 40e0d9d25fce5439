"""Points among texts, against plain loops over clouds and masks; the layout of clouds and of their original points."""

import math
import re

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForZeroShotPointCloudSegmentation
from hf_any3d.modeling.point_transformer_v3.voxel_stages import Batch
from tests.common.case import spread_weights, varied_clouds
from tests.errors import raises
from tests.tiny_ptv3 import FIND3D, TEXTS, tiny_ptv3


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(**changes) -> PointTransformerV3ForZeroShotPointCloudSegmentation:
    model = tiny_ptv3(PointTransformerV3ForZeroShotPointCloudSegmentation, **FIND3D | changes)
    spread_weights(model)
    model.text_head.logit_scale.data.fill_(math.log(3))
    return model.eval()


@torch.no_grad()
def test_points_are_scored_among_texts_and_none_of_them():
    model, points, texts = model_of(), varied_clouds(2, channels=6), 4 * drawn(3, TEXTS)
    encoded = model.point_transformer_v3.encode(points)
    hidden = encoded.decoded
    for layer in model.text_head.hidden:
        hidden = layer(hidden).relu()
    embeds = model.text_head.out(hidden)
    widths = [(layer.in_features, layer.out_features) for layer in model.text_head.hidden]
    assert widths == [(16, 16), (16, 16)] and model.text_head.out.out_features == TEXTS
    scores = (3 * embeds @ normalize(texts, dim=-1).T)[encoded.inverse].view(2, 48, 3)
    output = model(points, text_embeds=texts)
    torch.testing.assert_close(output.voxel_embeds, embeds)
    torch.testing.assert_close(output.text_embeds, normalize(texts, dim=-1))
    assert output.logits.shape == (2, 48, 4) and not output.logits[..., 3].any() and output.loss is None
    torch.testing.assert_close(output.logits[..., :3], scores, rtol=1e-4, atol=1e-4)
    plain = model(points, text_embeds=texts, with_none=False).logits
    assert torch.equal(plain, output.logits[..., :3])
    other = model_of(none_label=False)
    assert torch.equal(other(points, text_embeds=texts).logits, plain)
    assert torch.equal(other(points, text_embeds=texts, with_none=True).logits, output.logits)
    own = torch.stack([texts, texts.flip(0)])
    both = model(points, text_embeds=own).logits
    torch.testing.assert_close(both[0], output.logits[0])
    torch.testing.assert_close(both[1, :, :3], output.logits[1, :, [2, 1, 0]])
    alone = model(points, output_hidden_states=True)
    assert alone.logits is alone.text_embeds is None and len(alone.hidden_states) == 5
    assert torch.equal(alone.voxel_embeds, output.voxel_embeds)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.zeros(2, 48).long()}, "input_ids is missing; pass one of them"),
        ({"text_embeds": drawn(3, 7)}, f"text_embeds has shape (3, 7); expected (texts, {TEXTS}) or (2, texts, "),
        ({"text_embeds": drawn(3, 4, TEXTS)}, f"text_embeds has shape (3, 4, {TEXTS}); expected (texts, {TEXTS})"),
        (
            {"text_embeds": drawn(3, TEXTS), "labels": torch.zeros(2, 47).long()},
            "labels have shape (2, 47); expected (2, 48), one per point, or (2, 3, 48), one per text and point",
        ),
        (
            {"text_embeds": drawn(3, TEXTS), "labels": torch.zeros(2, 48).long(), "text_mask": torch.ones(2, 4)},
            "text_mask has shape (2, 4); expected (2, 3)",
        ),
        (
            {"text_embeds": drawn(3, TEXTS), "labels": torch.full((2, 48), 3)},
            "labels has 3; expected 0 to 2, one for each text, or -100",
        ),
    ],
)
def test_texts_and_labels_that_do_not_fit_are_named(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model_of()(varied_clouds(2, channels=6), **given)


def test_clouds_in_a_list_are_filled_up_behind_their_points():
    clouds = [drawn(3, 2), drawn(1, 2, seed=1), drawn(4, 2, seed=2)]
    batch = Batch(clouds)
    assert (
        tuple(batch.shape) == (3, 4) and batch.counts == [3, 1, 4] and batch.cloud.tolist() == [0] * 3 + [1] + [2] * 4
    )
    flat = batch.flatten(clouds, "points")
    assert torch.equal(flat, torch.cat(clouds))
    spread = batch.unflatten(flat)
    assert spread.shape == (3, 4, 2)
    for cloud, own in zip(clouds, spread, strict=True):
        assert torch.equal(own[: len(cloud)], cloud) and not own[len(cloud) :].any()
    with raises(ValueError, naming="[4, 1, 3] rows"):
        batch.flatten(clouds[::-1], "colors")
    with raises(ValueError, naming="point_mask"):
        Batch(clouds, torch.ones(3, 4, dtype=torch.bool))
