"""An encoder without a repository of its own is stored next to the adapter."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_any3d import (
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    encoder_linear_pattern,
    trainable_module_names,
)
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.errors import raises
from tests.tiny_encoders import SMALL, clouds, pushed_encoder, random_encoder, tiny_config, tiny_model


def adapted(method, model_type="bert"):
    config = Any2PointConfig(encoder_config=tiny_config(model_type), num_labels=3, **SMALL)
    model = Any2PointForPointCloudClassification(config, random_encoder(tiny_config(model_type)))
    if method == "guided":
        return get_peft_model(model, GuidedAdapterConfig(r=4, init_weights=False)).eval()
    lora = LoraConfig(
        target_modules=encoder_linear_pattern(model),
        modules_to_save=trainable_module_names(model),
        init_lora_weights=False,
    )
    return get_peft_model(model, lora).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("method", ["guided", "lora"])
@pytest.mark.parametrize("model_type", ["bert", "clip_vision_model"])
def test_adapter_of_an_encoder_without_a_name_is_saved_with_it(method, model_type, tmp_path):
    model = adapted(method, model_type)
    model.save_pretrained(tmp_path)
    expected = model(points=clouds()).logits
    loaded = Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(clouds()).logits, expected)
    plain = AutoModel.from_pretrained(tmp_path / "encoder")
    own = random_encoder(tiny_config(model_type)).state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in plain.state_dict().items())


def test_stored_encoder_loads_in_the_requested_dtype(tmp_path):
    adapted("guided").save_pretrained(tmp_path)
    loaded = Any2PointForPointCloudClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.any2point.encoder.dtype == torch.bfloat16
    assert loaded(clouds()).logits.isfinite().all()


def test_stored_encoder_that_lacks_weights_is_refused(tmp_path):
    adapted("guided").save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path / "encoder")
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.endswith("query.weight")}
    name = next(name for name in encoder.state_dict() if name not in state)
    encoder.save_pretrained(tmp_path / "encoder", state_dict=state)
    with pytest.raises(ValueError, match=f"the encoder in encoder/ lacks {name}"):
        Any2PointForPointCloudClassification.from_pretrained(tmp_path)


def test_stored_encoder_with_other_weights_is_refused(tmp_path):
    adapted("guided").save_pretrained(tmp_path)
    file = tmp_path / "encoder" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(EncoderMismatchError, match="pretrained weights in encoder/ have checksum tensors-sha256"):
        Any2PointForPointCloudClassification.from_pretrained(tmp_path)


def test_weights_in_another_dtype_are_compared_by_their_record(tmp_path):
    adapted("guided").save_pretrained(tmp_path)
    PeftModel.from_pretrained(tiny_model().to(torch.bfloat16), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["parts"]["encoder"]["checksum"] = f"tensors-sha256:{'0' * 64}"
    file.write_text(json.dumps(config), encoding="utf-8")
    with raises(EncoderMismatchError, naming="tensors-sha256:0000"):
        PeftModel.from_pretrained(tiny_model().to(torch.bfloat16), tmp_path)


@pytest.mark.slow
def test_an_opened_model_is_saved_without_reading_its_encoder_again(tmp_path, monkeypatch):
    tiny_model(pushed_encoder("bert")).save_pretrained(tmp_path / "one")
    opened = Any2PointForPointCloudClassification.from_pretrained(tmp_path / "one")
    for name in ("open_encoder", "open_recorded"):
        monkeypatch.setattr(f"hf_any3d.modeling.encoders.loading.{name}", None)
    opened.save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and not [name for name in one if "attention.self" in name]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["random", "shuffled"])
def test_weights_that_replace_the_named_ones_have_no_record_of_these(how):
    named = tiny_model().config.part("encoder")
    part = tiny_model(encoder_weights=how).config.part("encoder")
    assert named.checksum is not None and not named.stored
    assert part == replace(named, stored=True, checksum=None, subfolder=None, control=how)
