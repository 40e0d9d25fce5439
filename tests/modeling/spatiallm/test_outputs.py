"""What SpatialLM returns, compared with its parts run by hand, and what its config says."""

import math
import re

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from hf_any3d.modeling.layers.cloud_prompts import EncodedClouds
from hf_any3d.modeling.layers.forward_contract import CACHE
from hf_any3d.modeling.spatiallm import SpatialLMConfig
from hf_any3d.modeling.spatiallm.modeling_spatiallm import FourierPositions
from tests.common.case import spread_weights
from tests.errors import raises
from tests.tiny_ptv3 import SMALL
from tests.tiny_spatiallm import PLACE, POINT, TEXT, prompts, tiny_spatiallm


@pytest.fixture(scope="module")
def model():
    made = tiny_spatiallm()
    made.set_attn_implementation("eager")
    spread_weights(made)
    return made.eval()


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        ours, theirs = (ours,), (theirs,)
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


def test_positions_are_waves_of_ten_frequencies():
    cells = torch.tensor([[0, 3, 8], [8, 1, 2]])
    found = FourierPositions(9)(cells)
    assert found.shape == (2, 63) and found.dtype == torch.float32
    for own, cell in zip(found, cells.tolist(), strict=True):
        place = [number / 8 for number in cell]
        waves = []
        for step in range(10):
            angles = [math.pi * (1 + step * 29 / 9) * number for number in place]
            waves += [*map(math.sin, angles), *map(math.cos, angles)]
        assert own.tolist() == pytest.approx([*place, *waves], abs=1e-4)


@torch.no_grad()
def test_tokens_of_clouds_are_those_of_the_encoder_with_their_cells(model):
    given = prompts(2)
    clouds, cells = given["points"], given["grid_coord"]
    mask = torch.ones(clouds.shape[:2], dtype=torch.bool)
    mask[1, 9:] = False
    body = model.spatiallm
    encoded = body.point_encoder(clouds, point_mask=mask, grid_coord=cells)
    positions = FourierPositions(model.config.fourier_resolution)(encoded.grid_coord)
    joined = body.input_projection(torch.cat([encoded.last_hidden_state, positions], dim=1))
    end = int(encoded.offsets[0])
    contexts = body.encode(clouds, cells, mask)
    assert same(contexts, (joined[:end], joined[end:])) and len(joined) > end
    first, activation, second = body.projector
    assert isinstance(activation, nn.GELU) and first.out_features == first.in_features == 24
    features = second(nn.functional.gelu(first(joined)))
    for one in (body, model):
        own = one.get_point_features(clouds, cells, mask)
        for ours, theirs in zip(own, features.split([end, len(joined) - end]), strict=True):
            torch.testing.assert_close(ours, theirs)
    linear = tiny_spatiallm(projector="linear").spatiallm.projector
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(24, 16)]


@torch.no_grad()
def test_outputs_are_those_of_the_language_model_for_words_and_clouds(model):
    inputs = prompts(2)
    tokens, clouds = inputs["input_ids"], (inputs["points"], inputs["grid_coord"])
    features = model.get_point_features(*clouds)
    words = model.get_input_embeddings()(tokens.masked_fill(tokens == PLACE, 0))
    words[tokens == PLACE] = torch.cat(features)
    mask = torch.ones_like(tokens)
    mask[1, 0] = 0
    positions = torch.arange(tokens.shape[1]).expand(2, -1).clone()
    positions[:, -2:] += 9
    asked = {"output_hidden_states": True, "output_attentions": True}
    given = {"attention_mask": mask, "position_ids": positions, "use_cache": True}
    text = model.language_model(inputs_embeds=words, **given, **asked)
    found = model(**inputs | given, **asked)
    assert set(found) == {*text, "point_features"}
    for name in ("logits", "hidden_states", "attentions"):
        assert same(found[name], text[name]), name
    assert isinstance(found.point_features, tuple) and same(found.point_features, features)
    assert found.past_key_values.get_seq_length() == tokens.shape[1]
    body = model.spatiallm(**inputs | given, **asked)
    assert set(body) == {"last_hidden_state", *set(found) - {"logits"}}
    for name in ("hidden_states", "attentions", "point_features"):
        assert same(body[name], found[name]), name
    assert same(model.language_model.lm_head(body.last_hidden_state), found.logits)
    for changes in ({"position_ids": None}, {"attention_mask": None}):
        for one, name in ((model, "logits"), (model.spatiallm, "last_hidden_state")):
            other = one(**inputs | given | changes)
            assert not torch.allclose(other[name], (found if one is model else body)[name], atol=1e-3)
    point_mask = torch.ones(inputs["points"].shape[:2], dtype=torch.bool)
    assert same(model(**inputs, point_mask=point_mask).logits, model(**inputs).logits)


@torch.no_grad()
def test_nothing_is_returned_that_was_not_asked_for(model):
    words = torch.tensor([[2, 3, 4]])
    for one, own in ((model, "logits"), (model.spatiallm, "last_hidden_state")):
        assert set(one(words, use_cache=False)) == {own}
        assert set(one(words)) == {own, CACHE}
        model.config.output_hidden_states = True
        assert len(one(words).hidden_states) == 3
        model.config.output_hidden_states = False
        cache = DynamicCache(config=model.config.text_config)
        first = one(words[:, :2], past_key_values=cache)
        rest = one(words[:, 2:], past_key_values=cache)
        assert first.past_key_values is rest.past_key_values is cache and cache.get_seq_length() == 3
        torch.testing.assert_close(rest[own], one(words)[own][:, 2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(words, logits_to_keep=1).logits, model(words).logits[:, -1:])


@torch.no_grad()
def test_the_loss_is_the_mean_over_next_tokens(model):
    inputs = prompts(2)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] > 23, -100)
    output = model(**inputs, labels=labels)
    logs = output.logits.log_softmax(dim=-1)
    losses = [
        -logs[row, place, labels[row, place + 1]]
        for row in range(2)
        for place in range(labels.shape[1] - 1)
        if labels[row, place + 1] != -100
    ]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, output.loss)
    parts = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(50))
    torch.testing.assert_close(parts.loss, torch.stack(losses).sum() / 50)


@torch.no_grad()
def test_clouds_come_once_as_points_features_or_encoded(model):
    inputs, embedded = prompts(2), torch.zeros(1, 2, 16)
    features = model.get_point_features(inputs["points"], inputs["grid_coord"])
    expected = model(**inputs).logits
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    encoded = {"point": EncodedClouds(features)}
    for given in ({"point_features": features}, {"mm_encoder_outputs": encoded}):
        found = model(**words, **given)
        assert torch.equal(found.logits, expected) and same(found.point_features, features)
    text, none, _ = model.spatiallm.embed(inputs_embeds=embedded)
    assert text is embedded and none is None
    for given, message in (
        (inputs | {"point_features": features}, "points with point_features; expected one of them"),
        (inputs | {"mm_encoder_outputs": encoded}, "points with mm_encoder_outputs['point']; expected one of them"),
        (inputs | {"inputs_embeds": embedded}, "points with inputs_embeds; expected"),
        (
            words | {"inputs_embeds": embedded, "point_features": features},
            "point_features with inputs_embeds; expected",
        ),
        ({"points": inputs["points"]}, "input_ids and inputs_embeds are both None; expected one of them"),
        (
            inputs | {"grid_coord": inputs["grid_coord"] + 60},
            "grid_coord has a cell 67; expected 0 to num_bins - 1 = 63",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            model(**given)


@torch.no_grad()
def test_cells_up_to_the_last_are_read(model):
    cells = torch.tensor([[0, 0, 0], [63, 1, 5]])
    assert len(model.spatiallm.encode([torch.rand(2, 6)], [cells])[0]) == 2
    with raises(ValueError, naming="grid_coord"):
        model.spatiallm.encode([torch.rand(2, 6)], [cells + 1])


def test_new_layers_between_the_models_are_small():
    model = tiny_spatiallm(initializer_range=0.05)
    for layer in (model.spatiallm.input_projection, model.spatiallm.projector[0], model.spatiallm.projector[2]):
        assert 0.04 < layer.weight.std() < 0.06 and not layer.bias.any()
    assert model.spatiallm.input_projection.weight.shape == (24, 24 + 63)
    assert model.dtype == torch.float32 and model.to(torch.bfloat16).dtype == torch.bfloat16
    assert not model.is_gradient_checkpointing


def test_a_config_tells_of_cells_and_its_point_encoder():
    default = SpatialLMConfig()
    assert (default.grid_size, default.fourier_resolution, default.in_channels) == (0.025, 80, 6)
    assert default.batch_dependent_flags == [] and default.point_config.grid_size == 0.025
    text = default.text_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (896, 4864, 24)
    assert (text.num_attention_heads, text.num_key_value_heads, text.tie_word_embeddings) == (14, 2, True)
    small = SpatialLMConfig(point_config=POINT, text_config=TEXT, num_bins=101)
    assert small.grid_size == 32 / 101 and small.fourier_resolution == 101 // 2 ** (len(small.point_config.depths) - 1)
    stages = len(small.point_config.depths)
    assert SpatialLMConfig(point_config=POINT, text_config=TEXT, num_bins=2**stages).fourier_resolution == 2


STAGES = len(SMALL["depths"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector": "conv"}, "projector='conv'; expected one of 'mlp', 'linear'"),
        (
            {"point_config": {"model_type": "act3d"}},
            "point_config is of the type 'act3d'; expected 'point_transformer_v",
        ),
        (
            {"point_config": POINT | {"in_channels": 3}},
            "point_config has in_channels=3; expected 6, of xyz and colors",
        ),
        (
            {"num_bins": 2**STAGES - 1},
            f"num_bins={2**STAGES - 1} with {STAGES} stages in point_config; expected at least {2**STAGES}, twice",
        ),
        ({"parts": {"point_encoder": {}}}, "parts has 'point_encoder'"),
        ({"num_bins": 0}, "num_bins=0; expected 1 to"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SpatialLMConfig(**({"point_config": POINT, "text_config": TEXT} | settings))


def test_a_decoder_is_refused():
    decoder = {"decoder_depths": (1,), "decoder_hidden_sizes": (16,), "decoder_num_attention_heads": (2,)}
    with raises(ValueError, naming="point_config"):
        SpatialLMConfig(point_config=POINT | {"use_decoder": True} | decoder, text_config=TEXT)
