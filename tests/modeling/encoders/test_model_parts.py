"""Whole pretrained models as parts of others: opened without heads, with adapters that become a part of them."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from hf_any3d.modeling.encoders import (
    build_adapter,
    has_adapter,
    open_pretrained_part,
    refuse_adapter,
    restore_part,
    settle_adapter,
)
from hf_any3d.modeling.pretrained_parts import PretrainedPart, own_state, tensors_checksum
from hf_any3d.modeling.pretrained_parts.mixin import is_unchanged
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.tiny_encoders import random_encoder, saved_encoder, tiny_config

IDS = torch.tensor([[5, 9, 2, 7]])


def bert() -> PreTrainedModel:
    return AutoModel.from_pretrained(saved_encoder("bert"))


def adapted(**settings) -> PreTrainedModel:
    """A model with an adapter that has an effect before training."""
    torch.manual_seed(0)
    model = bert()
    get_peft_model(model, LoraConfig(r=3, init_lora_weights=False, **settings))
    return model.eval()


def answer(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def test_an_adapter_becomes_a_part_of_the_model_that_is_built_again_from_its_settings():
    model = adapted(target_modules=["value", "query"], lora_alpha=7, modules_to_save=["intermediate"])
    with torch.no_grad():
        model.encoder.layer[0].intermediate.modules_to_save["default"].dense.bias.add_(1)
    expected = answer(model)
    assert has_adapter(model) and not has_adapter(bert())
    model._hf_peft_config_loaded = True  # as transformers marks what it has loaded
    settings = settle_adapter(model, "some/model")
    assert not has_adapter(model) and torch.equal(answer(model), expected)
    assert all(module._is_hf_initialized for module in model.modules())
    names = [f"encoder.layer.{number}.attention.self.{name}" for number in (0, 1) for name in ("query", "value")]
    assert settings["target_modules"] == names
    assert {
        name: settings[name] for name in ("peft_type", "r", "lora_alpha", "inference_mode", "modules_to_save")
    } == {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 7,
        "inference_mode": True,
        "modules_to_save": [],
    }
    assert not {"task_type", "base_model_name_or_path", "revision"} & set(settings)
    assert None not in settings.values() and type(settings["peft_type"]) is str
    # As it is stored in a config.
    twin = AutoModel.from_config(model.config).eval()
    build_adapter(twin, json.loads(json.dumps(settings)))
    assert not has_adapter(twin)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(answer(twin), expected)


def test_one_adapter_is_expected():
    model = bert()
    peft = get_peft_model(model, LoraConfig(target_modules=["query"]))
    peft.add_adapter("other", LoraConfig(target_modules=["value"]))
    with pytest.raises(ValueError) as error:
        settle_adapter(model, "some/model")
    assert str(error.value) == "some/model: has the adapters default, other; expected one, 'default'"


def test_models_with_adapters_are_refused_by_name():
    refuse_adapter(bert(), "some/model")
    loaded = bert()
    loaded._hf_peft_config_loaded = True
    assert has_adapter(loaded)
    with pytest.raises(ValueError) as error:
        refuse_adapter(adapted(target_modules=["query"]), "some/model")
    assert str(error.value) == (
        "some/model: a BertModel with an adapter; expected one without, such as merge_and_unload() of PEFT leaves of "
        "LoRA (guided adapters, prompts and side networks do not merge)"
    )


@pytest.mark.parametrize("kind", [None, 3, "LARO"])
def test_settings_of_no_method_are_refused(kind):
    with pytest.raises(ValueError, match=re.escape(f"peft_type is {str(kind)!r}; expected one of ADALORA")):
        build_adapter(bert(), {"peft_type": kind})


def test_settings_that_a_method_lacks_are_refused():
    with pytest.raises(ValueError, match="settings of an adapter of the method LORA: .*'rank'"):
        build_adapter(bert(), {"peft_type": "LORA", "rank": 3})


def test_sizes_of_an_adapter_are_limited():
    with pytest.raises(ValueError, match="r.*20000"):
        build_adapter(bert(), {"peft_type": "LORA", "r": 20000, "target_modules": ["query"]})


def test_a_part_is_opened_with_its_record():
    source = saved_encoder("bert")
    model, record = open_pretrained_part(PretrainedPart(source))
    assert torch.equal(answer(model.eval()), answer(bert()))
    checksum = tensors_checksum(own_state(model))
    assert is_unchanged(model)
    assert record == PretrainedPart(source, checksum=checksum)
    assert open_pretrained_part(record)[1] == record
    wrong = f"tensors-sha256:{'0' * 64}"
    with pytest.raises(EncoderMismatchError) as error:
        open_pretrained_part(PretrainedPart(source, checksum=wrong))
    assert str(error.value) == (
        f"{source}: the weights have checksum {checksum}; expected {wrong}, that of the weights that the model around "
        "them was made with"
    )


def test_a_part_has_the_given_config_in_full_precision(tmp_path):
    random_encoder(tiny_config("bert")).to(torch.bfloat16).save_pretrained(tmp_path)
    model, _ = open_pretrained_part(PretrainedPart(str(tmp_path)), tiny_config("bert", num_hidden_layers=1))
    assert len(model.encoder.layer) == 1 and model.dtype == torch.float32


def test_of_several_towers_the_one_of_images_is_opened():
    model, _ = open_pretrained_part(PretrainedPart(saved_encoder("clip")))
    assert type(model).__name__ == "CLIPVisionModel"


@pytest.mark.parametrize("lacks", ["pooler.dense.weight", "layer.1.output.dense.bias"])
def test_weights_of_a_part_must_be_there_except_for_its_pooler(lacks, tmp_path):
    bert().save_pretrained(tmp_path)
    file = Path(tmp_path) / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(lacks)}
    save_file(state, file, metadata={"format": "pt"})
    if lacks.startswith("pooler"):
        assert open_pretrained_part(PretrainedPart(str(tmp_path)))
        return
    with pytest.raises(ValueError) as error:
        open_pretrained_part(PretrainedPart(str(tmp_path)))
    assert str(error.value) == f"{tmp_path}: lacks weights of a BertModel: encoder.layer.1.output.dense.bias"


@pytest.mark.parametrize("on_meta", [False, True])
def test_weights_kept_elsewhere_are_restored_beside_an_adapter(on_meta):
    part = open_pretrained_part(PretrainedPart(saved_encoder("bert")))[1]
    settings = settle_adapter(adapted(target_modules=["query"]), "some/model")
    if on_meta:
        with torch.device("meta"):
            model = AutoModel.from_config(tiny_config("bert"))
        for name, buffer in list(model.embeddings.named_buffers()):  # have memory by then
            model.embeddings.register_buffer(name, torch.full_like(buffer, 7, device="cpu"), persistent=False)
    else:
        model = random_encoder(tiny_config("bert"), seed=9)
        build_adapter(model, settings)
    added = {name: weight.clone() for name, weight in model.state_dict().items() if "lora" in name}
    restore_part(model, part)
    expected = bert().state_dict()
    found = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items()}
    assert {name: weight for name, weight in found.items() if "lora" in name}.keys() == added.keys()
    assert found.keys() == expected.keys() | added.keys()
    assert all(torch.equal(found[name], weight) for name, weight in (expected | added).items())
    own = [module for name, module in model.named_modules() if "lora" not in name and not name.endswith("query")]
    assert all(module._is_hf_initialized for module in own)
    assert all(tensor._is_hf_initialized for module in own for tensor in module.parameters(recurse=False))
    others = [tensor for name, tensor in model.named_parameters() if "lora" in name]
    assert not any(getattr(tensor, "_is_hf_initialized", False) for tensor in others)
    assert torch.equal(model.embeddings.position_ids, bert().embeddings.position_ids)
    assert is_unchanged(model)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias += 1
    assert not is_unchanged(model)


def test_a_stored_part_is_left_alone():
    model = random_encoder(tiny_config("bert"), seed=9)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    restore_part(model, PretrainedPart(saved_encoder("bert"), stored=True))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
