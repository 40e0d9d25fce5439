"""Masked point modeling: masks, targets, checkpoints and fine-tuning of the student."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from hf_any3d import OpenShapeModel, PatchAlign3DModel, PointTransformerV3Model, Uni3DModel
from hf_any3d.modeling.act import ActAutoencoder, ActForPreTraining, ActModel
from hf_any3d.modeling.act.distillation_losses import DISTILLATION_LOSSES
from hf_any3d.modeling.act.masking import MASKS
from tests.common.case import spread_weights, varied_clouds
from tests.errors import raises
from tests.tiny_aligned import tiny_aligned
from tests.tiny_encoders import clouds, pushed_encoder, saved_encoder
from tests.tiny_ptv3 import tiny_ptv3

GROUPS = 8
CUT = {"num_groups": GROUPS, "group_size": 8}
TEACHER = CUT | {
    "hidden_size": 16,
    "num_codes": 12,
    "graph_input_width": 8,
    "graph_widths": (8, 8),
    "coarse_width": 8,
    "folding_width": 8,
    "num_prompts": 3,
}
STUDENT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "decoder_num_hidden_layers": 1}


def tiny_autoencoder(encoder="vit", source=None, **changes):
    source = source or saved_encoder(encoder)  # before the seed, as making it draws random numbers
    torch.manual_seed(0)
    return ActAutoencoder.from_teacher_pretrained(source, **TEACHER | changes)


def tiny_pretraining(autoencoder=None, **changes):
    autoencoder = tiny_autoencoder() if autoencoder is None else autoencoder
    torch.manual_seed(1)
    return ActForPreTraining.from_autoencoder_pretrained(autoencoder, **STUDENT | changes)


def masks(hidden=6, batch=3):
    return MASKS["random"](torch.zeros(batch, GROUPS, 3), hidden, torch.Generator().manual_seed(0))


def same_loss(first, second, mask=None):
    mask = masks() if mask is None else mask
    with torch.no_grad():
        return torch.equal(first(clouds(), mask).loss, second(clouds(), mask).loss)


@pytest.mark.parametrize("mask_type", MASKS)
def test_the_configured_share_of_patches_is_hidden_and_predicted(mask_type):
    output = tiny_pretraining(mask_type=mask_type, mask_ratio=0.7)(clouds())
    assert output.mask.sum(dim=1).tolist() == [5, 5, 5]
    assert output.predictions.shape == output.targets.shape == (3, 5, 16)
    assert output.loss.item() == pytest.approx(
        1 - torch.cosine_similarity(output.predictions, output.targets, dim=-1).mean().item(), abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16 model", "autocast"])
@pytest.mark.parametrize("name", ["cosine", "contrastive", "barlow"])
def test_losses_are_taken_in_full_precision(name, precision):
    model = tiny_pretraining(distillation_loss=name, mask_ratio=0.7)
    if precision == "bfloat16 model":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model(clouds(), masks())
    expected = DISTILLATION_LOSSES[name](output.predictions.float(), output.targets.float())
    assert output.predictions.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert torch.equal(output.loss, expected) and expected > 0.01


def test_targets_can_be_taken_before_the_graph_decoder():
    model, mask = tiny_pretraining(target_layer="teacher"), masks()
    features = model.autoencoder.teacher_features(clouds(), through_graph=False)
    torch.testing.assert_close(model(clouds(), mask).targets, features[mask].view(3, 6, 16))


def test_hidden_patches_do_not_affect_their_predictions():
    model, mask = tiny_pretraining(tiny_autoencoder(in_channels=4)).eval(), masks()
    points = varied_clouds(3, channels=4)
    # Patches are cut by coordinates, so that the fourth channel of points in no visible patch is in hidden ones alone.
    index = model.act.cut(points).neighbor_index[~mask].view(3, -1)
    is_seen = torch.zeros(points.shape[:2]).scatter_(1, index, 1.0)
    assert 0 < is_seen.mean() < 1
    predictions = []
    with torch.no_grad():
        for change in (0, 1 - is_seen, is_seen):
            changed = points.clone()
            changed[..., 3] += change
            predictions.append(model(changed, mask).predictions)
    assert torch.equal(predictions[0], predictions[1]) and not torch.allclose(predictions[0], predictions[2])


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_encoding_hidden_patches_too_changes_nothing_but_batch_statistics(training):
    lean = tiny_pretraining(drop_path_rate=0.0, decoder_drop_path_rate=0.0).train(training)
    full = tiny_pretraining(drop_path_rate=0.0, decoder_drop_path_rate=0.0, encode_visible_only=False).train(training)
    lean_predictions, full_predictions = (model(clouds(), masks()).predictions for model in (lean, full))
    assert torch.allclose(lean_predictions, full_predictions, atol=1e-5) == (not training)


def test_a_student_that_sees_everything_needs_no_decoder():
    model = tiny_pretraining(mask_ratio=0.0).train()
    output = model(clouds())
    assert output.predictions.shape == (3, GROUPS, 16) and not output.mask.any()
    output.loss.backward()
    assert model.mask_token.grad is None and model.decoder.layers[0].norm1.weight.grad is None
    assert model.prediction_head.weight.grad is not None


@pytest.mark.slow
def test_the_teacher_does_not_change_unless_configured():
    def moved(model):
        before = model.autoencoder.patch_encoder.lift_norm.running_mean.clone()
        model.train()(clouds())
        return not torch.equal(before, model.autoencoder.patch_encoder.lift_norm.running_mean)

    assert not moved(tiny_pretraining())
    drifting = tiny_pretraining(teacher_in_training_mode=True)
    assert moved(drifting) and not drifting.autoencoder.encoder.training
    # Without asking for noise there is none in training mode, either; dropout of the prompts remains.
    still = tiny_pretraining(tiny_autoencoder(prompt_dropout=0.0), teacher_in_training_mode=True).train()
    assert torch.equal(still(clouds(), masks()).targets, still(clouds(), masks()).targets)


@pytest.mark.slow
def test_a_checkpoint_holds_all_but_a_frozen_encoder_with_a_name(tmp_path):
    teacher = tiny_autoencoder(source=pushed_encoder("vit"))
    model = tiny_pretraining(teacher, class_token_loss=True, class_token_layer=1)
    model.save_pretrained(tmp_path)
    stored = set(load_file(tmp_path / "model.safetensors"))
    assert stored == {name for name in model.state_dict() if not name.startswith("autoencoder.encoder.")}
    again, report = ActForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_loss(model, again)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert not again.train().autoencoder.training
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), ActForPreTraining)


def test_probe_features_are_pooled_or_those_of_the_released_program():
    model = tiny_pretraining()
    torch.testing.assert_close(model.probe_features(clouds()), model.act(clouds()).pooler_output)
    released = tiny_pretraining(feature_head_width=5)
    features = released.probe_features(clouds())
    assert features.shape == (3, 5) and not features.requires_grad
    torch.testing.assert_close(features, released.feature_head(released.act(clouds()).last_hidden_state[:, 0]))


@pytest.mark.slow
def test_the_frozen_encoder_may_be_in_half_precision(tmp_path):
    full, half = tiny_pretraining(), tiny_pretraining(teacher_dtype="bfloat16")
    half.save_pretrained(tmp_path)
    again = ActForPreTraining.from_pretrained(tmp_path)
    for model in (half, again):
        assert model.autoencoder.encoder.dtype == torch.bfloat16 and model.mask_token.dtype == torch.float32
    assert same_loss(half, again)
    features = [model(clouds(), masks()).targets for model in (full, half)]
    assert torch.cosine_similarity(*features, dim=-1).min() > 0.99


def test_student_and_teacher_must_use_the_same_patches():
    with raises(ValueError, naming="num_groups"):
        tiny_pretraining(num_groups=16)


def test_a_mask_that_hides_everything_is_refused():
    with pytest.raises(ValueError, match="hides all 8 patches"):
        tiny_pretraining()(clouds(), torch.ones(3, GROUPS, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [OpenShapeModel, PatchAlign3DModel, Uni3DModel])
def test_a_student_may_start_from_an_encoder_that_is_aligned_with_texts(model_class, tmp_path):
    source = tiny_aligned(model_class)
    source.save_pretrained(tmp_path / "source")
    settings = {"decoder_num_hidden_layers": 1, "class_token_loss": True, "class_token_layer": 1}
    model = ActForPreTraining.from_autoencoder_pretrained(tiny_autoencoder(), tmp_path / "source", **settings)
    assert model.act.config._attn_implementation == "sdpa"
    assert type(model.act) is model_class and model.act.config.num_groups == GROUPS != source.config.num_groups
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.act.state_dict()[name], tensor), name

    points = varied_clouds(3, channels=source.config.in_channels)
    output = model.train()(points, masks())
    assert output.predictions.shape == output.targets.shape == output.class_token_predictions.shape == (3, 6, 16)
    output.loss.backward()
    assert all(p.grad is not None for name, p in model.act.named_parameters() if "projection" not in name)
    # The teacher reads its own patches, of coordinates alone, around the same centers.
    expected = model.eval().autoencoder.teacher_features(points[..., :3])
    targets = model(points, masks()).targets
    torch.testing.assert_close(targets, expected[masks()].view_as(targets))

    model.save_pretrained(tmp_path / "whole")
    opened = AutoModelForPreTraining.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        torch.testing.assert_close(opened(points, masks()).loss, model(points, masks()).loss)
        assert model(points, masks()).hidden_states is None
        states = model(points, masks(), output_hidden_states=True).hidden_states
        assert len(states) == model.config.num_hidden_layers + 1
        model.act.save_pretrained(tmp_path / "student")
        alone = model_class.from_pretrained(tmp_path / "student")
        torch.testing.assert_close(alone(points).pooler_output, model.act(points).pooler_output)
    with raises(ValueError, naming="whole"):
        ActModel.from_pretrained(tmp_path / "whole")


@pytest.mark.slow
def test_a_student_of_voxels_sees_only_points_of_visible_patches(tmp_path):
    source = tiny_ptv3(PointTransformerV3Model, shuffle_curves="never", drop_path_rate=0.0)
    spread_weights(source)
    source.save_pretrained(tmp_path / "source")
    model = ActForPreTraining.from_autoencoder_pretrained(
        tiny_autoencoder(), tmp_path / "source", decoder_num_hidden_layers=1, decoder_drop_path_rate=0.0
    )
    assert (model.config.hidden_size, model.config.num_attention_heads, model.config.num_groups) == (24, 2, GROUPS)
    points = varied_clouds(3, channels=6)
    output = model.train()(points, masks())
    assert output.predictions.shape == output.targets.shape == (3, 6, 16)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.act.parameters())
    assert not any(p.grad is not None for p in model.autoencoder.parameters())

    model.eval().save_pretrained(tmp_path / "whole")
    opened = AutoModelForPreTraining.from_pretrained(tmp_path / "whole")
    patches = model.cut(points)
    seen = patches.neighbor_index[torch.arange(3)[:, None], (~masks()).nonzero()[:, 1].view(3, -1)].flatten(1)
    with torch.no_grad():
        expected = model(points, masks()).predictions
        torch.testing.assert_close(opened(points, masks()).predictions, expected, rtol=1e-4, atol=1e-5)
        states = model(points, masks(), output_hidden_states=True).hidden_states
        assert len(states) == sum(model.act.config.depths) + 1 and model(points, masks()).hidden_states is None
        torch.testing.assert_close(model(points[1:2], masks()[1:2]).predictions, expected[1:2], rtol=1e-4, atol=1e-5)
        # Colors of hidden points change nothing, those of seen ones do.
        is_seen = torch.zeros(points.shape[:2]).scatter(1, seen, 1.0)
        assert 0.2 < is_seen.mean() < 0.8
        for factor, is_equal in ((is_seen, True), (1 - is_seen, False)):
            colored = torch.cat([points[..., :3], points[..., 3:] * factor[..., None]], dim=-1)
            assert torch.equal(model(colored, masks()).predictions, expected) == is_equal
        assert model.probe_features(points).shape == (3, 24)
