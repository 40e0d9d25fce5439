"""PEFT's own methods on the same models, for comparison with guided adapters."""

import re

import pytest
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_any3d import GuidedAdapterConfig
from hf_any3d.modeling.act import ActForPreTraining
from hf_any3d.modeling.encoders import encoder_families
from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from tests.common.models import case_of, minigpt3d
from tests.errors import raises
from tests.tiny_encoders import LAYERS, tiny_model


def lora(base):
    return LoraConfig(r=2, target_modules=encoder_linear_pattern(base), modules_to_save=trainable_module_names(base))


def ia3(base):
    return IA3Config(
        target_modules=encoder_linear_pattern(base),
        feedforward_modules=[],
        modules_to_save=trainable_module_names(base),
    )


@pytest.mark.parametrize("method", [lora, ia3])
def test_encoder_stays_in_eval_mode_with_other_methods(method):
    base = tiny_model("bert", attn_implementation="eager")
    model = get_peft_model(base, method(base)).train()
    dropouts = [m for n, m in model.named_modules() if isinstance(m, nn.Dropout) and ".encoder." in n]
    frozen = [m for m in dropouts if m.p > 0]
    assert frozen and not any(module.training for module in frozen)
    assert model.base_model.model.classifier.modules_to_save["default"].training


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list(encoder_families()))
def test_pattern_matches_exactly_the_linear_modules_of_the_layers(encoder):
    model = tiny_model(encoder)
    pattern = re.compile(encoder_linear_pattern(model))
    core = model.any2point
    inside = {id(m) for m in core.family.layers_of(core.encoder).modules() if isinstance(m, (nn.Linear, Conv1D))}
    found = {id(m) for name, m in model.named_modules() if pattern.fullmatch(name)}
    assert found == inside and len(inside) >= 4 * LAYERS


def test_models_without_a_frozen_encoder_are_refused():
    for use in (trainable_module_names, encoder_linear_pattern, lambda m: get_peft_model(m, GuidedAdapterConfig())):
        with pytest.raises(ValueError, match="Sequential has no frozen encoder.*expected a model with one of them"):
            use(nn.Sequential(nn.Linear(2, 2)))


def test_models_with_several_pretrained_parts_require_modules_to_save():
    model = minigpt3d()
    for use in (trainable_module_names, lambda m: get_peft_model(m, GuidedAdapterConfig())):
        with raises(ValueError, naming="modules_to_save"):
            use(model)
    # Without its own LoRA, with which PEFT would leave other modules trainable.
    bare = minigpt3d(text_lora=None, qformer_lora=None)
    adapted = get_peft_model(bare, GuidedAdapterConfig(modules_to_save=[]))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".point_encoder." in name and "guided_adapter_" in name for name in trained)


def test_teacher_in_pretraining_stays_frozen_with_an_adapter():
    model = case_of(ActForPreTraining).tiny()
    assert trainable_module_names(model) == ["decoder", "decoder_norm", "decoder_position_embed", "prediction_head"]
