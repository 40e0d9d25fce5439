"""Prompt tokens: only attention sees them."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from hf_any3d import PromptTokensConfig
from hf_any3d.tuners.prompt_tokens import PromptTokensLayer
from tests.errors import raises
from tests.tiny_encoders import LAYERS, clouds, tiny_model, train_step
from tests.turns import some

# One for each kind of positions in attention: none, relative in 1D and 2D, content-based, rotary in 1D and 2D,
# convolutional.
ENCODERS = ["bert", "t5", "umt5", "mpnet", "beit", "deberta-v2", "llama", "stablelm", "dinov3_vit", "hubert", "wavlm"]


def prompted(encoder="bert", model=None, **settings):
    return get_peft_model(tiny_model(encoder, **(model or {})), PromptTokensConfig(num_prompts=4, **settings)).eval()


@torch.no_grad()
def logits_of(model, points=None):
    return model.eval()(points=clouds() if points is None else points).logits


def prompts_of(model):
    layers = [module for module in model.modules() if isinstance(module, PromptTokensLayer)]
    return [layer.prompt_tokens_embedding["default"] for layer in layers]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", some(ENCODERS, left_out=["umt5", "mpnet", "stablelm", "dinov3_vit", "hubert"]))
def test_prompts_have_an_effect_and_gradients_in_every_kind_of_encoder(encoder):
    model = prompted(encoder)
    assert (logits_of(model) - logits_of(tiny_model(encoder))).abs().max() > 1e-4
    assert logits_of(model)[:1].allclose(logits_of(model, clouds()[:1]), atol=1e-5), "a single cloud"
    assert train_step(model).isfinite()
    prompts = prompts_of(model)
    assert len(prompts) == LAYERS and all(p.grad.abs().sum() > 0 for p in prompts)


def test_positions_of_prompts_are_trained_and_stored(tmp_path):
    model = prompted(positions=True)
    assert train_step(model).isfinite()
    own = [name for name, weight in model.named_parameters() if "prompt_tokens_" in name and weight.grad.any()]
    assert len(own) == 2 * LAYERS
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "prompt_tokens_position" in name:
                weight.add_(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits_of(model))
    assert (logits_of(model) - logits_of(prompted(positions=True))).abs().max() > 1e-4


def test_attention_over_the_batch_is_refused():
    base = tiny_model(released={"attention_axis": "batch"})
    with raises(ValueError, naming="attention_axis"):
        get_peft_model(base, PromptTokensConfig())
