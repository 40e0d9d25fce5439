"""What is adapted and what is trained in full: layers by number, modules of layers, decoders and heads."""

import re

import pytest
from peft import IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d import PointNetConfig
from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.encoders import LayerStack
from hf_any3d.modeling.pointnet import PointNetModel
from hf_any3d.tuners.side_tuning.layer import SideTuningLayer
from hf_any3d.tuners.targets import (
    encoder_layer_pattern,
    encoder_linear_pattern,
    encoder_owner,
    layer_stack,
    trainable_module_names,
    with_default_modules,
)
from tests.common.models import CASES, case_of
from tests.common.tuners import OWN, answer_of, assert_same, base_of
from tests.errors import raises
from tests.tiny_encoders import tiny_model
from tests.turns import ALL_PAIRS, by_turns


class Block(nn.Module):
    """A layer with a linear module, a nested one and a norm."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.out, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)


class Encoder(PreTrainedModel):
    """Three pretrained layers between modules that are not pretrained."""

    config_class = PreTrainedConfig
    settings: dict = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.tokenizer = nn.Linear(3, 2)
        self.body = nn.Module()
        self.body.blocks = nn.ModuleList(Block() for _ in range(3))
        self.activation, self.norm = nn.ReLU(), nn.LayerNorm(2)

    @property
    def layer_stack(self):
        return LayerStack(
            self.body.blocks, "body.blocks", "mlp", 2, **{"views": 4, "pretrained": ("body",)} | self.settings
        )


class Model(nn.Module):
    """An encoder with a head."""

    def __init__(self, **settings):
        super().__init__()
        self.base_model = type("Encoder", (Encoder,), {"settings": settings})()
        self.head, self.dropout = nn.Linear(2, 4), nn.Dropout()


@pytest.mark.parametrize("numbers", [3, -1, [0, 3]])
def test_layers_that_do_not_exist_are_refused(numbers):
    with raises(ValueError, naming="layers_to_transform"):
        encoder_layer_pattern(Model(), numbers)


def test_what_is_not_pretrained_is_trained_in_full():
    assert trainable_module_names(Model()) == ["tokenizer", "norm", "head"]
    assert trainable_module_names(Model(pretrained=("body", "norm"))) == ["tokenizer", "head"]
    assert trainable_module_names(Model().base_model) == ["tokenizer", "norm"]
    detector = Model(trained=("base_model.norm",))
    assert trainable_module_names(detector) == ["base_model.norm", "head"]
    with raises(ValueError, naming="modules_to_save"):
        trainable_module_names(detector.base_model)
    outer = nn.Module()
    outer.part = Model()
    with raises(ValueError, naming="modules_to_save"):
        trainable_module_names(outer)


def test_heads_of_a_detector_are_trained_with_any_adapter_unless_it_names_modules_itself():
    detector, config = Model(trained=("base_model.norm",)), LoraConfig(target_modules=["out"])
    found = with_default_modules(detector, config)
    assert (
        found is not config and found.modules_to_save == ["base_model.norm", "head"] and config.modules_to_save is None
    )
    kept = [
        (detector, LoraConfig(target_modules=["out"], modules_to_save=["norm"])),
        (detector, LoraConfig(target_modules=["out"], inference_mode=True)),
        (detector.base_model, config),
        (Model(), config),
        (nn.Linear(2, 2), config),
    ]
    for model, given in kept:
        assert with_default_modules(model, given) is given


def test_layers_are_those_of_the_class_that_owns_them():
    """A wrapped layer looks up unknown attributes in what it wraps, and is no owner."""
    outer = nn.Module()
    outer.wrapped, outer.model = SideTuningLayer(Model().base_model, 4, True), Model()
    assert encoder_owner(outer.wrapped.base_layer) is outer.wrapped.base_layer
    assert layer_stack(outer).path == "body.blocks"
    with raises(ValueError, naming="Linear"):
        encoder_owner(nn.Linear(2, 2))


@pytest.mark.parametrize("door", ["get_peft_model", "add_adapter"])
def test_every_method_of_peft_without_modules_adapts_the_encoder_and_trains_the_rest(door):
    refused = {}
    for number, (kind, config_class) in enumerate(PEFT_TYPE_TO_CONFIG_MAPPING.items()):
        # By turns through both doors.
        if not ALL_PAIRS and number % 2 != ["get_peft_model", "add_adapter"].index(door):
            continue
        if not config_class.__module__.startswith("peft.") or not hasattr(config_class, "target_modules"):
            continue
        model = tiny_model()
        try:
            if door == "get_peft_model":
                model = get_peft_model(model, config_class())
            else:
                model.add_adapter(config_class())
        except (ValueError, AttributeError, TypeError) as error:
            refused[kind.value] = str(error)
            continue
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for part in trainable_module_names(tiny_model()):
            assert any(f"{part}.modules_to_save" in name for name in trained), (kind, part)
        assert any("modules_to_save" not in name for name in trained), kind
    # The others need a setting that has no default, or ask for more than a tiny layer has.
    assert len(refused) <= (18 if ALL_PAIRS else 10) and refused.keys().isdisjoint(
        {"LORA", "IA3", "LN_TUNING", "OFT"}
    ), refused
    assert not any("target_modules" in error for error in refused.values()), refused


@pytest.mark.parametrize("encoder", ["gpt2", "vit", "whisper"])
def test_plain_lora_adapts_all_linear_layers_of_any_encoder_also_of_some_layers(encoder):
    pattern = encoder_linear_pattern(tiny_model(encoder))
    linear = {name for name, _ in tiny_model(encoder).named_modules() if re.fullmatch(pattern, name)}
    for settings, count in (({}, len(linear)), ({"layers_to_transform": [1]}, len(linear) // 2)):
        model = get_peft_model(tiny_model(encoder), LoraConfig(**settings))
        adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
        assert len(adapted) == count and all("encoder" in name for name in adapted)
    # A config that names modules is the user's.
    model = get_peft_model(tiny_model(encoder), LoraConfig(target_modules=sorted(linear)[:1]))
    assert not any("modules_to_save" in name for name, _ in model.named_modules())


@pytest.mark.slow
def test_methods_without_modules_adapt_the_linear_layers_of_any_model():
    tried = 0
    for case, method in by_turns(CASES, [LoraConfig, IA3Config, LoHaConfig]):
        base = base_of(case)
        body = base.base_model
        if isinstance(getattr(body, "layer_stack", None), LayerStack):
            continue  # the tests above, and those of all models
        tried += 1
        model = get_peft_model(base, method())
        assert_same(answer_of(case, model), answer_of(case, base_of(case)))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        inside = {name for name in trained if model.base_model.prefix in name}
        assert inside and all(".modules_to_save." in name for name in trained - inside), case.name
        if body is not base and not base.can_generate():
            for head in {name for name, part in base_of(case).named_children() if name != base.base_model_prefix}:
                assert any(f".{head}.modules_to_save." in name for name in trained), (case.name, head)
    assert tried >= 20


def test_what_a_method_does_not_find_is_named():
    with raises(ValueError, naming="PointNetModel"):
        get_peft_model(PointNetModel(PointNetConfig()), LNTuningConfig())
    with raises(ValueError, naming="layers_to_transform"):
        get_peft_model(PointNetModel(PointNetConfig()), LoraConfig(layers_to_transform=[7]))


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("mode", [False, True])
def test_adapters_are_in_the_mode_of_their_model(method, mode):
    case = case_of(ActForPointCloudClassification)
    base = base_of(case).train(mode)
    model = get_peft_model(base, OWN[method]()) if mode else base
    if not mode:
        base.add_adapter(OWN[method]())
    assert {module.training for module in model.modules() if isinstance(module, (nn.Dropout, BaseTunerLayer))} == {
        mode
    }
