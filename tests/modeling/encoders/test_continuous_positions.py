"""Rotary, relative and convolutional positions at continuous coordinates."""

from functools import partial

import pytest
import torch
from torch import nn

from hf_any3d.modeling.encoders import LayerPass, TokenPlaces, convolve_on_line, encoder_families
from hf_any3d.modeling.encoders.positions import line_bias, plane_bias
from hf_any3d.modeling.encoders.rotary import HeadRotation, combine_views
from tests.tiny_encoders import HIDDEN, random_encoder, tiny_config, tiny_model


def on_line(*views, columns=9):
    """Coordinates of one cloud, a list for each view, the class token's first."""
    return TokenPlaces(torch.tensor(views).float()[None, :, :, None], 1, columns)


def test_class_token_is_in_the_middle():
    entry = torch.rand(2, 6, 4, 2)
    places = TokenPlaces.with_class_token(entry, 3, 8)
    assert torch.equal(places.entry[:, :, 0], torch.tensor([3.5, 1.0]).expand(2, 6, 2))
    assert torch.equal(places.entry[:, :, 1:], entry)
    assert TokenPlaces.with_class_token(entry[..., :1], 1, 8).entry[0, 0, 0].tolist() == [3.5]


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


def test_line_bias_is_the_mean_over_the_views():
    biases, first, second = nn.Embedding(17, 3), [0, 3.25, 8], [4, 1, 1.5]
    one, other, both = (line_bias(on_line(*v), biases, lambda d: d + 8) for v in ([first], [second], [first, second]))
    torch.testing.assert_close(both, (one + other) / 2)


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


def test_plane_bias_is_bilinear_between_integer_offsets():
    biases = torch.randn(5 * 5 + 3, 2)
    entry = torch.tensor([[[[0.0, 0.0], [0.5, 1.0]]]])
    bias = plane_bias(TokenPlaces.with_class_token(entry, 3, 3), biases)[0]
    grid = biases[:-3].view(5, 5, 2)  # offsets of the query from the key, row first
    torch.testing.assert_close(bias[:, 2, 1], (grid[3, 2] + grid[3, 3]) / 2)
    torch.testing.assert_close(bias[:, 1, 2], (grid[1, 2] + grid[1, 1]) / 2)
    assert torch.equal(bias[:, 0, 1], biases[-3]) and torch.equal(bias[:, 1, 0], biases[-2])
    assert torch.equal(bias[:, 0, 0], biases[-1])


def angles(views=6, frequencies=8, axes=1):
    return torch.randn(2, views, 5, axes, frequencies)


def test_frequencies_alternate_between_views():
    given = angles(axes=2)
    found = combine_views(given, "split_frequencies", 4)
    assert found.shape == (2, 1, 5, 2, 8)
    for number in range(8):
        assert torch.equal(found[:, 0, ..., number], given[:, number % 6, ..., number])


def test_heads_alternate_between_views():
    given = angles()
    found = combine_views(given, "split_heads", 8)
    assert found.shape == (2, 8, 5, 1, 8)
    assert all(torch.equal(found[:, head], given[:, head % 6]) for head in range(8))


def test_mean_and_first_view():
    given = angles()
    torch.testing.assert_close(combine_views(given, "mean_angle", 1)[:, 0], given.mean(dim=1))
    assert torch.equal(combine_views(given, "first_view", 1), given[:, :1])


def test_queries_are_rotated_like_the_keys_that_they_share():
    values = torch.randn(2, 3, 5, 4)
    rotation = HeadRotation(values)
    keys, queries = torch.randn(2, 3, 5, 4), torch.randn(2, 6, 5, 4)
    assert rotation.unsqueeze(1).shape[-1] == 4
    assert torch.equal(keys * rotation.unsqueeze(1), keys * values)
    expected = queries.view(2, 3, 2, 5, 4) * values.unsqueeze(2)
    assert torch.equal(queries * rotation, expected.flatten(1, 2))


def test_rotation_depends_only_on_differences_of_coordinates():
    # With one view, shifting all coordinates by the same amount changes nothing.
    family, encoder = encoder_families()["llama"], random_encoder(tiny_config("llama"))
    tokens = torch.randn(1, 5, HIDDEN)
    layer = family.layers_of(encoder)[0]
    states = []
    for shift in (0.0, 2.7):
        places = on_line([shift + x for x in (4.0, 0.3, 2.9, 7.1, 8.0)], columns=20)
        call = LayerPass(encoder, family.layers_of(encoder), tokens, None, places, "first_view")
        with torch.no_grad():
            states.append(layer(tokens, **next(iter(family.layer_inputs(call)))))
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "data2vec-audio", "wavlm"])
def test_convolution_is_that_of_the_encoder_at_integer_coordinates(model_type):
    encoder, family = random_encoder(tiny_config(model_type)), encoder_families()[model_type]
    frames = torch.randn(2, 9, HIDDEN)
    order = torch.randperm(9)
    places = on_line([4, *order.tolist()]).entry.expand(2, 3, -1, -1)
    with torch.no_grad():
        own = encoder.encoder.pos_conv_embed(frames)
        convolution = partial(family.line_convolution, encoder)
        found = convolve_on_line(frames[:, order], TokenPlaces(places, 1, 9), convolution)
    torch.testing.assert_close(found, own[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("autocast", [False, True])
def test_convolution_of_narrow_groups_is_right_in_bfloat16(groups, autocast):
    # torch returns wrong numbers for such groups on CPUs with AMX.
    sizes = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": groups}
    encoder, family = random_encoder(tiny_config("wav2vec2", **sizes)), encoder_families()["wav2vec2"]
    frames = torch.randn(2, 9, HIDDEN)
    with torch.no_grad():
        right = family.line_convolution(encoder, frames)
        with torch.autocast("cpu", enabled=autocast):
            dtype = torch.float32 if autocast else torch.bfloat16
            found = family.line_convolution(encoder.to(dtype), frames.to(dtype))
    torch.testing.assert_close(found.float() / right.std(), right / right.std(), rtol=0, atol=0.1)


def test_convolution_is_continuous_in_the_coordinates():
    convolution = nn.Conv1d(4, 4, 3, padding=1)

    def run(place):
        tokens = torch.arange(8.0).view(1, 2, 4)
        line = on_line([4, 2.0, place])
        return convolve_on_line(tokens, line, lambda x: convolution(x.transpose(1, 2)).transpose(1, 2))

    with torch.no_grad():
        for place in (2.0, 2.5, 3.0, 8.0):
            torch.testing.assert_close(run(place - 1e-4), run(place), rtol=0, atol=5e-3)
        assert (run(2.5) - run(3.0)).abs().max() > 0.01


@torch.no_grad()
def test_dinov3_rotation_at_patch_centers_is_that_of_the_encoder():
    encoder = tiny_model("dinov3_vit").any2point.encoder
    side = encoder.config.image_size // encoder.config.patch_size
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    entry = torch.stack([column, row], dim=-1).view(1, 1, side * side, 2).float()
    places = TokenPlaces(entry, side, side)
    call = LayerPass(encoder, nn.ModuleList([nn.Identity()]), torch.zeros(1, 1), None, places, "first_view")
    (found,) = encoder_families()["dinov3_vit"].layer_inputs(call)
    image = torch.zeros(1, 3, encoder.config.image_size, encoder.config.image_size)
    for ours, theirs in zip(found["position_embeddings"], encoder.rope_embeddings(image), strict=True):
        torch.testing.assert_close(ours[0, 0], theirs)
