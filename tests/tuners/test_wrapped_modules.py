"""What all layers of the PEFT methods share: attributes, nested modules, types of numbers; and which are taken."""

import re

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders import LayerStack
from hf_any3d.tuners import targets
from hf_any3d.tuners.targets import (
    check_added_tokens,
    check_later_layers,
    check_token_graphs,
    encoder_layer_pattern,
    encoder_module_pattern,
    encoder_owner,
    trainable_module_names,
    with_default_modules,
)
from hf_any3d.tuners.tuners_utils import EncoderLayersConfig, EncoderTunerConfig, WrappedModule, _modules_to_save
from tests.errors import raises


class Layer(WrappedModule):
    """A layer with two kinds of adapters."""

    adapter_layer_names = ("scales", "linears")
    merge_error = "it cannot be merged"

    def __init__(self, base=None):
        super().__init__(base or nn.Linear(3, 2))
        self.scales, self.linears = nn.ParameterDict(), nn.ModuleDict()


def test_unknown_attributes_are_those_of_the_frozen_module():
    layer = Layer()
    assert layer.in_features == 3 and layer.weight is layer.base_layer.weight and layer.nested == {}
    with raises(AttributeError, naming="'Linear' object has no attribute"):
        layer.nothing  # noqa: B018
    with raises(AttributeError, naming="base_layer"):
        Layer.__new__(Layer).anything  # noqa: B018
    for act in (layer.merge, layer.unmerge):
        with pytest.raises(ValueError, match="it cannot be merged"):
            act(safe_merge=True)


def test_adapters_run_in_the_order_in_which_they_are_active():
    layer = Layer()
    for name in ("a", "b"):
        layer.scales[name] = nn.Parameter(torch.ones(1))
    layer.linears["c"] = nn.Linear(1, 1)
    layer.set_adapter(["b", "c", "a"])
    assert layer._running_adapters() == ["b", "a"], "those of the first kind"
    layer.enable_adapters(False)
    assert layer._running_adapters() == []


def test_modules_with_modules_inside_are_registered_by_their_leaves():
    layer = Layer()
    mlp = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Sequential(nn.Linear(3, 2)))
    layer._add_nested("a", mlp=mlp, norm=nn.LayerNorm(2))
    keys = ("mlp_0", "mlp_1", "mlp_2_0", "norm")
    assert layer.adapter_layer_names == ("scales", "linears", *keys) and Layer.adapter_layer_names == (
        "scales",
        "linears",
    )
    assert [getattr(layer, key)["a"] for key in keys] == [mlp[0], mlp[1], mlp[2][0], layer.nested["a"]["norm"]]
    assert layer.nested["a"]["mlp"] is mlp and list(layer.nested["a"]) == ["mlp", "norm"]
    layer._add_nested("b", mlp=nn.Sequential(nn.Linear(2, 2)))
    assert layer.adapter_layer_names == ("scales", "linears", *keys) and list(layer.mlp_0) == ["a", "b"]
    names = {name for name, _ in layer.named_parameters() if "a." in name}
    assert names == {f"{key}.a.{kind}" for key in ("mlp_0", "mlp_2_0", "norm") for kind in ("weight", "bias")}
    # The activation has no parameters.
    assert layer._parts_of("a") == [mlp[0], mlp[2][0], layer.nested["a"]["norm"]]
    layer.scales["b"] = nn.Parameter(torch.ones(1))
    assert layer._parts_of("b")[0] is layer.scales["b"] and len(layer._parts_of("b")) == 2


@pytest.mark.parametrize(
    ("start", "dtype", "end"),
    [
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.float32, torch.float16, torch.float16),
        (torch.float16, torch.float64, torch.float64),
    ],
)
def test_adapters_are_cast_to_a_type_or_out_of_half_precision(start, dtype, end):
    layer = Layer()
    layer.scales["a"] = scale = nn.Parameter(torch.ones(2, dtype=start))
    layer.linears["a"] = nn.BatchNorm1d(2).to(start)
    layer.linears["b"] = nn.Linear(2, 2).to(torch.bfloat16)
    layer.cast_adapter("a", dtype)
    assert layer.scales["a"] is scale and scale.dtype == end, "an optimizer may hold it"
    assert {tensor.dtype for tensor in layer.linears["a"].state_dict().values() if tensor.is_floating_point()} == {end}
    assert layer.linears["b"].weight.dtype == torch.bfloat16 and layer.base_layer.weight.dtype == torch.float32


def test_adapters_follow_their_layer_to_a_device_unless_one_of_them_has_no_memory():
    layer = Layer()
    layer.scales["a"] = nn.Parameter(torch.ones(2))
    layer.linears["a"] = nn.Linear(2, 2, device="meta")
    layer._move_adapter_to_device_of_base_layer("a")
    assert layer.scales["a"].device.type == "cpu" and layer.linears["a"].weight.is_meta
    layer._move_adapter_to_device_of_base_layer("a", torch.device("meta"))
    assert layer.scales["a"].device.type == "cpu"
    layer.base_layer.to("meta")
    layer._move_adapter_to_device_of_base_layer("a")
    assert layer.scales["a"].device.type == "cpu", "loading gives values and a device"


def test_the_type_of_a_layer_is_that_of_its_numbers_with_a_point():
    layer = Layer(nn.Linear(2, 2).to(torch.float16))
    layer.base_layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert layer.base_dtype == torch.float16


@pytest.mark.parametrize(
    ("task", "given", "kept"),
    [
        (None, None, None),
        (None, ["a", "classifier", "score"], ["a", "classifier", "score"]),
        ("CAUSAL_LM", ["a", "classifier", "score"], ["a", "classifier", "score"]),
        ("SEQ_CLS", ["classifier", "score"], None),
        ("TOKEN_CLS", ["a", "classifier", "score", "classifier", "score"], ["a"]),
        ("SEQ_CLS", ["classifier", "score", "a"], ["classifier", "score", "a"]),
    ],
)
def test_names_that_peft_appends_for_texts_are_taken_off(task, given, kept):
    config = EncoderTunerConfig(modules_to_save=given)
    config.task_type = task
    assert _modules_to_save(config) == kept


def test_names_of_targets_are_a_set_and_patterns_stay():
    assert EncoderTunerConfig(target_modules=["a", "a", "b"]).target_modules == {"a", "b"}
    assert EncoderTunerConfig(target_modules="a.*").target_modules == "a.*"
    for given in ({"target_modules": "a"}, {"layers_to_transform": 0}, {}):
        EncoderLayersConfig(**given)
    with raises(ValueError, naming="target_modules"):
        EncoderLayersConfig(target_modules="a", layers_to_transform=[0])


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


@pytest.mark.parametrize(
    ("settings", "numbers", "pattern"),
    [
        ({}, None, r"(.*\.)?body\.blocks\.\d+"),
        ({}, 2, r"(.*\.)?body\.blocks\.(2)"),
        ({}, (0, 2), r"(.*\.)?body\.blocks\.(0|2)"),
    ],
)
def test_layers_are_found_by_their_numbers(settings, numbers, pattern):
    model = Model(**settings)
    assert encoder_layer_pattern(model, numbers) == pattern
    assert encoder_owner(model) is model.base_model
    wanted = {
        f"base_model.body.blocks.{number}"
        for number in ([0, 1, 2] if numbers is None else [2] if numbers == 2 else [0, 2])
    }
    assert {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)} == wanted


@pytest.mark.parametrize("numbers", [3, -1, [0, 3]])
def test_layers_that_do_not_exist_are_refused(numbers):
    shown = [numbers] if isinstance(numbers, int) else numbers
    with pytest.raises(ValueError, match=re.escape(f"layers_to_transform={shown}; expected numbers from 0 to 2")):
        encoder_layer_pattern(Model(), numbers)


def test_modules_of_the_layers_are_found_below_their_adapters():
    model = Model()
    plain = encoder_module_pattern(model, lambda module: isinstance(module, nn.Linear))
    assert plain == r"(.*\.)?body\.blocks\.\d+\.(mlp\.0|out)"
    model.base_model.body.blocks[0].out = Layer(model.base_model.body.blocks[0].out)
    assert encoder_module_pattern(model, lambda module: isinstance(module, nn.Linear)) == plain
    with raises(ValueError, naming="target_modules"):
        encoder_module_pattern(model, lambda module: False)


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
    with pytest.raises(ValueError, match="Module has several pretrained parts, .*adapt only its Encoder"):
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


@pytest.mark.parametrize(
    ("check", "settings", "message"),
    [
        (
            check_token_graphs,
            {"views": 0},
            "layers of Model do not get the positions of tokens, which M needs; use ano",
        ),
        (check_added_tokens, {"views": 0}, "layers of Model do not get the positions of tokens, which M needs"),
        (
            check_token_graphs,
            {"attention_axis": "patches"},
            "M builds graphs between all tokens of a cloud, and those",
        ),
        (
            check_added_tokens,
            {"attention_axis": "patches"},
            "M adds tokens to the sequence of a cloud, and Model runs",
        ),
        (check_added_tokens, {"attention_axis": "batch"}, "attention_axis='batch': tokens could not attend to those"),
    ],
)
def test_methods_are_refused_where_layers_lack_what_they_need(check, settings, message):
    check(Model(), "M")
    with pytest.raises(ValueError, match=message):
        check(Model(**settings), "M")


@pytest.mark.parametrize(
    ("adapted", "first", "left_out"),
    [
        ([0, 1, 2], None, None),
        ([1, 2], None, None),
        ([], None, None),
        ([0, 2], None, (1, 0)),
        ([1], None, (2, 1)),
        ([1, 2], 0, (0, 0)),
        ([1, 2], 1, None),
        ([2], 1, (1, 1)),
        ([0], 3, None),
    ],
)
def test_layers_behind_the_first_adapted_one_are_adapted_too(adapted, first, left_out):
    names = [f"base_model.body.blocks.{number}" for number in range(3)]
    chosen = {names[number] for number in adapted}
    if left_out is None:
        check_later_layers(Model(), chosen.__contains__, first)
        return
    missing, start = (names[number] for number in left_out)
    with pytest.raises(
        ValueError, match=f"leave out {missing}, to which the tokens go that are added from {start} on"
    ):
        check_later_layers(Model(), chosen.__contains__, first)


def test_layers_are_those_of_the_class_that_owns_them():
    """A wrapped layer looks up unknown attributes in what it wraps, and is no owner."""
    outer = nn.Module()
    outer.wrapped, outer.model = Layer(Model().base_model), Model()
    assert encoder_owner(outer.wrapped.base_layer) is outer.wrapped.base_layer
    assert targets.layer_stack(outer).path == "body.blocks"
    with pytest.raises(ValueError, match="Linear has no frozen encoder for point tokens and no point transformer"):
        encoder_owner(nn.Linear(2, 2))
