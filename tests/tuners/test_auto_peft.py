"""AutoPeftModel opens adapters of this package's models; adapter_config.json names their base."""

import json
import warnings

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModelForFeatureExtraction,
    get_peft_model,
)

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    BitFitConfig,
    GuidedAdapterConfig,
    PromptTokensConfig,
    encoder_linear_pattern,
    trainable_module_names,
)
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_encoders import random_encoder, tiny_config

CASES = [case_of(Any2PointForPointCloudClassification), case_of(Any2PointForPartSegmentation)]
METHODS = {
    "guided": lambda model: GuidedAdapterConfig(init_weights=False),
    "bitfit": lambda model: BitFitConfig(),
    "prompts": lambda model: PromptTokensConfig(),
    "lora": lambda model: LoraConfig(
        target_modules=encoder_linear_pattern(model), modules_to_save=trainable_module_names(model)
    ),
}


@torch.no_grad()
def answer(case, model):
    return case.answer_of(model.eval()(**case.batch()))


def test_task_type_selects_the_auto_class(tmp_path):
    case = case_of(ActForPointCloudClassification)
    model = get_peft_model(case.tiny(), BitFitConfig(task_type="FEATURE_EXTRACTION"))
    expected = answer(case, model)
    model.save_pretrained(tmp_path)
    opened = AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path)
    assert isinstance(opened, PeftModelForFeatureExtraction) and torch.equal(answer(case, opened), expected)
    with raises(ValueError, naming="AutoPeftModel"):
        AutoPeftModel.from_pretrained(tmp_path)
    with raises(ValueError, naming="PeftModelForFeatureExtraction"):
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.slow
def test_adapter_on_a_saved_model_names_that_model(tmp_path):
    case = CASES[0]
    case.tiny().save_pretrained(tmp_path / "complete")
    base = Any2PointForPointCloudClassification.from_pretrained(tmp_path / "complete")
    # Without the head the adapter is not a complete model.
    lora = LoraConfig(target_modules=encoder_linear_pattern(base), init_lora_weights=False)
    model = get_peft_model(base, lora)
    expected = answer(case, model)
    with pytest.warns(UserWarning, match="this adapter leaves out"):
        model.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "./base_model"
    for allowed in (None, ["hf_any3d"]):
        opened = AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=allowed)
        assert torch.equal(answer(case, opened), expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_adapters_around_an_encoder_of_the_hub_are_saved_without_warnings_or_requests(method, hub, tmp_path):
    random_encoder(tiny_config("bert")).push_to_hub("me/quiet-encoder")
    model = Any2PointForPointCloudClassification.from_encoder_pretrained("me/quiet-encoder")
    asked = len(hub.requests)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(model, METHODS[method](model)).save_pretrained(tmp_path)
    assert len(hub.requests) == asked
