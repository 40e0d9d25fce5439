"""Dropout of frozen attention."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hf_any3d.training.models import drop_attention
from hf_any3d.tuners import GuidedAdapterConfig
from tests.tiny_encoders import LAYERS, clouds, tiny_model


def without_other_noise(model: nn.Module) -> nn.Module:
    """Set train mode without randomness other than in the frozen attention."""
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "encoder" not in name or "guided_adapter" in name:
            module.eval()
    return model


@pytest.mark.parametrize("encoder", ["dinov2", "imagebind_audio", "clip_text_model", "bert"])
def test_frozen_attention_has_dropout_only_in_training(encoder):
    points = clouds(4)
    still = without_other_noise(tiny_model(encoder, head_dropout=0.0))
    torch.testing.assert_close(still(points).logits, still(points).logits)

    model = tiny_model(encoder, head_dropout=0.0)
    expected = model.eval()(points).logits
    assert drop_attention(model, 0.5) == LAYERS
    model = without_other_noise(get_peft_model(model, GuidedAdapterConfig()))
    assert not torch.allclose(model(points=points).logits, model(points=points).logits, atol=1e-5)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "q_proj" in n or "query" in n)
    with model.disable_adapter():
        torch.testing.assert_close(model.eval()(points=points).logits, expected)


def test_shares_out_of_range_are_refused():
    with pytest.raises(ValueError, match="share is 1; expected at least 0 and less than 1"):
        drop_attention(tiny_model("dinov2"), 1)


def test_encoders_without_such_dropout_are_refused():
    with pytest.raises(ValueError, match="GPT2Model has no attention with dropout as attention_dropout or dropout"):
        drop_attention(tiny_model("gpt2"), 0.1)
