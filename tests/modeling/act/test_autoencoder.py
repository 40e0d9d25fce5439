"""Saving, options, errors and training of the discrete autoencoder."""

import pytest
import torch

from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.act.modeling_act_autoencoder import Prompts
from hf_any3d.modeling.point_encoders.patches import group_patches
from tests.errors import raises
from tests.tiny_autoencoders import SMALL_AUTOENCODER, tiny_autoencoder
from tests.tiny_encoders import clouds, pushed_encoder, saved_encoder


@torch.no_grad()
def fine(model, points=None):
    return model(clouds() if points is None else points).fine


def test_a_saved_config_builds_the_model_around_its_teacher(tmp_path):
    model = ActAutoencoder.from_teacher_pretrained(pushed_encoder("vit"), **SMALL_AUTOENCODER)
    model.config.save_pretrained(tmp_path)
    config = ActAutoencoderConfig.from_pretrained(tmp_path)
    assert torch.equal(
        ActAutoencoder.from_teacher_pretrained(config=config).encoder.layernorm.weight, model.encoder.layernorm.weight
    )
    with pytest.warns(UserWarning, match="random weights"):
        ActAutoencoder(config).eval()(clouds())
    with raises(ValueError, naming="encoder_name_or_path"):
        ActAutoencoder.from_teacher_pretrained()


def test_a_config_of_a_teacher_from_a_directory_is_given_the_directory(tmp_path):
    model = tiny_autoencoder("vit")
    model.config.save_pretrained(tmp_path)
    config = ActAutoencoderConfig.from_pretrained(tmp_path)
    with raises(ValueError, naming="encoder_name_or_path"):
        ActAutoencoder.from_teacher_pretrained(config=config)
    config.encoder_name_or_path = saved_encoder("vit")
    again = ActAutoencoder.from_teacher_pretrained(config=config)
    assert torch.equal(again.encoder.layernorm.weight, model.encoder.layernorm.weight)


def test_attention_over_the_batch_is_optional_and_warns():
    model = tiny_autoencoder("clip_vision_model", released={"attention_axis": "batch"})
    assert model.config.batch_dependent_flags == ["attention_axis='batch'"]
    assert tiny_autoencoder("clip_vision_model").config.batch_dependent_flags == []
    with pytest.warns(UserWarning, match="other clouds"):
        together = fine(model)
    assert not torch.allclose(fine(model, clouds()[:1]), together[:1], atol=1e-4)
    with raises(ValueError, naming="attention_axis"):
        tiny_autoencoder("llama", released={"attention_axis": "batch"})


def test_prompts_drop_out_in_training_but_their_positions_do_not():
    torch.manual_seed(0)
    prompts = Prompts(2, 200, 10, dropout=0.25)
    torch.nn.init.normal_(prompts.tokens)
    torch.nn.init.normal_(prompts.positions)
    tokens, positions = prompts.train()(1, 3)
    assert tokens.shape == (3, 200, 10) and torch.equal(positions, prompts.positions[1:])
    kept = tokens != 0
    assert 0.7 < kept.float().mean() < 0.8 and not torch.equal(kept[0], kept[1]), "dropout differs between clouds"
    torch.testing.assert_close(tokens[kept], (prompts.tokens[1:].expand(3, -1, -1) / 0.75)[kept])
    tokens, positions = prompts.eval()(1, 3)
    assert torch.equal(tokens, prompts.tokens[1:]) and torch.equal(positions, prompts.positions[1:])


def test_dropout_of_the_teacher_is_optional():
    assert not tiny_autoencoder("bert").train().encoder.training
    assert tiny_autoencoder("bert", released={"teacher_dropout": True}).train().encoder.encoder.layer[0].training


def test_layers_before_a_detached_teacher_learn_from_the_kl_term_only():
    model = tiny_autoencoder("vit", num_prompts=0, released={"detach_teacher": True}).train()
    model(clouds()).loss.backward()
    assert model.teacher_in.weight.grad is None and model.codebook.weight.grad is None
    assert model.teacher_out.weight.grad.abs().max() > 0
    model = tiny_autoencoder("vit", num_prompts=0).train()
    assert model.prompts is None
    model(clouds()).loss.backward()
    assert model.codebook.weight.grad.abs().max() > 0


def test_teacher_features_are_the_decoders_input_for_the_most_likely_codes():
    model = tiny_autoencoder("vit")
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fine(model)
    assert torch.equal(model.teacher_features(clouds()), seen[0])
    patches = group_patches(clouds(), 6, 8)
    assert torch.equal(model.teacher_features(patches=patches), seen[0])
    assert not model.train().teacher_features(patches=patches, through_graph=False).requires_grad
    with pytest.raises(ValueError, match="points and patches are both given or both None"):
        model.teacher_features()


def test_the_kl_term_trains_only_where_it_has_weight():
    model = tiny_autoencoder(None).train()
    output = model(clouds(), kl_weight=0.0)
    assert not output.kl_loss.requires_grad and output.loss == output.reconstruction_loss
    output = model(clouds(), kl_weight=0.5)
    assert output.loss.item() == pytest.approx(output.reconstruction_loss.item() + 0.5 * output.kl_loss.item())
    assert model(clouds(), return_loss=False).loss is None


NEAREST = {"code_scores": "distance", "quantizer": "nearest", "code_norm": True, "code_restart_share": 0.1}


@pytest.mark.parametrize(
    "options",
    [NEAREST | {"code_ema_decay": 0.9, "code_width": 6}, NEAREST, {"code_scores": "cosine", "code_scale": 9.0}],
)
def test_codes_follow_the_tokens_and_come_back_equal(options, tmp_path):
    model = tiny_autoencoder(None, **options).train()
    output = model(clouds(), kl_weight=0.1)
    output.loss.backward()
    assert model.code_in.weight.grad.abs().max() > 0
    is_average = "code_ema_decay" in options
    assert model.codebook.weight.shape == (32, options.get("code_width", 16))
    assert model.code_out is None or model.code_out.weight.grad.abs().max() > 0
    assert ("codebook.weight" in dict(model.named_parameters())) is not is_average
    if model.config.quantizer == "nearest":
        total = output.reconstruction_loss + 0.1 * output.kl_loss + output.code_loss
        torch.testing.assert_close(output.loss, total)
        # All codes were replaced by tokens of the first batch, so several are in use.
        assert len(output.token_ids.unique()) > 8
        with raises(ValueError, naming="hard=False with quantizer='nearest'"):
            model(clouds(), hard=False)
    state = {name: tensor.clone() for name, tensor in model.codebook.state_dict().items()}
    with torch.no_grad():
        model(clouds())
    model.eval()
    model.teacher_features(clouds())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.codebook.state_dict().items())
    model.save_pretrained(tmp_path)
    opened = ActAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(fine(opened), fine(model))
    assert all(torch.equal(tensor, state[name]) for name, tensor in opened.codebook.state_dict().items())
    assert ("codebook.weight" in dict(opened.named_parameters())) is not is_average


def test_colors_are_read_but_not_reconstructed():
    model = tiny_autoencoder("vit", in_channels=6)
    output = model(clouds(channels=6))
    assert output.fine.shape == (3, 6, 8, 3) and output.neighborhoods.shape == (3, 6, 8, 6)
    with pytest.raises(ValueError, match=r"points has shape \(3, 48, 3\)"):
        model(clouds())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_depth": "middle"}, "prompt_depth='middle'; expected one of 'shallow', 'deep'"),
        ({"group_size": 10}, "group_size=10; expected a multiple of 4"),
        ({"released": {"detach_teacher": True}}, "prompts would get no gradient"),
        ({"quantizer": "nearest"}, "quantizer='nearest' with code_scores='projection'"),
        ({"code_restart_share": 0.1}, "code_restart_share=0.1 with code_scores='projection'"),
        ({"code_ema_decay": 0.9, "code_scores": "cosine"}, "code_ema_decay=0.9 with quantizer='gumbel'"),
        ({"code_ema_decay": 1.5}, "code_ema_decay=1.5"),
    ],
)
def test_invalid_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ActAutoencoderConfig(**settings)
