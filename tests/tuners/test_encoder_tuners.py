"""Common behavior of this package's PEFT methods, on layers with post-norm (BERT) and pre-norm (CLIP)."""

import pytest
import torch
from peft import get_peft_model

from hf_any3d import BitFitConfig, GuidedAdapterConfig, PromptTokensConfig, SideTuningConfig
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_model, train_step
from tests.turns import by_turns

CONFIGS = {
    "bitfit": BitFitConfig,
    "prompt_tokens": PromptTokensConfig,
    "side_tuning": lambda **settings: SideTuningConfig(**({"r": 8, "init_weights": False} | settings)),
    "bottleneck": lambda **settings: GuidedAdapterConfig(guidance=False, init_weights=False, **settings),
}


@pytest.fixture(params=by_turns(sorted(CONFIGS), ["bert", "clip_vision_model"]), ids="-".join)
def pair(request):
    """A method and an encoder."""
    return request.param


@pytest.fixture
def encoder(pair):
    return pair[1]


@pytest.fixture
def config(pair):
    return CONFIGS[pair[0]]


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


@pytest.mark.slow
def test_second_adapter_on_other_layers_is_inactive_until_chosen(encoder, config):
    model = get_peft_model(tiny_model(encoder, large_logits=True), config(), adapter_name="first")
    targets = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, model.base_model.tuner_layer_cls)
    }
    del model
    upper = sorted(name for name in targets if "layer.1" in name or "layers.1" in name)
    lower = sorted(targets - set(upper))
    assert upper and lower
    if config is CONFIGS["side_tuning"]:
        with pytest.raises(ValueError, match="the encoder's last layer, to whose output the side network adds"):
            get_peft_model(tiny_model(encoder), config(target_modules=lower))
        return
    model = get_peft_model(tiny_model(encoder, large_logits=True), config(target_modules=lower), adapter_name="first")
    train_step(model)
    before = logits_of(model)
    model.add_adapter("second", config(target_modules=upper))
    assert torch.equal(logits_of(model), before)
    assert not [name for name, p in model.named_parameters() if ".second" in name and p.requires_grad]
    model.set_adapter("second")
    train_step(model)
    assert not torch.equal(logits_of(model), before)
    model.set_adapter("first")
    assert torch.equal(logits_of(model), before)


def test_task_types_of_language_models_are_refused(config):
    with raises(ValueError, naming="task_type"):
        get_peft_model(tiny_model(), config(task_type="CAUSAL_LM"))
