"""What families give their layers at integer coordinates is what the encoders compute themselves."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_any3d.modeling.encoders import (
    LayerPass,
    TokenPlaces,
    convolve_on_line,
    encoder_families,
)
from hf_any3d.modeling.encoders.positions import Addend, image_grid, line, plane, plane_bias
from tests.tiny_encoders import HIDDEN, random_encoder, tiny_config

TOKENS = 6


def opened(
    model_type: str, order: list[int], views: int = 2, batch: int = 1, dtype=torch.float32, mask=None, **changes
):
    """An encoder, and the inputs of its layers for tokens at integer places, the same in all views and clouds."""
    encoder, family = random_encoder(tiny_config(model_type, **changes)).to(dtype), encoder_families()[model_type]
    entry = torch.tensor(order).float().view(1, 1, -1, 1).expand(batch, 2, -1, 1)
    tokens, places = torch.randn(batch, len(order), HIDDEN).to(dtype), TokenPlaces(entry, 1, 9)
    call = LayerPass(encoder, family.layers_of(encoder), tokens, None, places, "mean_angle")
    with torch.no_grad():
        return encoder, list(family.layer_inputs(call))


ORDER = [3, 0, 1, 5, 2, 4]


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t5_has_biases_of_distances(model_type, dtype):
    sizes = {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 4}
    encoder, inputs = opened(model_type, ORDER, dtype=dtype, **sizes)
    own = encoder.encoder.block[0].layer[0].SelfAttention.compute_bias(TOKENS, TOKENS)
    assert len(inputs) == 2
    for each in inputs:
        assert list(each) == ["position_bias", "is_causal"] and each["is_causal"] is False
        assert each["position_bias"].dtype == dtype
        torch.testing.assert_close(each["position_bias"], own[:, :, ORDER][..., ORDER])


@torch.no_grad()
def test_umt5_adds_the_difference_to_the_biases_of_a_text():
    encoder, inputs = opened("umt5", ORDER)
    assert len(inputs) == 2
    for layer, each in zip(encoder.encoder.block, inputs, strict=True):
        own = layer.layer[0].SelfAttention.compute_bias(TOKENS, TOKENS)
        assert list(each) == ["attention_mask", "is_causal"] and each["is_causal"] is False
        torch.testing.assert_close(each["attention_mask"], own[:, :, ORDER][..., ORDER] - own)


@torch.no_grad()
def test_mpnet_has_biases_of_distances():
    encoder, inputs = opened("mpnet", ORDER)
    own = encoder.encoder.compute_position_bias(torch.zeros(1, TOKENS, HIDDEN))
    for each in inputs:
        assert list(each) == ["position_bias"]
        torch.testing.assert_close(each["position_bias"], own[:, :, ORDER][..., ORDER])


@torch.no_grad()
def test_wavlm_has_biases_of_distances_for_each_cloud_and_head():
    encoder, inputs = opened("wavlm", ORDER, batch=3)
    own = encoder.encoder.layers[0].attention.compute_bias(TOKENS, TOKENS)  # (heads, queries, keys)
    for each in inputs:
        assert list(each) == ["position_bias"]
        torch.testing.assert_close(each["position_bias"], own[:, ORDER][..., ORDER].repeat(3, 1, 1))


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2"])
def test_each_head_of_deberta_has_rounded_distances_in_one_view(model_type):
    encoder, family = random_encoder(tiny_config(model_type)), encoder_families()[model_type]
    entry = torch.rand(2, 3, TOKENS, 1, generator=torch.Generator().manual_seed(0)) * 30
    call = LayerPass(
        encoder,
        family.layers_of(encoder),
        torch.zeros(2, TOKENS, HIDDEN),
        None,
        TokenPlaces(entry, 1, 31),
        "mean_angle",
    )
    inputs = list(family.layer_inputs(call))
    assert len(inputs) == 2 and inputs[0] is inputs[1]
    assert list(inputs[0]) == ["attention_mask", "relative_pos", "rel_embeddings"]
    assert inputs[0]["attention_mask"].tolist() == [[[[1.0]]]]
    torch.testing.assert_close(inputs[0]["rel_embeddings"], encoder.encoder.get_rel_embedding())
    distance = torch.empty(2, 4, TOKENS, TOKENS, dtype=torch.long)
    for head in range(4):
        place = entry[:, head % 3, :, 0]
        distance[:, head] = (place[:, :, None] - place[:, None]).round()
    if model_type == "deberta-v2":
        # Those of up to half of the eight buckets are exact, others share one of a logarithmic scale.
        small = distance.abs() <= 4
        found = inputs[0]["relative_pos"].view(2, 4, TOKENS, TOKENS)
        assert inputs[0]["relative_pos"].shape == (1, 8, TOKENS, TOKENS)
        assert torch.equal(found[small], distance[small]) and found.abs().max() < 8
        assert torch.equal(found.sign(), distance.sign()) and found[~small].abs().min() >= 4
    else:
        assert torch.equal(inputs[0]["relative_pos"], distance)


@torch.no_grad()
@pytest.mark.parametrize("buckets", [-1, 0])
def test_deberta_v2_without_buckets_has_the_distances_themselves(buckets):
    _, inputs = opened("deberta-v2", ORDER, position_buckets=buckets)
    expected = [[a - b for b in ORDER] for a in ORDER]
    assert inputs[0]["relative_pos"].tolist() == [[expected] * 4]


def test_deberta_is_refused_under_autocast_in_full_precision():
    with torch.autocast("cpu", torch.bfloat16):
        message = "'deberta' layers overflow under autocast; load the encoder with dtype=torch.bfloat16"
        with pytest.raises(ValueError, match=message):
            opened("deberta", ORDER)
        assert opened("deberta", ORDER, dtype=torch.bfloat16) and opened("deberta-v2", ORDER)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("model_type", ["beit", "data2vec-vision"])
def test_biases_of_patches_are_those_that_layers_do_not_add_themselves(model_type, shared, own):
    sizes = {"use_relative_position_bias": own, "use_shared_relative_position_bias": shared, "image_size": (32, 48)}
    encoder, family = random_encoder(tiny_config(model_type, **sizes)), encoder_families()[model_type]
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    entry = torch.stack([order % 3, order // 3], dim=-1).float().expand(1, 2, -1, -1)
    places, mask = TokenPlaces.with_class_token(entry, 2, 3), torch.zeros(1, 1, 7, 7)
    call = LayerPass(encoder, family.layers_of(encoder), torch.zeros(1, 7, HIDDEN), mask, places, "mean_angle")
    inputs = list(family.layer_inputs(call))
    full = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])  # the class token comes first
    assert len(inputs) == 2
    for layer, each in zip(family.layers_of(encoder), inputs, strict=True):
        assert each["interpolate_pos_encoding"] is True and each["resolution"] == (32, 48)
        if model_type == "beit":
            assert each["is_causal"] is False and list(each)[0] == "attention_mask"
            bias, holder = each["attention_mask"], layer.relative_position_bias if own else None
            common = encoder.shared_position_bias
        else:
            bias, holder = (
                each["relative_position_bias"],
                layer.attention.attention.relative_position_bias if own else None,
            )
            common = getattr(encoder.encoder, "relative_position_bias", None)
        assert (common is not None) is shared
        if not shared and not own:
            assert bias is (mask if model_type == "beit" else None)
            continue
        if model_type != "beit" and own:
            assert isinstance(bias, Addend)
            bias = bias.values
        holders = [each for each in (common, holder) if each is not None]
        index = holders[0].generate_relative_position_index((2, 3))[full][:, full]
        expected = sum(each.relative_position_bias_table for each in holders)[index].permute(2, 0, 1)
        if own:
            # What the layer adds for an image of this size.
            expected = expected - holder((2, 3), True, dim_size=7)
        torch.testing.assert_close(bias, expected.view_as(bias))


def test_biases_of_a_grid_without_class_token_are_those_of_its_patches():
    biases = torch.randn(3 * 5 + 3, 2)
    entry = torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([2.0, 1.0])
    patches = plane_bias(TokenPlaces(entry, 2, 3, class_tokens=0), biases)
    assert patches.shape == (2, 2, 4, 4)
    torch.testing.assert_close(patches, plane_bias(TokenPlaces.with_class_token(entry, 2, 3), biases)[..., 1:, 1:])


@pytest.mark.parametrize(
    ("image", "patch", "expected"),
    [(64, 16, (4, 4)), ((32, 80), 16, (2, 5)), ([70, 33], (10, 11), (7, 3)), (65, [16, 32], (4, 2))],
)
def test_an_image_has_as_many_patches_as_fit(image, patch, expected):
    assert image_grid(SimpleNamespace(image_size=image, patch_size=patch)) == expected


def test_tables_leave_out_special_tokens_and_axes_of_one():
    weight = torch.arange(28.0).view(1, 14, 2)
    table = plane(weight, 2, 3)
    assert (table.kind, table.rows, table.columns) == ("plane", 3, 4) and torch.equal(table.weight, weight[0, 2:])
    table = line(weight[0])
    assert (table.kind, table.rows, table.columns) == ("line", 1, 14) and torch.equal(table.weight, weight[0])


@torch.no_grad()
def test_tokens_are_convolved_where_they_are_on_each_line():
    convolution = nn.Conv1d(3, 3, 3, padding=1)
    tokens = torch.randn(2, 4, 3)
    entry = torch.rand(2, 2, 5, 1, generator=torch.Generator().manual_seed(1)) * 7 - 1  # some beyond the line
    entry[0, 0, 1:3] = 2.25

    def convolve(rows: torch.Tensor) -> torch.Tensor:
        return convolution(rows.transpose(1, 2)).transpose(1, 2)

    found = convolve_on_line(tokens, TokenPlaces(entry, 1, 5), convolve)
    for cloud in range(2):
        total = torch.zeros(4, 3)
        for view in range(2):
            places = entry[cloud, view, 1:, 0].clamp(0, 4)
            shares = torch.tensor([[max(1 - abs(float(p) - number), 0) for number in range(5)] for p in places])
            rows = torch.stack([shares[:, n] @ tokens[cloud] / max(float(shares[:, n].sum()), 1) for n in range(5)])
            total += shares @ convolve(rows[None])[0]
        torch.testing.assert_close(found[cloud], total / 2)


@torch.no_grad()
@pytest.mark.parametrize(("groups", "in_full"), [(3, False), (4, True)], ids=["16 channels", "12 channels"])
@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_groups_alone_are_convolved_in_full_precision(groups, in_full, autocast):
    sizes = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": groups}
    encoder, family = random_encoder(tiny_config("wav2vec2", **sizes)), encoder_families()["wav2vec2"]
    frames = torch.randn(2, 9, HIDDEN)
    assert torch.equal(family.line_convolution(encoder, frames), encoder.encoder.pos_conv_embed(frames))
    dtype = torch.float32 if autocast else torch.bfloat16
    encoder, frames = encoder.to(dtype), frames.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = family.line_convolution(encoder, frames)
        expected = encoder.encoder.pos_conv_embed(frames)
    if in_full:
        expected = encoder.float().encoder.pos_conv_embed(frames.float()).to(dtype)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
