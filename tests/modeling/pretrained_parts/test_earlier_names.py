"""Models and adapters of earlier versions, whose modules had other names, open with equal answers."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from tests.common.models import relative_difference
from tests.common.test_models import WITH_HEAD

RENAMED = pytest.mark.parametrize(
    "case",
    [case for case in WITH_HEAD if getattr(case.model_class, "_earlier_names", {})],
    ids=lambda case: case.name,
)


def answer(case, model) -> torch.Tensor:
    with torch.no_grad():
        return case.answer_of(model.eval()(**case.batch()))


def rename(file, names) -> None:
    """Give the tensors of a file other names."""
    stored = {names(name): tensor for name, tensor in load_file(file).items()}
    assert stored.keys() != load_file(file).keys()
    save_file(stored, file, metadata={"format": "pt"})


@pytest.fixture
def saved(case, tmp_path):
    """A model, and a directory as an earlier version saved it."""
    model = case.still()
    model.save_pretrained(tmp_path / "model")
    rename(tmp_path / "model" / "model.safetensors", model.earlier_name)
    return model, tmp_path / "model"


@RENAMED
def test_models_open(case, saved, tmp_path):
    model, folder = saved
    opened, info = case.model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and torch.equal(answer(case, opened), answer(case, model))
    body = AutoModel.from_pretrained(folder)
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(body.state_dict()[name], tensor)
    # As a training is resumed.
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(load_file(folder / "model.safetensors"))
    assert torch.equal(answer(case, fresh), answer(case, model))
    opened.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == model.state_dict().keys()


@RENAMED
@pytest.mark.parametrize("targets", ["names", "pattern"])
def test_adapters_open(case, saved, tmp_path, targets):
    model, folder = saved
    body = model.base_model
    linear = [name for name, module in body.named_modules() if type(module) is nn.Linear and "lm_head" not in name][:3]
    names = [f"{model.base_model_prefix}.{name}" for name in linear]
    torch.manual_seed(0)
    given = case.model_class.from_pretrained(folder)
    adapted = get_peft_model(given, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    expected = answer(case, adapted)
    assert relative_difference(expected, answer(case, model)) > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    before = [model.earlier_name(name) for name in names]
    start = "base_model.model."
    rename(
        tmp_path / "adapter" / "adapter_model.safetensors",
        lambda name: start + model.earlier_name(name.removeprefix(start)),
    )
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    settings["target_modules"] = (
        before if targets == "names" else "|".join(name.replace(".", r"\.") for name in before)
    )
    config.write_text(json.dumps(settings))

    opened = PeftModel.from_pretrained(case.model_class.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(answer(case, opened), expected)
    opened = case.model_class.from_pretrained(folder)
    opened.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(answer(case, opened), expected)
    if (tmp_path / "adapter" / "config.json").exists():
        assert torch.equal(answer(case, case.model_class.from_pretrained(tmp_path / "adapter")), expected)
