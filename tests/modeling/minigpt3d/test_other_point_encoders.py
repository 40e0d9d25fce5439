"""Encoders that are aligned with texts as the point encoder: training, answers, saving, and their processor."""

import pytest
import torch

from hf_any3d import (
    MiniGPT3DForConditionalGeneration,
    OpenShapeForZeroShotPointCloudClassification,
    PatchAlign3DModel,
    PointCloudProcessor,
    Uni3DForZeroShotPointCloudClassification,
)
from hf_any3d.modeling.minigpt3d import set_stage
from hf_any3d.training.minigpt3d_stages import StageArguments, open_for_stage
from tests.examples.minigpt3d_runs import CONFIG, write_parts
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.tiny_model import clouds, tiny_config, tiny_model
from tests.tiny_aligned import tiny_aligned

COLORED = {"features": ("xyz", "rgb"), "default_rgb": (0.4, 0.4, 0.4), "axes": "xzy"}
ENCODERS = [
    OpenShapeForZeroShotPointCloudClassification,
    PatchAlign3DModel,
    Uni3DForZeroShotPointCloudClassification,
]
BY_ENCODER = pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.config_class.model_type)


@BY_ENCODER
def test_they_train_and_answer_and_load_equal(encoder, tmp_path):
    model = tiny_model(point_config=tiny_aligned(encoder).config.to_dict(), use_query_experts=True)
    assert model.point_encoder.config.model_type == encoder.config_class.model_type
    set_stage(model, 3)
    channels = model.config.in_channels
    prompt, points = ids([2, *CLOUD, 5, 6]), torch.stack(clouds(40))[..., :channels]
    model.train()(prompt, points=points, labels=prompt.masked_fill(prompt > 90, -100)).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients["bridge.point_mlp.layers.0.weight"].abs().max() > 0
    assert not any("point_encoder" in name for name in gradients)

    model.eval().save_pretrained(tmp_path)
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = [model(prompt, points=cloud[None]).logits for cloud in torch.stack(clouds(40, 40))[..., :channels]]
        assert (logits[0] != logits[1])[:, 1:].any()
        assert torch.equal(opened(prompt, points=points).logits, logits[0])
        answers = [each.generate(prompt, points=points, max_new_tokens=3, do_sample=False) for each in (model, opened)]
    assert torch.equal(*answers)


@BY_ENCODER
def test_a_stage_starts_from_a_converted_directory_with_its_processor(encoder, tmp_path):
    parts = write_parts(tmp_path)
    source = tiny_aligned(encoder)
    source.save_pretrained(tmp_path / "aligned")
    arguments = StageArguments(stage=1, **parts | {"point_encoder": str(tmp_path / "aligned")}, model_config=CONFIG)
    with pytest.raises(ValueError, match="aligned: has no preprocessor_config.json; expected one"):
        open_for_stage(arguments, num_points=40)
    PointCloudProcessor(**COLORED).save_pretrained(tmp_path / "aligned")
    model, processor = open_for_stage(arguments, num_points=40)
    clouds_of_it = processor.feature_extractor
    assert (clouds_of_it.num_points, clouds_of_it.axes, clouds_of_it.default_rgb) == (40, "xzy", [0.4] * 3)
    points = torch.stack(clouds(40))[..., : source.config.in_channels]
    with torch.no_grad():
        expected = source.base_model(points).last_hidden_state
        assert torch.equal(model.encode(points), expected)
        model.save_pretrained(tmp_path / "stage")
        assert not any(
            name.startswith("point_encoder") for name in model.state_dict().keys() - model.names_stored_elsewhere()
        )
        assert torch.equal(
            MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path / "stage").encode(points), expected
        )


@pytest.mark.parametrize(
    ("point_config", "text"),
    [
        ({"model_type": "bert"}, "point_config is of the type 'bert'; expected an encoder of patches"),
        ({"model_type": "point_transformer_v3"}, "'point_transformer_v3'; expected an encoder of patches"),
        ({"model_type": "act3d", "use_class_token": False}, "point_config has use_class_token=False; expected True"),
    ],
)
def test_configs_without_a_class_token_of_points_are_refused(point_config, text):
    with pytest.raises(ValueError, match=text):
        tiny_config(point_config=point_config)
