"""Prompt tokens: only attention sees them."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from hf_any3d import PromptTokensConfig
from hf_any3d.tuners.prompt_tokens import PromptTokensLayer
from tests.errors import raises
from tests.tiny_encoders import HIDDEN, LAYERS, clouds, tiny_model, train_step

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


def layer_inputs_and_outputs(model):
    """Return input and output tokens of each layer, after checking that prompts are appended to its input."""
    core = model.get_base_model().any2point
    seen = {}
    for number, layer in enumerate(core.family.layers_of(core.encoder)):
        layer.base_layer.register_forward_hook(lambda m, args, out, n=number: seen.update({n: (args[0], out)}))
    logits_of(model)
    tokens = 1 + core.config.num_tokens
    for number, prompts in enumerate(prompts_of(model)):
        inputs = seen[number][0]
        assert inputs.shape == (3, tokens + 4, HIDDEN)
        assert torch.equal(inputs[:, tokens:], prompts.expand(3, -1, -1))
    return {number: (inputs[:, :tokens], outputs[:, :tokens]) for number, (inputs, outputs) in seen.items()}


def test_each_layer_has_its_own_prompts_after_the_tokens():
    seen = layer_inputs_and_outputs(prompted())
    assert torch.equal(seen[1][0], seen[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_prompts_have_an_effect_and_gradients_in_every_kind_of_encoder(encoder):
    model = prompted(encoder)
    assert (logits_of(model) - logits_of(tiny_model(encoder))).abs().max() > 1e-4
    assert logits_of(model)[:1].allclose(logits_of(model, clouds()[:1]), atol=1e-5), "a single cloud"
    assert train_step(model).isfinite()
    prompts = prompts_of(model)
    assert len(prompts) == LAYERS and all(p.grad.abs().sum() > 0 for p in prompts)


def test_layers_with_and_without_prompts_can_be_combined(tmp_path):
    model = prompted("t5", layers_to_transform=1)
    assert len(prompts_of(model)) == 1
    train_step(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("t5"), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not torch.allclose(logits_of(model), logits_of(prompted("t5")), atol=1e-4)


def test_positions_in_every_layer_are_added_only_to_tokens():
    model = prompted(model={"position_injection": "every_layer"})
    seen = layer_inputs_and_outputs(model)
    assert (seen[1][0] - seen[0][1]).abs().amax(dim=-1).min() > 0
    assert train_step(model).isfinite()


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
    base = tiny_model(attention_axis="batch")
    with raises(ValueError, naming="attention_axis"):
        get_peft_model(base, PromptTokensConfig())
