"""The point transformer under an adapter: where its weights come from, how it is opened, stored and trained."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_any3d.modeling.act import ActForPointCloudClassification, ActModel
from hf_any3d.modeling.encoders.loading import freeze
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.tensors import own_state, tensors_checksum
from tests.tiny_act import clouds, tiny_act


@pytest.fixture
def stored(tmp_path):
    """A classifier in a directory."""
    model = tiny_act(ActForPointCloudClassification)
    model.save_pretrained(tmp_path / "stored")
    return model, tmp_path / "stored"


def test_the_source_of_a_model_is_where_its_weights_are(stored, tmp_path):
    model, folder = stored
    opened = ActForPointCloudClassification.from_pretrained(folder)
    checksum = tensors_checksum(own_state(model.act))
    assert opened.find_source() == PretrainedPart(str(folder), checksum=checksum)
    assert model.find_source() == PretrainedPart(), "it was built, not opened"
    inside = ActForPointCloudClassification.from_pretrained(tmp_path, subfolder="stored")
    assert inside.find_source() == PretrainedPart(), "a folder of a repository is no source"
    told, report = ActModel.from_pretrained(folder, output_loading_info=True)
    assert told.find_source() == PretrainedPart(str(folder), checksum=checksum) and not report["missing_keys"]
    # What the config records comes first, unless it is gone, stored with the model, or has other weights.
    twin, other = tmp_path / "twin", tmp_path / "other"
    model.act.save_pretrained(twin)
    with torch.no_grad():
        model.act.norm.bias.add_(1)
    model.act.save_pretrained(other)
    for part, expected in (
        (PretrainedPart(str(twin), checksum="tensors-sha256:0"), twin),
        (PretrainedPart(str(tmp_path / "gone")), folder),
        (PretrainedPart(str(twin), stored=True), folder),
        (PretrainedPart(str(other)), folder),
    ):
        opened.config.set_part("base", part)
        assert opened.find_source() == PretrainedPart(str(expected), checksum=checksum)
    with torch.no_grad():
        opened.act.norm.bias.add_(2)
    assert opened.find_source() == PretrainedPart()


def test_a_part_is_opened_in_full_precision_and_its_weights_are_checked(stored):
    model, folder = stored
    config = model.config_to_store()
    for checksum in (None, tensors_checksum(own_state(model.act))):
        config.set_part("base", PretrainedPart(str(folder), checksum=checksum))
        opened = ActForPointCloudClassification.open_part(config, {})
        assert type(opened) is ActModel and opened.dtype == torch.float32 and not opened.training
        assert torch.equal(opened(clouds()).pooler_output, model.act(clouds()).pooler_output)
    config.set_part("base", PretrainedPart(str(folder), checksum="tensors-sha256:00"))
    message = f"{folder}: the pretrained weights have checksum {checksum}; expected tensors-sha256:00, that of the"
    with pytest.raises(EncoderMismatchError, match=re.escape(message)):
        ActForPointCloudClassification.open_part(config, {})
    config.set_part("base", PretrainedPart(str(folder)))
    eager = ActForPointCloudClassification.open_part(config, {}, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"


def test_a_checkpoint_with_an_adapter_is_no_source(stored):
    model, folder = stored
    (folder / "adapter_config.json").write_text("{}")
    message = f"{folder}: holds an adapter (adapter_config.json) with the pretrained weights; expected weights only"
    with pytest.raises(ValueError, match=re.escape(message)):
        ActModel.open_stored_part(str(folder), model.config, {"revision": None})


def test_frozen_modules_stay_in_eval_mode():
    model = tiny_act(ActForPointCloudClassification)
    freeze(model.act.blocks)
    model.train()
    assert model.training and model.classifier.training and not model.act.blocks.layers[0].norm1.training
    assert model.act.norm.training
    assert not any(module.training for module in model.eval().modules())


def test_with_adapters_norms_and_drop_path_of_the_original_stay_in_eval_mode():
    model = tiny_act(ActModel)
    assert all(module.training for module in model.train().modules())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["fc1"], lora_dropout=0.5)).train()
    training = {name for name, module in adapted.get_base_model().named_modules() if module.training}
    kept = {
        name
        for name, module in adapted.get_base_model().named_modules()
        if isinstance(module, GradientCheckpointingLayer) or name == "input_tokens"
    }
    assert {name for name in training if "lora" not in name and not name.endswith("fc1")} == kept
    layer = adapted.get_base_model().blocks.layers[0].mlp.fc1
    assert layer.training and layer.lora_dropout["default"].training and not layer.base_layer.training
    assert isinstance(layer.base_layer, nn.Linear)
    assert not any(module.training for module in adapted.eval().modules())
