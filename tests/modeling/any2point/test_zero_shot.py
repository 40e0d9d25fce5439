"""Zero-shot models: outputs, training, and equal results at every entry point of a small repository."""

import pytest
import torch
from transformers import AutoModel

from hf_any3d import Any2PointForZeroShotPointCloudClassification, UnsupportedEncoder
from hf_any3d.modeling.any2point import Any2PointConfig
from tests.errors import raises
from tests.tiny_encoders import clouds, saved_encoder, tiny_model
from tests.tiny_text_towers import LABELS, saved_text_tower, tiny_zero_shot_model

TOWERS = pytest.mark.parametrize(
    ("encoder", "tower"), [("bert", None), ("mpnet", None), ("clip", "text"), ("clip", "vision"), ("siglip", "vision")]
)


@pytest.mark.slow
@TOWERS
def test_outputs_are_cosines_times_the_scale(encoder, tower):
    model = tiny_zero_shot_model(encoder, tower=tower)
    inputs = model.text_tower.tokenize(["a chair", "a lamp"])
    with torch.no_grad():
        output = model(clouds(), **inputs)
        assert output.loss is None
        assert output.logits_per_point_cloud.shape == (3, 2)
        assert torch.equal(output.logits_per_text, output.logits_per_point_cloud.T)
        for vectors in (output.point_embeds, output.text_embeds):
            assert vectors.shape[1] == model.config.text_width
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
        expected = output.point_embeds @ output.text_embeds.T / model.config.temperature
        torch.testing.assert_close(output.logits_per_point_cloud, expected)
        torch.testing.assert_close(model.get_point_features(clouds()), output.point_embeds)
        torch.testing.assert_close(model.get_text_features(**inputs), output.text_embeds)
        words = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"]), "position_ids": None}
        torch.testing.assert_close(model.get_text_features(**words), output.text_embeds)
        for name in ("token_type_ids", "position_ids"):
            with pytest.raises(ValueError, match=name):
                model.get_text_features(**inputs, **{name: torch.ones_like(inputs["input_ids"])})
        torch.testing.assert_close(model.encode_labels(["chair", "lamp"], ["a {}"]), output.text_embeds)
        alone = model(clouds()[1:2], **inputs).logits_per_point_cloud
    torch.testing.assert_close(alone, output.logits_per_point_cloud[1:2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_scale_of_the_cosines_is_at_most_a_hundred():
    model = tiny_zero_shot_model()
    texts = torch.randn(2, model.config.text_width, generator=torch.Generator().manual_seed(0))
    for temperature, scale in ((0.02, 50), (1e-4, 100)):
        model.alignment.logit_scale.fill_(-torch.tensor(temperature).log())
        output = model(clouds(), text_embeds=texts)
        expected = scale * output.point_embeds @ output.text_embeds.T
        torch.testing.assert_close(output.logits_per_point_cloud, expected, rtol=1e-4, atol=1e-4)
        assert expected.abs().max() > 1


def test_projection_is_initialized_from_the_checkpoint():
    for encoder, tower in (("clip", "vision"), ("bert", None)):
        model = tiny_zero_shot_model(encoder, tower=tower, pooling=["max", "cls"])
        with torch.no_grad():
            pooled = model.any2point(clouds()).pooler_output
            mean = pooled.unflatten(1, (2, -1)).mean(dim=1)
            if encoder == "clip":
                mean = AutoModel.from_pretrained(saved_text_tower("clip")).visual_projection(mean)
            expected = torch.nn.functional.normalize(mean, dim=-1)
            torch.testing.assert_close(model.get_point_features(clouds()), expected)


def test_loss_supports_pairs_groups_and_banks():
    model = tiny_zero_shot_model()
    texts = model.encode_labels(LABELS)
    with torch.no_grad():
        pairs = model(clouds(), text_embeds=texts, return_loss=True).loss
        named = model(clouds(), text_embeds=texts, labels=torch.tensor([4, 9, 2])).loss
        groups = model(clouds(), text_embeds=texts, labels=torch.tensor([0, 0, 1])).loss
        bank = model(
            clouds(), text_embeds=texts[:2], labels=torch.tensor([1, 0, 1]), text_labels=torch.tensor([0, 1])
        ).loss
    assert pairs == named and pairs != groups and torch.isfinite(bank)
    assert model(clouds(), text_embeds=texts, labels=torch.arange(3), return_loss=False).loss is None


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"return_loss": True}, "input_ids is missing"),
        ({"text_embeds": torch.ones(2, 48), "return_loss": True}, r"expected \(3,\) and \(2,\)"),
        ({"text_embeds": torch.ones(3, 48), "labels": torch.arange(2)}, r"shape \(2,\).*expected \(3,\)"),
        (
            {"text_embeds": torch.ones(3, 48), "input_ids": torch.ones(3, 4).long()},
            "text_embeds is given beside input_ids",
        ),
    ],
)
def test_mismatched_inputs_are_named(inputs, text):
    with pytest.raises(ValueError, match=text):
        tiny_zero_shot_model()(clouds(), **inputs)


def test_encoders_without_texts_are_refused():
    for encoder in ("vit", "bert"):
        with pytest.raises(UnsupportedEncoder, match="no text tower|do not define how it embeds sentences"):
            tiny_model(saved_encoder(encoder), Any2PointForZeroShotPointCloudClassification)
    with raises(ValueError, naming="temperature=0; expected 0.01 to"):
        Any2PointConfig(temperature=0)
