"""Stored adapters on bases in other dtypes, in every model: unknown weights are not different ones."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.common.models import Case
from tests.common.refusals import refusal_of
from tests.common.test_tuners import ADAPT, pair
from tests.common.tuners import (
    ADAPTED,
    adapted,
    answer_of,
    assert_apart,
    assert_same,
    base_of,
    config_of,
    name_of,
    step,
)

FITTING = [case for case in ADAPTED if refusal_of(ADAPT, pair(case, "LORA")) is None]
ON_ALL = pytest.mark.parametrize("case", FITTING, ids=name_of)
HALF = 0.25  # of the spread of the outputs, as of half precision itself


def saved_pair(case: Case, tmp_path) -> tuple[type, str, str]:
    """Save a base and a LoRA that was trained on it; returns its class and both directories."""
    base_of(case).save_pretrained(tmp_path / "base")
    model = type(base_of(case)).from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    wrapped = get_peft_model(model, config_of("LORA", model))
    step(case, wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    return type(model), str(tmp_path / "base"), str(tmp_path / "adapter")


@ON_ALL
def test_an_adapter_loads_onto_its_base_in_any_dtype(case, tmp_path):
    model_class, base, adapter = saved_pair(case, tmp_path)
    ways = {
        torch.bfloat16: lambda: model_class.from_pretrained(base, dtype=torch.bfloat16),
        torch.float16: lambda: model_class.from_pretrained(base).half(),
    }
    for dtype, way in ways.items():
        full = PeftModel.from_pretrained(model_class.from_pretrained(base), adapter)
        expected = answer_of(case, full.to(dtype))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*cannot be compared")  # the source is known here
            opened = PeftModel.from_pretrained(way(), adapter)
        assert_same(answer_of(case, opened), expected, HALF)
        opened.load_adapter(adapter, "again")
        opened.set_adapter("again")
        assert_same(answer_of(case, opened), expected, HALF)


@ON_ALL
def test_an_adapter_trained_in_half_precision_opens_on_half_and_full_bases(case, tmp_path):
    model_class, base, _ = saved_pair(case, tmp_path)
    low = model_class.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(1)
    get_peft_model(low, config_of("LORA", low)).save_pretrained(tmp_path / "low")
    for dtype in (torch.bfloat16, torch.float32):
        opened = PeftModel.from_pretrained(model_class.from_pretrained(base, dtype=dtype), str(tmp_path / "low"))
        assert answer_of(case, opened).isfinite().all()


def test_other_weights_in_another_dtype_are_still_refused(tmp_path):
    case = next(case for case in FITTING if not case.owns_encoder and case.name.startswith("ActFor"))
    model_class, base, adapter = saved_pair(case, tmp_path)
    other = model_class.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        next(parameter for parameter in other.base_model.parameters()).add_(1)
    with pytest.warns(UserWarning, match="cannot be compared"):
        PeftModel.from_pretrained(other, adapter)
    full = model_class.from_pretrained(base)
    with torch.no_grad():
        next(parameter for parameter in full.base_model.parameters()).add_(1)
    with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
        PeftModel.from_pretrained(full, adapter)
    elsewhere = model_class.from_pretrained(base)
    with torch.no_grad():
        next(parameter for parameter in elsewhere.base_model.parameters()).add_(1)
    elsewhere.save_pretrained(tmp_path / "other")
    with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
        PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "other", dtype=torch.bfloat16), adapter)


@ON_ALL
def test_weighted_adapters_are_between_those_that_they_are_made_of(case):
    model = adapted(case, "LORA", modules_to_save=None)
    model.add_adapter("other", LoraConfig(r=2, target_modules=list(model.peft_config["default"].target_modules)))
    _randomize(model)
    model.add_weighted_adapter(["default", "other"], [1.0, 0.0], "first", combination_type="svd", svd_rank=2)
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mixed", combination_type="linear")
    answers = {}
    for name in ("default", "other", "first", "mixed"):
        model.set_adapter(name)
        answers[name] = answer_of(case, model)
    assert_same(answers["first"], answers["default"], 1e-2)
    assert_apart(answers["mixed"], answers["default"], 1e-4)
    assert_apart(answers["mixed"], answers["other"], 1e-4)


@torch.no_grad()
def _randomize(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.normal_(std=0.1)


@ON_ALL
def test_adapters_are_swapped_in_place(case, tmp_path):
    first, second = (adapted(case, "LORA", seed, modules_to_save=None) for seed in (1, 2))
    for model in (first, second):
        _randomize(model)
    second.save_pretrained(tmp_path)
    expected = answer_of(case, second)
    prepare_model_for_compiled_hotswap(first, target_rank=4)
    hotswap_adapter(first, str(tmp_path), adapter_name="default", torch_device="cpu")
    assert_same(answer_of(case, first), expected)
