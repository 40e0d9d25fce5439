"""One pass of the discrete autoencoder, part by part: the teacher with prompts, the codes, and the losses."""

import itertools
import re

import pytest
import torch
from torch import nn

from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.act.codebook import gumbel_noise, uniform_code_loss
from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.point_ops import chamfer_distance
from tests.tiny_autoencoders import SMALL_AUTOENCODER, tiny_autoencoder
from tests.tiny_encoders import clouds, random_encoder, tiny_config


def by_hand(model: ActAutoencoder, codes: torch.Tensor, centers: torch.Tensor) -> list[torch.Tensor]:
    """Run the layers of CLIP's vision tower on prompts and tokens; return the states and the output."""
    config, encoder = model.config, model.encoder
    deep, everywhere = config.prompt_depth == "deep", config.position_injection == "every_layer"
    tokens, places = model.teacher_in(codes), model.position_embed(centers)
    front = tokens[:, :0]
    if config.use_input_norm:
        tokens = encoder.pre_layrnorm(tokens)
    states, count = [tokens], 0 if model.prompts is None else model.prompts.tokens.shape[1]
    for number, layer in enumerate(encoder.encoder.layers):
        level = number if deep else 0
        if count and (deep or number == 0):
            front = model.prompts.tokens[level].expand(len(tokens), -1, -1)
            if config.use_input_norm and number == 0:
                front = encoder.pre_layrnorm(front)
        if count and (deep or everywhere or number == 0):
            front = front + model.prompts.positions[level]
        if everywhere or number == 0:
            tokens = tokens + places
        sequence = hidden_of(layer(torch.cat([front, tokens], dim=1), attention_mask=None))
        front, tokens = sequence[:, :count], sequence[:, count:]
        states.append(tokens)
    tokens = encoder.post_layernorm(tokens) if config.use_final_norm else tokens
    return [*states, model.teacher_out(tokens)]


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"prompt_depth": "deep"}, {"prompt_depth": "shallow"}, {"num_prompts": 0}])
def test_the_teacher_reads_prompts_and_places_as_the_config_says(settings):
    model = tiny_autoencoder("clip_vision_model", **settings)
    for norm in (model.encoder.pre_layrnorm, model.encoder.post_layernorm):
        nn.init.normal_(norm.weight)
    for parameter in model.prompts.parameters() if model.prompts is not None else ():
        nn.init.normal_(parameter)
    codes, centers = torch.randn(2, 6, 16), torch.rand(2, 6, 3)
    seen = []
    for places, first, last in itertools.product(("input", "every_layer"), (True, False), (True, False)):
        model.config.position_injection = places
        model.config.use_input_norm, model.config.use_final_norm = first, last
        states: list[torch.Tensor] = []
        output = model.teach(codes, centers, states)
        for found, expected in zip([*states, output], by_hand(model, codes, centers), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        seen.append(output)
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in itertools.combinations(seen, 2))


def test_outputs_are_the_patches_their_codes_and_the_losses():
    model, points = tiny_autoencoder(None, num_codes=8).train(), clouds()
    output = model(points, kl_weight=0.3, noise=torch.zeros(1))
    target = output.neighborhoods.flatten(0, 1)
    assert output.neighborhoods.shape == (3, 6, 8, 3) and output.coarse.shape == (3, 6, 2, 3)
    parts = [chamfer_distance(made.flatten(0, 1), target) for made in (output.coarse, output.fine)]
    torch.testing.assert_close(output.reconstruction_loss, sum(parts))
    torch.testing.assert_close(output.kl_loss, uniform_code_loss(output.logits))
    torch.testing.assert_close(output.loss, sum(parts) + 0.3 * output.kl_loss)
    for whole, local in ((output.whole_fine, output.fine), (output.whole_coarse, output.coarse)):
        expected = torch.stack(
            [
                torch.cat([patch + center for patch, center in zip(*pair, strict=True)])
                for pair in zip(local, output.centers, strict=True)
            ]
        )
        torch.testing.assert_close(whole, expected)
    assert output.code_loss is None and output.hidden_states is None and output.attentions is None
    assert torch.equal(output.token_ids, output.logits.argmax(dim=-1)) and output.logits.shape == (3, 6, 8)
    without = model(points, return_loss=False, noise=torch.zeros(1))
    assert without.loss is without.kl_loss is without.reconstruction_loss is None
    torch.testing.assert_close(without.fine, output.fine)


@torch.no_grad()
def test_codes_are_mixed_in_training_and_chosen_otherwise_unless_the_call_says():
    model, points, still = tiny_autoencoder(None), clouds(), torch.zeros(1)
    for training in (True, False):
        model.train(training)
        mixed, hard = (model(points, hard=hard, noise=still).fine for hard in (False, True))
        assert not torch.allclose(mixed, hard, atol=1e-4)
        assert torch.equal(model(points, noise=still).fine, mixed if training else hard)
        warm = model(points, hard=False, temperature=3.0, noise=still).fine
        assert not torch.allclose(warm, mixed, atol=1e-5)
        forced = model(points, noise=1e4 * nn.functional.one_hot(torch.full((3, 6), 5), 32))
        assert (forced.token_ids == 5).all()
    same = model.teacher_features(points, noise=1e4 * nn.functional.one_hot(torch.full((3, 6), 5), 32))
    codes = model.codebook.weight[5].expand(3, 6, -1)
    centers = model.patch(points).centers
    torch.testing.assert_close(same, model.graph_decoder(codes, model.graph_encoder.neighbors_of(centers)))


@torch.no_grad()
def test_noise_is_drawn_in_training_for_mixtures_alone():
    points = clouds()
    for settings in ({}, {"code_scores": "distance"}, {"code_scores": "distance", "quantizer": "nearest"}):
        model = tiny_autoencoder(None, **settings).train()
        torch.manual_seed(3)
        found = model(points).token_ids
        torch.manual_seed(3)
        noise = gumbel_noise(model(points, noise=torch.zeros(1)).logits)
        torch.manual_seed(3)
        is_drawn = model.config.quantizer == "gumbel"
        expected = model(points, noise=noise if is_drawn else torch.zeros(1))
        assert torch.equal(found, expected.token_ids), settings
        # Given noise is taken as it is, also in eval mode.
        assert torch.equal(model.eval()(points).token_ids, model(points, noise=torch.zeros(1)).token_ids)


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_scores_have_the_factor_of_the_config(norm):
    points = clouds()
    one, more = (tiny_autoencoder(None, code_scale=scale, code_norm=norm).train() for scale in (1.0, 2.5))
    torch.testing.assert_close(more(points).logits, 2.5 * one(points).logits)
    patches = more.eval().patch(points)
    torch.testing.assert_close(more.score_codes(patches), more(points).logits)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("scores", ["distance", "cosine"])
def test_the_nearest_codes_pull_and_are_pulled(scores, decay):
    settings = {"code_scores": scores, "quantizer": "nearest", "commitment_weight": 0.7, "code_width": 6}
    model = tiny_autoencoder(None, **settings, code_ema_decay=decay).train()
    seen = []
    model.code_in.register_forward_hook(lambda module, args, output: seen.append(output))
    vectors = model.codebook.vectors.detach().clone()
    output = model(clouds(), kl_weight=0.2)
    tokens = seen[0] if scores == "distance" else nn.functional.normalize(seen[0], dim=-1) * 6**0.5
    distance = (tokens - vectors[output.token_ids]).square().mean()
    torch.testing.assert_close(output.code_loss, (0.7 if decay else 1.7) * distance)
    plain = output.reconstruction_loss + 0.2 * output.kl_loss
    torch.testing.assert_close(output.loss, plain + output.code_loss)
    evaluated = model.eval()(clouds(), kl_weight=0.2)
    assert evaluated.code_loss > 0
    torch.testing.assert_close(evaluated.loss, evaluated.reconstruction_loss + 0.2 * evaluated.kl_loss)


def test_every_size_of_the_config_is_that_of_a_layer():
    sizes = {"in_channels": 5, "num_groups": 6, "group_size": 8, "patch_widths": (4, 12, 20), "hidden_size": 16}
    sizes |= {"num_codes": 28, "graph_input_width": 9, "graph_widths": (8, 24), "coarse_width": 10}
    sizes |= {"folding_width": 14, "graph_neighbors": 3, "num_prompts": 2, "prompt_dropout": 0.3}
    teacher = tiny_config("vit")
    projected = ActAutoencoder(ActAutoencoderConfig(**sizes, encoder_config=teacher))
    compared = ActAutoencoder(ActAutoencoderConfig(**sizes, code_scores="cosine", code_width=7, code_norm=True))

    def layers(model: nn.Module, *without: str) -> dict[str, tuple[int, int]]:
        return {
            name: (layer.in_features, layer.out_features)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and not name.startswith(without)
        }

    patch = {"lift": (5, 4), "widen": (4, 12), "join": (24, 20), "out": (20, 16)}
    graph = {"input": (16, 9), "layers.0.linear": (18, 8), "layers.1.linear": (16, 24)}
    decoder = {"coarse.0": (16, 10), "coarse.2": (10, 10), "coarse.4": (10, 6)}
    decoder |= {"lift": (21, 14), "widen": (14, 14), "out": (14, 3)}
    common = {f"patch_encoder.{name}": size for name, size in patch.items()}
    for name in ("graph_encoder", "graph_decoder"):
        common |= {f"{name}.{layer}": size for layer, size in graph.items()} | {f"{name}.output": (32, 16)}
    common |= {f"decoder.{name}": size for name, size in decoder.items()}
    ends = {"teacher_in": (16, 48), "teacher_out": (48, 16), "position_embed.0": (3, 128)}
    ends |= {"position_embed.2": (128, 48), "graph_encoder.output": (32, 28)}
    assert layers(projected, "encoder.") == common | ends
    assert layers(compared) == common | {"code_in": (16, 7), "code_out": (7, 16)}
    assert projected.codebook.weight.shape == (28, 16) and compared.codebook.weight.shape == (28, 7)
    assert compared.code_norm.num_features == 7 and not compared.code_norm.affine and projected.code_norm is None
    assert projected.prompts.tokens.shape == projected.prompts.positions.shape == (2, 2, 48)
    assert (
        projected.prompts.dropout.p == 0.3 and projected.graph_encoder.neighbors_of(torch.rand(1, 6, 3)).shape[2] == 3
    )
    groups = {part.num_groups for part in projected.modules() if isinstance(part, nn.GroupNorm)}
    assert groups == {4} and projected.config.min_points == 8
    assert ActAutoencoderConfig(num_groups=90, group_size=8).min_points == 90


def test_what_a_teacher_is_needed_for_is_refused_without_one():
    model = tiny_autoencoder(None)
    message = "output_hidden_states or output_attentions is set for an autoencoder without a teacher"
    for asked in ({"output_hidden_states": True}, {"output_attentions": True}):
        with pytest.raises(ValueError, match=message):
            model(clouds(), **asked)
    config = ActAutoencoderConfig(**SMALL_AUTOENCODER)
    wanted = "encoder: given, but config.encoder_config is None; expected a config of this encoder"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        ActAutoencoder(config, random_encoder(tiny_config("vit")))
    for wrong in ({"temperature": 0.0}, {"kl_weight": -1e-9}):
        ((name, value),) = wrong.items()
        expected = "above 0" if name == "temperature" else "at least 0"
        with pytest.raises(ValueError, match=re.escape(f"{name}={value}; expected {expected}")):
            model(clouds(), **wrong)


def test_a_moving_average_of_codes_decays_and_needs_the_nearest_codes():
    nearest = {"quantizer": "nearest", "code_scores": "cosine"}
    for wrong in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=f"code_ema_decay={wrong}; expected between 0 and 1, or None"):
            ActAutoencoderConfig(code_ema_decay=wrong, **nearest)
    assert ActAutoencoderConfig(code_ema_decay=0.01, **nearest).code_ema_decay == 0.01
    assert ActAutoencoderConfig(code_scores="distance", code_restart_share=0.5).quantizer == "gumbel"
    assert ActAutoencoderConfig(detach_teacher=True, num_prompts=0).detach_teacher is True


def test_a_teacher_is_opened_with_the_attention_and_precision_of_the_call():
    plain = ActAutoencoder.open_part(tiny_autoencoder("vit").config, {})
    chosen = {"attn_implementation": "eager", "dtype": torch.bfloat16}
    other = ActAutoencoder.open_part(tiny_autoencoder("vit").config, {}, **chosen)
    assert (plain.config._attn_implementation, plain.dtype) == ("sdpa", torch.float32)
    assert (other.config._attn_implementation, other.dtype) == ("eager", torch.bfloat16)
    assert not any(weight.requires_grad for weight in (*plain.parameters(), *other.parameters()))
    assert not plain.training and not other.training
