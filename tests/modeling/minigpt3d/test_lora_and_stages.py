"""LoRA inside MiniGPT-3D, and which parameters each of its stages trains, by name."""

import torch

from hf_any3d.modeling.minigpt3d import merge_lora, names_in
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import tiny_model


def test_names_beside_lora_are_found_in_any_model():
    model = tiny_model()
    inside = "bridge.qformer.encoder.layer.0.attention.attention.query.weight"
    wrapped = "minigpt3d.bridge.qformer.encoder.layer.0.attention.attention.query.linear.weight"
    norm = "minigpt3d.bridge.qformer.layernorm.weight"
    found = names_in(model, [f"minigpt3d.{inside}", inside, norm, wrapped, "unknown.weight"])
    assert found == {
        f"minigpt3d.{inside}": wrapped,
        inside: wrapped,  # of the body of the model
        norm: norm,
        wrapped: wrapped,
        "unknown.weight": "unknown.weight",
    }
    assert names_in(model.minigpt3d, [inside]) == {inside: wrapped.removeprefix("minigpt3d.")}
    plain = tiny_model(text_lora=None, qformer_lora=None)
    assert names_in(plain, [f"minigpt3d.{inside}"]) == {f"minigpt3d.{inside}": f"minigpt3d.{inside}"}


def test_merged_lora_refuses_weights_that_are_not_finite():
    model = tiny_model()
    next(p for name, p in model.named_parameters() if ".low_rank_b" in name).data.fill_(torch.nan)
    with raises(ValueError, naming="NaN"):
        merge_lora(model)
