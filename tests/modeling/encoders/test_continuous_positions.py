"""Rotary, relative and convolutional positions at continuous coordinates."""

from functools import partial

import pytest
import torch
from torch import nn

from hf_any3d.modeling.encoders import LayerPass, TokenPlaces, convolve_on_line, find_family
from hf_any3d.modeling.encoders.fitted_rotation import HeadRotation
from hf_any3d.modeling.encoders.positions import line_bias, plane_bias
from tests.tiny_encoders import HIDDEN, random_encoder, tiny_config, tiny_model


def on_line(*views, columns=9):
    """Coordinates of one cloud, a list for each view, the class token's first."""
    return TokenPlaces(torch.tensor(views).float()[None, :, :, None], 1, columns)


def test_tokens_without_a_place_are_in_the_middle_too():
    entry = torch.rand(2, 6, 4, 2)
    places = TokenPlaces.with_class_token(entry, 3, 8)
    assert places.followed_by(0) is places
    longer = places.followed_by(2)
    assert torch.equal(longer.entry[:, :, :5], places.entry)
    assert torch.equal(longer.entry[:, :, 5:], torch.tensor([3.5, 1.0]).expand(2, 6, 2, 2))
    assert (longer.rows, longer.columns, longer.class_tokens) == (3, 8, 1)


def test_line_bias_is_the_encoders_at_integer_coordinates_and_linear_between():
    biases = nn.Embedding(17, 3)
    rows = biases.weight.detach()

    def bucket(distance):
        return distance + 8

    at_integers = line_bias(on_line([0, 3, 8]), biases, bucket)[0]  # (heads, queries, keys)
    assert torch.equal(at_integers[:, 1, 2], rows[8 + 5]) and torch.equal(at_integers[:, 2, 0], rows[8 - 8])
    between = line_bias(on_line([0, 3.25, 8]), biases, bucket)[0]
    torch.testing.assert_close(between[:, 0, 1], 0.75 * rows[8 + 3] + 0.25 * rows[8 + 4])
    torch.testing.assert_close(between[:, 1, 0], 0.75 * rows[8 - 3] + 0.25 * rows[8 - 4])


@pytest.mark.parametrize("size", [(4, 4), (2, 5)])
def test_plane_bias_is_that_of_beit_at_integer_coordinates(size):
    rows, columns = size
    config = tiny_config("beit", image_size=(16 * rows, 16 * columns))
    module = random_encoder(config).layers[0].relative_position_bias
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    entry = torch.stack([column, row], dim=-1).reshape(1, 1, -1, 2).float()
    found = plane_bias(TokenPlaces.with_class_token(entry, rows, columns), module.relative_position_bias_table)
    index = module.generate_relative_position_index((rows, columns))
    torch.testing.assert_close(found[0], module.relative_position_bias_table[index].permute(2, 0, 1))


def test_queries_are_rotated_like_the_keys_that_they_share():
    values = torch.randn(2, 3, 5, 4)
    rotation = HeadRotation(values)
    keys, queries = torch.randn(2, 3, 5, 4), torch.randn(2, 6, 5, 4)
    assert rotation.unsqueeze(1).shape[-1] == 4
    assert torch.equal(keys * rotation.unsqueeze(1), keys * values)
    expected = queries.view(2, 3, 2, 5, 4) * values.unsqueeze(2)
    assert torch.equal(queries * rotation, expected.flatten(1, 2))


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "data2vec-audio", "wavlm"])
def test_convolution_is_that_of_the_encoder_at_integer_coordinates(model_type):
    encoder, family = random_encoder(tiny_config(model_type)), find_family(tiny_config(model_type))
    frames = torch.randn(2, 9, HIDDEN)
    order = torch.randperm(9)
    places = on_line([4, *order.tolist()]).entry.expand(2, 3, -1, -1)
    with torch.no_grad():
        own = encoder.encoder.pos_conv_embed(frames)
        convolution = partial(family.line_convolution, encoder)
        found = convolve_on_line(frames[:, order], TokenPlaces(places, 1, 9), convolution)
    torch.testing.assert_close(found, own[:, order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dinov3_rotation_at_patch_centers_is_that_of_the_encoder():
    encoder = tiny_model("dinov3_vit").any2point.encoder
    side = encoder.config.image_size // encoder.config.patch_size
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    entry = torch.stack([column, row], dim=-1).view(1, 1, side * side, 2).float()
    # The class token has the first place.
    places = TokenPlaces.with_class_token(entry, side, side)
    family = find_family(encoder.config)
    call = LayerPass(
        encoder, family.layers_of(encoder), torch.zeros(1, 1 + side * side, 1), None, places, "first_view"
    )
    found = next(iter(family.layer_inputs(call)))
    image = torch.zeros(1, 3, encoder.config.image_size, encoder.config.image_size)
    for ours, theirs in zip(found["position_embeddings"], encoder.rope_embeddings(image), strict=True):
        torch.testing.assert_close(ours.reshape(-1, theirs.shape[-1])[1:], theirs)
