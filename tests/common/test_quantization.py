"""Quantized models: every class computes what its rounded weights say, is saved and loaded, and takes adapters.

Each class is quantized in four ways: 8 and 4 bits of bitsandbytes and 8 bits of torchao when it is loaded, and torch's
`quantize_dynamic` afterwards. The outputs of a quantized tiny model with random weights differ from those of the full
one by up to several standard deviations in 4 bits; a trained model of full size would not, so this says nothing. But a
full model with the rounded weights must compute the same: exactly, if only weights are rounded; up to the rounding of
activations to 8 bits otherwise.
"""

import copy
import types
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from hf_any3d.modeling.minigpt3d import merge_lora
from hf_any3d.modeling.pretrained_parts import loading
from hf_any3d.modeling.pretrained_parts.loading import is_quantized
from tests.closeness import assert_nearly_equal
from tests.common.built import answer, built, expected_of, forget_models, fresh, over_cases  # noqa: F401
from tests.common.models import CASES, Case, first_of_configs, relative_difference
from tests.common.refusals import check_refusal, refusal_of
from tests.common.test_tuners import ADAPT, pair
from tests.common.tuners import answer_of, assert_apart, assert_same, base_of, config_of, name_of, step
from tests.errors import raises
from tests.turns import ALL_PAIRS, by_turns, some

ON_LOADING: dict[str, Callable[[], Any]] = {
    "8 bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "4 bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
}
WAYS = (*ON_LOADING, "quantize_dynamic")
# As fractions of the spread of the outputs, see `assert_nearly_equal`. quantize_dynamic rounds the
# activations of a whole batch to 128 steps, and the codes of an autoencoder are chosen by them.
FROM_ROUNDED = {"8 bit": 0.15, "4 bit": 1e-4, "torchao": 1e-4, "quantize_dynamic": 0.5}
FROM_FULL = {"8 bit": 0.3, "torchao": 0.3, "quantize_dynamic": 0.5}
# bitsandbytes packs the weights of plain language models for some CPUs, in blocks of 32 x 64.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
SOME = [case for case in CASES if case.name in (
    "ActForPointCloudClassification",
    "Any2PointForPointCloudClassification",
    "MiniGPT3DForConditionalGeneration",
    "PointNet2ForPointCloudClassification",
    "PointTransformerV3ForPointCloudClassification",
)]  # fmt: skip
on_some = pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
# Linear layers of all heads are quantized in the same way: some models in all ways, a class of each config in one.
_FIRST = (*SOME, *first_of_configs(CASES))
COMPUTED = [(case, way) for case, way in by_turns(CASES, WAYS, SOME[:2]) if ALL_PAIRS or case in _FIRST[::2]]
loaded = pytest.mark.parametrize("way", ON_LOADING)


@pytest.fixture(autouse=True)
def without_compiler():
    """Bitsandbytes compiles its operations for each shape, which takes longer than all tests here."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def quantized(model: PreTrainedModel, way: str, folder: str) -> PreTrainedModel:
    """Return a model quantized in one of the ways; it is saved for those that quantize when it is loaded."""
    if way == "quantize_dynamic":
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return type(model).from_pretrained(folder, quantization_config=ON_LOADING[way]())


def rounded_weight(layer: nn.Module) -> torch.Tensor | None:
    """Return the weight that a quantized layer stands for, None if it is none."""
    if isinstance(layer, torch.ao.nn.quantized.dynamic.Linear):
        return layer.weight().dequantize()
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        bits = layer.weight.data if layer.state.CB is None else layer.state.CB
        scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return bits.float() * scale.unsqueeze(1) / 127
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if type(layer) is nn.Linear and type(layer.weight).__module__.startswith("torchao."):
        return layer.weight.dequantize()
    return None


@torch.no_grad()
def with_rounded_weights(model: PreTrainedModel, source: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a full model with the weights that the quantized `source` stands for."""
    model = copy.deepcopy(model)
    count = 0
    for name, layer in source.named_modules():
        if (weight := rounded_weight(layer)) is not None:
            model.get_submodule(name).weight.copy_(weight)
            count += 1
    assert count > 2
    return model


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize(("case", "way"), COMPUTED, ids=name_of)
def test_quantized_models_compute_what_their_rounded_weights_say(case, way, tmp_path):
    is_plain_text = case.name.startswith("NormedPhi")
    model = case.still(**WIDE) if is_plain_text and way == "4 bit" else fresh(case)
    expected = answer(case, model)
    model.save_pretrained(tmp_path)
    with check_refusal(way, case.name) as is_supported:
        small = quantized(model, way, tmp_path)
    if not is_supported:
        return
    assert is_quantized(small) and not is_quantized(model)
    if case.owns_encoder and way in ON_LOADING:
        names = [name for name, layer in small.named_modules() if rounded_weight(layer) is not None]
        assert all(name.startswith("encoder.") or ".encoder." in name for name in names)
    rounded = with_rounded_weights(model, small)  # before a call, which may pack them
    found = answer(case, small)
    # Packed weights are multiplied in bfloat16.
    tolerance = 0.05 if is_plain_text and way == "4 bit" else FROM_ROUNDED[way]
    assert_nearly_equal(found, answer(case, rounded), tolerance)
    if way in FROM_FULL:
        assert_nearly_equal(found, expected, FROM_FULL[way])
    assert relative_difference(found, expected) > 1e-3


def rounded_layers(model: PreTrainedModel) -> set[str]:
    """Return the names of quantized layers."""
    return {name for name, layer in model.named_modules() if rounded_weight(layer) is not None}


SKIP_LISTS = {"8 bit": "llm_int8_skip_modules", "4 bit": "llm_int8_skip_modules", "torchao": "modules_to_not_convert"}
# Which layers are quantized depends on the class rather than on the library.
_LISTED = (
    CASES if ALL_PAIRS else [*SOME, *(case for case in CASES if case.name.startswith(("SpatialLMFor", "Normed")))]
)


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize(("case", "way"), by_turns(_LISTED, list(ON_LOADING)), ids=name_of)
def test_a_list_of_layers_in_full_precision_adds_to_that_of_the_class(case, way, tmp_path):
    is_supported = refusal_of(way, case.name) is None
    if not is_supported:
        return
    fresh(case).save_pretrained(tmp_path)

    def opened(names: list[str] | None) -> set[str]:
        config = ON_LOADING[way]()
        setattr(config, SKIP_LISTS[way], names)
        return rounded_layers(case.model_class.from_pretrained(tmp_path, quantization_config=config))

    without = opened(None)
    assert opened([]) == without
    one = sorted(without)[len(without) // 2]
    # As it is called in full, and by its end, with others that have the same.
    assert opened([one]) == without - {name for name in without if name.endswith(one)}
    end = one.rpartition(".")[2]
    assert opened([end]) == {name for name in without if not name.endswith(end)}


@pytest.mark.slow
@pytest.mark.parametrize("field", ["llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"])
def test_lists_of_any_library_are_joined(field):
    """Of libraries that are not installed too: the list is all that is asked of their configs."""
    config = types.SimpleNamespace(**{field: ["qkv"]})
    given = {"quantization_config": config}
    case = next(case for case in SOME if case.name.startswith("ActFor"))
    joined = loading.keep_in_full(given, "classifier", inside=("act",), build=lambda: fresh(case))
    names = getattr(joined["quantization_config"], field)
    assert {"qkv", "classifier"} < set(names) and vars(config) == {field: ["qkv"]}
    # HQQ's names have no numbers.
    assert ("act.blocks.attention.qkv" in names) == ("classifier.out" in names) == (field == "skip_modules")
    assert loading.keep_in_full(given | {"quantization_config": types.SimpleNamespace()}, "classifier", build=fresh)


@pytest.mark.slow
def test_what_is_quantized_is_told(tmp_path, monkeypatch):
    case = next(case for case in SOME if case.name.startswith("ActFor"))
    fresh(case).save_pretrained(tmp_path)
    told = []
    monkeypatch.setattr(loading.logger, "warning_once", told.append)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["qkv", "no_such_layer"])
    model = case.model_class.from_pretrained(tmp_path, quantization_config=config)
    assert len(told) == 1 and f"has quantized {len(rounded_layers(model))} linear layers of {case.name}" in told[0]
    assert "by default (classifier.hidden.*, classifier.out)" in told[0]
    assert "by llm_int8_skip_modules (act.blocks.layers.*.attention.qkv)" in told[0]
    assert "no layer has the name 'no_such_layer'" in told[0]


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize(("case", "way"), by_turns(SOME, list(ON_LOADING)), ids=name_of)
def test_quantized_models_are_saved_and_loaded(case, way, tmp_path):
    model = fresh(case)
    model.save_pretrained(tmp_path / "full")
    small = quantized(model, way, tmp_path / "full")
    small.save_pretrained(tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small")
    if case.owns_encoder:  # which stays where it was published, in full precision
        assert not is_quantized(again)
        assert_same(answer(case, again), expected_of(case))
    else:
        assert is_quantized(again)
        assert_same(answer(case, again), answer(case, small), 1e-5)
        full, bits = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "small"))
        assert bits < full


@pytest.mark.slow
@on_some
def test_models_quantized_by_torch_are_not_saved(case, tmp_path):
    small = quantized(fresh(case), "quantize_dynamic", tmp_path)
    with pytest.raises(AttributeError):  # packed weights are no tensors
        small.save_pretrained(tmp_path)


def bases(case: Case, way: str, folder) -> tuple[Callable[[], PreTrainedModel], Callable[[], PreTrainedModel]]:
    """Save a base without adapters; returns functions that open it quantized and full."""
    base = base_of(case)
    base.save_pretrained(folder)
    return lambda: quantized(base, way, folder), lambda: type(base).from_pretrained(folder)


ADAPTED = [
    (case, method)
    for case in SOME
    for method in ("LORA", "GUIDED_ADAPTER")
    if case.is_adapted and refusal_of(ADAPT, pair(case, method)) is None
]
TURNS = by_turns(some(ADAPTED, left_out=ADAPTED[1::2]), list(ON_LOADING))


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize(("both", "way"), TURNS, ids=[f"{pair(*both)}-{way}" for both, way in TURNS])
def test_adapters_of_quantized_bases_are_trained_saved_and_opened(both, way, tmp_path):
    case, method = both
    open_small, open_full = bases(case, way, tmp_path / "base")
    small = open_small()
    untrained = answer_of(case, small)
    torch.manual_seed(1)
    model = get_peft_model(small, config_of(method, small))
    step(case, model)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
    expected = answer_of(case, model)
    assert_apart(expected, untrained)
    model.save_pretrained(tmp_path / "adapter")
    assert_same(answer_of(case, PeftModel.from_pretrained(open_small(), tmp_path / "adapter")), expected)
    # The same weights in full precision, of which the quantized ones are known to come.
    assert answer_of(case, PeftModel.from_pretrained(open_full(), tmp_path / "adapter")).isfinite().all()
    # A chat model's directory of an adapter is PEFT's alone.
    if not case.name.startswith("MiniGPT3D"):
        opened = type(small).from_pretrained(tmp_path / "adapter", quantization_config=ON_LOADING[way]())
        assert_same(answer_of(case, opened), expected)
        assert not is_quantized(type(small).from_pretrained(tmp_path / "adapter"))


@pytest.mark.slow
@loaded
def test_adapters_of_other_weights_are_refused_on_quantized_bases(way, tmp_path):
    case = next(case for case in SOME if case.name.startswith("ActFor"))
    open_small, open_full = bases(case, way, tmp_path / "base")
    adapted = get_peft_model(open_full(), config_of("LORA", open_full()))
    adapted.save_pretrained(tmp_path / "adapter")
    PeftModel.from_pretrained(open_small(), tmp_path / "adapter")
    other = open_full()
    with torch.no_grad():
        next(other.base_model.parameters()).add_(1)
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="Other weights would change results|have checksum"):
        PeftModel.from_pretrained(open_small(), tmp_path / "adapter")


@pytest.mark.slow
@loaded
def test_lora_of_a_chat_model_is_neither_rounded_nor_merged(way, tmp_path):
    case = next(case for case in SOME if case.name.startswith("MiniGPT3D"))
    fresh(case).save_pretrained(tmp_path)
    small = quantized(fresh(case), way, tmp_path)
    full = dict(fresh(case).named_parameters())
    own = {name: each for name, each in small.named_parameters() if ".low_rank_" in name or ".lm_head." in name}
    assert own and all(torch.equal(each, full[name]) for name, each in own.items())
    with raises(ValueError, naming="LoRA"):
        merge_lora(small)
