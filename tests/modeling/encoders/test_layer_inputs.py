"""What families give their layers at integer coordinates is what the encoders compute themselves."""

import pytest
import torch

from hf_any3d.modeling.encoders import LayerPass, TokenPlaces, find_family
from tests.tiny_encoders import HIDDEN, random_encoder, tiny_config


def opened(
    model_type: str, order: list[int], views: int = 2, batch: int = 1, dtype=torch.float32, mask=None, **changes
):
    """An encoder, and the inputs of its layers for tokens at integer places, the same in all views and clouds."""
    encoder, family = (
        random_encoder(tiny_config(model_type, **changes)).to(dtype),
        find_family(tiny_config(model_type, **changes)),
    )
    entry = torch.tensor(order).float().view(1, 1, -1, 1).expand(batch, 2, -1, 1)
    tokens, places = torch.randn(batch, len(order), HIDDEN).to(dtype), TokenPlaces(entry, 1, 9)
    call = LayerPass(encoder, family.layers_of(encoder), tokens, None, places, "mean_angle")
    with torch.no_grad():
        return encoder, list(family.layer_inputs(call))


ORDER = [3, 0, 1, 5, 2, 4]


def test_deberta_is_refused_under_autocast_in_full_precision():
    with torch.autocast("cpu", torch.bfloat16):
        message = "'deberta' layers overflow under autocast; load the encoder with dtype=torch.bfloat16"
        with pytest.raises(ValueError, match=message):
            opened("deberta", ORDER)
        assert opened("deberta", ORDER, dtype=torch.bfloat16) and opened("deberta-v2", ORDER)
