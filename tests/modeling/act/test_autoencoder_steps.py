"""One pass of the discrete autoencoder, part by part: the teacher with prompts, the codes, and the losses."""

import itertools

import pytest
import torch
from torch import nn

from hf_any3d.modeling.act import ActAutoencoder
from hf_any3d.modeling.encoders import hidden_of
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds


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
