"""Encoders that are aligned with texts as the point encoder: training, answers, saving, and their processor."""

import pytest
import torch

from hf_any3d import (
    MiniGPT3DForConditionalGeneration,
    OpenShapeForZeroShotPointCloudClassification,
    PatchAlign3DModel,
    PointTransformerV3Model,
    PointTransformerV3Processor,
    Uni3DForZeroShotPointCloudClassification,
)
from hf_any3d.modeling.minigpt3d import set_stage
from hf_any3d.processing.chat_templates import PLACE_MARK
from hf_any3d.training.minigpt3d_stages import StageArguments, open_for_stage
from tests.common.case import spread_weights
from tests.errors import raises
from tests.examples.minigpt3d_runs import CONFIG, write_parts
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.tiny_model import clouds, tiny_config, tiny_model
from tests.tiny_aligned import tiny_aligned
from tests.tiny_ptv3 import SMALL, tiny_ptv3

ENCODERS = [OpenShapeForZeroShotPointCloudClassification, PatchAlign3DModel, Uni3DForZeroShotPointCloudClassification]
BY_ENCODER = pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.config_class.model_type)


def trained_and_opened(model, prompts, points, folder):
    """Check that a training step reaches the bridge alone; return the model as it is saved and opened."""
    set_stage(model, 3)
    model.train()(prompts, points=points, labels=prompts.masked_fill(prompts > 90, -100)).loss.backward()
    gradients = {name: p.grad for name, p in model.base_model.named_parameters() if p.requires_grad}
    assert gradients["bridge.point_mlp.layers.0.weight"].abs().max() > 0
    assert not any("point_encoder" in name for name in gradients)
    model.eval().save_pretrained(folder)
    return MiniGPT3DForConditionalGeneration.from_pretrained(folder)


@BY_ENCODER
def test_they_train_and_answer_and_load_equal(encoder, tmp_path):
    model = tiny_model(point_config=tiny_aligned(encoder).config.to_dict(), use_query_experts=True)
    assert model.point_encoder.config.model_type == encoder.config_class.model_type
    channels = model.config.in_channels
    prompt, points = ids([2, *CLOUD, 5, 6]), torch.stack(clouds(40))[..., :channels]
    opened = trained_and_opened(model, prompt, points, tmp_path)
    with torch.no_grad():
        logits = [model(prompt, points=cloud[None]).logits for cloud in torch.stack(clouds(40, 40))[..., :channels]]
        assert (logits[0] != logits[1])[:, 1:].any()
        assert torch.equal(opened(prompt, points=points).logits, logits[0])
        answers = [each.generate(prompt, points=points, max_new_tokens=3, do_sample=False) for each in (model, opened)]
    assert torch.equal(*answers)


def test_configs_without_a_class_token_of_points_are_refused():
    with raises(ValueError, naming="use_class_token"):
        tiny_config(point_config={"model_type": "act3d", "use_class_token": False})


@pytest.mark.slow
def test_voxels_train_and_answer_and_load_equal(tmp_path):
    model = tiny_model(point_config={"model_type": "point_transformer_v3", **SMALL}, use_query_experts=True)
    spread_weights(model)
    prompts, points = ids([2, *CLOUD, 5, 6]).repeat(3, 1), clouds(60, 9, 30)
    opened = trained_and_opened(model, prompts, points, tmp_path)
    with torch.no_grad():
        together = model.get_point_features(points)
        assert together.std() > 1e-2 and torch.equal(opened.get_point_features(points), together)
        for cloud, own in zip(points, together, strict=True):  # neither depends on the others of the batch
            torch.testing.assert_close(model.get_point_features([cloud])[0], own, rtol=1e-4, atol=1e-5)
        tokens, voxels = model.encode(points), model.point_encoder(points)
        assert tokens.shape == (3, 1 + int(voxels.offsets.diff(prepend=torch.zeros(1, dtype=int)).max()), 24)
        answers = [each.generate(prompts, points=points, max_new_tokens=3) for each in (model, opened)]
    assert torch.equal(*answers)


@pytest.mark.slow
def test_a_stage_of_voxels_starts_from_its_processor_and_fills_up_clouds(tmp_path):
    parts = write_parts(tmp_path)
    source = tiny_ptv3(PointTransformerV3Model)
    source.save_pretrained(tmp_path / "voxels")
    made = PointTransformerV3Processor(features=("xyz", "rgb"), grid_size=SMALL["grid_size"], scale="unit_sphere")
    made.save_pretrained(tmp_path / "voxels")
    arguments = StageArguments(stage=1, **parts | {"point_encoder": str(tmp_path / "voxels")}, model_config=CONFIG)
    model, processor = open_for_stage(arguments, num_points=40)
    processor.save_pretrained(tmp_path / "processor")
    for own in (processor, type(processor).from_pretrained(tmp_path / "processor")):
        extractor = own.feature_extractor
        assert isinstance(extractor, PointTransformerV3Processor)
        assert (extractor.num_points, extractor.grid_size, extractor.scale) == (40, 0.05, "unit_sphere")
    shapes = [cloud.numpy() for cloud in clouds(40, 9)]
    batch = processor([PLACE_MARK] * 2, points=shapes, return_tensors="pt")
    inputs = [made(shape) for shape in shapes]
    with torch.no_grad():
        for cloud, own in zip(batch["points"], inputs, strict=True):
            expected = source(**own).last_hidden_state
            torch.testing.assert_close(model.encode([cloud])[0, 1:], expected, rtol=1e-4, atol=1e-5)
