"""Repositories of adapters: what is found in them, refused and passed on when they are opened."""

import json
import re

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from hf_any3d import (
    ActForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
)
from hf_any3d.modeling.pretrained_parts.record import check_revisions
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds, saved_encoder, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:the weights of the", "ignore:.*the base model differs", "ignore:this adapter leaves out classifier"
)


def adapted(base):
    torch.manual_seed(0)
    return get_peft_model(base, GuidedAdapterConfig(r=4, init_weights=False)).eval()


def answer(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(points=clouds()).logits


def test_an_adapter_without_a_config_is_opened_on_the_base_that_it_names(hub, tmp_path):
    tiny_act(ActForPointCloudClassification, num_labels=3).push_to_hub("me/base-of-lora")
    config = LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    model = get_peft_model(ActForPointCloudClassification.from_pretrained("me/base-of-lora"), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    for name in ("config.json", "README.md"):
        (tmp_path / "adapter" / name).unlink(missing_ok=True)
    for file in (tmp_path / "adapter").glob("base*"):
        pytest.fail(f"stored {file}")
    opened = ActForPointCloudClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(answer(opened), answer(model.get_base_model()))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for named in (saved_encoder("bert"), None):
        content = json.dumps(settings | {"base_model_name_or_path": named})
        (tmp_path / "adapter" / "adapter_config.json").write_text(content)
        kind = ", a bert," if named else ","
        message = f"adapter_config.json names {named!r} as its base model{kind} and not the ActForPointCloudClassific"
        with pytest.raises(ValueError, match=re.escape(message)):
            ActForPointCloudClassification.from_pretrained(tmp_path / "adapter")


def test_adapters_are_compared_with_the_base_that_they_get(tmp_path):
    adapted(tiny_model()).save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match="the base model differs: num_tokens=4, the adapter was trained with 8; plane_cells=4.0"
    ):
        model = PeftModel.from_pretrained(tiny_model(head_dropout=0.25, num_tokens=4, plane_cells=4.0), tmp_path)
    # The head is the adapter's.
    assert model.config.head_dropout == 0.5
    head = model.classifier.modules_to_save["default"]
    assert 0.5 in {layer.p for layer in head.modules() if isinstance(layer, torch.nn.Dropout)}
    config = json.loads((tmp_path / "config.json").read_text())
    recorded = config["parts"]["encoder"]
    part = {**recorded, "checksum": "tensors-sha256:" + "0" * 64, "revision": "abc"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"parts": {"encoder": part}}))
    with raises(EncoderMismatchError, naming="abc"):
        PeftModel.from_pretrained(tiny_model(), tmp_path)


def test_a_changed_part_beside_an_adapter_is_refused(tmp_path):
    base = tiny_model()
    with torch.no_grad():
        base.any2point.encoder.encoder.layer[0].output.dense.bias.add_(1)
    adapted(base).save_pretrained(tmp_path)
    file = tmp_path / "encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.output.dense.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    recorded = json.loads((tmp_path / "config.json").read_text())["parts"]["encoder"]
    assert recorded["stored"] and recorded["subfolder"] == "encoder"
    with pytest.raises(EncoderMismatchError, match=rf"encoder/?.* have checksum .*; expected {recorded['checksum']}"):
        AutoModelForPointCloudClassification.from_pretrained(tmp_path)


def test_revisions_are_for_parts_that_are_given_by_name():
    check_revisions(None, [])
    check_revisions({"a": "main", "b": None}, ["a"])
    for revisions, named, expected in (
        ({"b": "main"}, ["a", "c"], "revisions has 'b'; expected some of 'a', 'c', the parts that are given by name"),
        ({"b": "main"}, [], "revisions has 'b'; expected none, the parts that are given by name"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            check_revisions(revisions, named)


def point_at(adapter, base):
    """Edit the address of the base, as one does with any adapter of PEFT."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))


def test_a_base_that_was_moved_opens_by_the_address_that_was_edited_and_no_other_weights_do(hub, tmp_path):
    tiny_act(ActForPointCloudClassification, num_labels=3).push_to_hub("me/moved-base")
    model = ActForPointCloudClassification.from_pretrained("me/moved-base")
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["classifier"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(model, config).eval()
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    expected = answer(model)
    base = ActForPointCloudClassification.from_pretrained("me/moved-base")
    for name in ("moved", "other"):
        base.save_pretrained(tmp_path / name)
    file = tmp_path / "other" / "model.safetensors"
    changed = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()}
    save_file(changed, file, {"format": "pt"})
    for opened in (AutoModelForPointCloudClassification, AutoPeftModel):
        # One that is nowhere: the recorded one has the weights that the adapter was trained with.
        for place in (tmp_path / "moved", "/gone/base"):
            point_at(adapter, place)
            assert torch.equal(answer(opened.from_pretrained(adapter)), expected)
        point_at(adapter, tmp_path / "other")
        with raises(EncoderMismatchError, naming="other"):
            opened.from_pretrained(adapter)
