"""PEFT's own methods on the same models, for comparison with guided adapters."""

import re

import pytest
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_any3d import GuidedAdapterConfig
from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from tests.common.models import minigpt3d
from tests.errors import raises
from tests.tiny_encoders import ENCODER_TYPES, LAYERS, tiny_model
from tests.turns import ALL_PAIRS


@pytest.mark.slow
# tests/common/test_every_encoder.py gives LoRA to every encoder.
@pytest.mark.parametrize("encoder", list(ENCODER_TYPES)[:: 1 if ALL_PAIRS else 4])
def test_pattern_matches_exactly_the_linear_modules_of_the_layers(encoder):
    model = tiny_model(encoder)
    pattern = re.compile(encoder_linear_pattern(model))
    core = model.any2point
    inside = {id(m) for m in core.family.layers_of(core.encoder).modules() if isinstance(m, (nn.Linear, Conv1D))}
    found = {id(m) for name, m in model.named_modules() if pattern.fullmatch(name)}
    assert found == inside and len(inside) >= 4 * LAYERS


def test_models_without_a_frozen_encoder_are_refused():
    message = "Sequential does not say where its layers are.*expected an Any2Point.*or a model with a layer_stack"
    for use in (trainable_module_names, encoder_linear_pattern, lambda m: get_peft_model(m, GuidedAdapterConfig())):
        with pytest.raises(ValueError, match=message):
            use(nn.Sequential(nn.Linear(2, 2)))


def test_models_with_several_pretrained_parts_require_modules_to_save():
    model = minigpt3d()
    for use in (trainable_module_names, lambda m: get_peft_model(m, GuidedAdapterConfig())):
        with raises(ValueError, naming="modules_to_save"):
            use(model)
    adapted = get_peft_model(model, GuidedAdapterConfig(modules_to_save=[]))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".point_encoder." in name and "guided_adapter_" in name for name in trained)
