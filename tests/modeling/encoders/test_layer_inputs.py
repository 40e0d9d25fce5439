"""What families give their layers at integer coordinates is what the encoders compute themselves."""

import pytest
import torch

from hf_any3d.modeling.encoders import (
    LayerPass,
    TokenPlaces,
    encoder_families,
)
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


def test_deberta_is_refused_under_autocast_in_full_precision():
    with torch.autocast("cpu", torch.bfloat16):
        message = "'deberta' layers overflow under autocast; load the encoder with dtype=torch.bfloat16"
        with pytest.raises(ValueError, match=message):
            opened("deberta", ORDER)
        assert opened("deberta", ORDER, dtype=torch.bfloat16) and opened("deberta-v2", ORDER)
