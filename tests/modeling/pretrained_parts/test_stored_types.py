"""Weights of other types than floats, pipes and negative variances are refused by every door."""

import os

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointCloudProcessor,
)
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import tiny_model

ODD = {"I64": torch.int64, "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn}


def rewrite(file, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def adapter(tmp_path):
    get_peft_model(tiny_model(), GuidedAdapterConfig()).save_pretrained(tmp_path / "adapter")
    PointCloudProcessor(num_points=32).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def doors(folder):
    return {
        "auto class": lambda: AutoModel.from_pretrained(folder),
        "own class": lambda: Any2PointForPointCloudClassification.from_pretrained(folder),
        "pipeline": lambda: transformers.pipeline("point-cloud-classification", model=str(folder)),
        "PeftModel": lambda: PeftModel.from_pretrained(tiny_model(), folder),
    }


@pytest.mark.parametrize("kind", ODD)
def test_adapters_of_other_types_are_refused_by_every_door(adapter, kind):
    rewrite(adapter / "adapter_model.safetensors", ODD[kind])
    for name, door in doors(adapter).items():
        with pytest.raises(ValueError, match=f"adapter: holds .* as {kind}.*; expected one of BF16, F16, F32, F64"):
            door()
        assert name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_adapters_of_any_float_type_open(adapter, dtype):
    expected = Any2PointForPointCloudClassification.from_pretrained(adapter).classifier.out.weight
    rewrite(adapter / "adapter_model.safetensors", dtype)
    for name, door in doors(adapter).items():
        opened = door()
        if name in ("own class", "pipeline"):
            model = opened.model if name == "pipeline" else opened
            torch.testing.assert_close(model.classifier.out.weight, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_models_of_integers_are_refused(tmp_path, name):
    tiny_act(ActForPointCloudClassification, num_labels=3).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    rewrite(file, torch.int64)
    if name.endswith(".bin"):
        torch.save(load_file(file), tmp_path / name)
        file.unlink()
    with pytest.raises(ValueError, match=r"holds .* as (I64|torch\.int64).*; expected one of BF16"):
        ActForPointCloudClassification.from_pretrained(tmp_path)


def test_models_of_integers_on_the_hub_are_refused(tmp_path, hub):
    model = tiny_act(ActForPointCloudClassification, num_labels=3)
    model.push_to_hub("me/integers")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path / "model.safetensors", torch.int32)
    hub.commit("me/integers", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}, in_lfs=True)
    with pytest.raises(ValueError, match="me/integers: holds .* as I32"):
        ActForPointCloudClassification.from_pretrained("me/integers")


def test_a_negative_variance_is_no_finite_weight(tmp_path):
    tiny_act(ActForPointCloudClassification, num_labels=3).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = -1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} not finite .*, or a negative variance"):
        ActForPointCloudClassification.from_pretrained(tmp_path)


def test_pipes_in_place_of_weights_are_refused(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    os.mkfifo(adapter / "adapter_model.safetensors")
    for door in doors(adapter).values():
        with raises(ValueError, naming="adapter_model.safetensors"):
            door()


SETTINGS = {
    '{"peft_type": "XLORA", "hidden_size": 8, "adapters": {"a": "somebody/elses"}}': "'XLORA' names adapters in other",
    "[]": r"holds \[\]; expected settings by name",
    '{"peft_type": "NOTHING"}': "peft_type is 'NOTHING'; expected one of ",
    '{"peft_type": ["LORA"]}': r"peft_type is .*LORA.*; expected one of ",
    "{": "adapter_config.json: not JSON",
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_no_adapter_are_refused_without_a_request(adapter, hub, settings):
    (adapter / "adapter_config.json").write_text(settings)
    before = len(hub.requests)
    for name in ("auto class", "own class", "pipeline", "PeftModel"):
        with pytest.raises(ValueError, match=SETTINGS[settings]):
            doors(adapter)[name]()
    assert not [request for request in hub.requests[before:] if "somebody" in str(request)]
