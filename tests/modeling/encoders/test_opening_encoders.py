"""Encoders that are opened, converted, frozen and replaced, without what encoding tokens does not need."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_any3d.modeling.encoders import build_encoder, encoder_settings, load_encoder
from hf_any3d.modeling.encoders.loading import (
    convert_encoder,
    open_encoder,
    replace_weights,
)
from tests.tiny_encoders import LAYERS, random_encoder, saved_encoder, tiny_config, tiny_model


def test_settings_of_a_tower_and_of_its_first_layers():
    settings = encoder_settings(saved_encoder("clip"), "vision", None, 1)
    assert settings["encoder_tower"] == "vision"
    assert (settings["encoder_config"].model_type, settings["encoder_config"].num_hidden_layers) == (
        "clip_vision_model",
        1,
    )
    assert encoder_settings(saved_encoder("bert"), None, None, LAYERS)["encoder_config"].num_hidden_layers == LAYERS
    local = encoder_settings(saved_encoder("modernbert"), None, None, 1)["encoder_config"]
    assert local.layer_types == ["sliding_attention"] and local.num_hidden_layers == 1


def dtypes_of(encoder: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["bert", "t5", "deberta"])
def test_encoders_are_converted_as_they_are_loaded(model_type, dtype):
    opened, missing = open_encoder(saved_encoder(model_type), tiny_config(model_type), dtype)
    full, _ = open_encoder(saved_encoder(model_type), tiny_config(model_type))
    assert missing == [] and set(dtypes_of(full).values()) == {torch.float32}
    convert_encoder(full, dtype)
    assert dtypes_of(full) == dtypes_of(opened) and full.config.dtype == dtype
    # Of T5, transformers keeps some in full precision in float16.
    mixed = model_type == "t5" and dtype == torch.float16
    assert set(dtypes_of(full).values()) == ({dtype, torch.float32} if mixed else {dtype})
    for one, other in zip(full.parameters(), opened.parameters(), strict=True):
        assert torch.equal(one, other)


def without(model_type: str, folder: Path, *endings: str, **changes) -> str:
    """A checkpoint that lacks the weights with these endings."""
    random_encoder(tiny_config(model_type, **changes)).save_pretrained(folder)
    file = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(endings)}
    save_file(state, file, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "changes", "lacks", "missing"),
    [
        ("bert", {}, ("pooler.dense.weight",), []),
        ("bert", {}, ("output.dense.bias", "pooler.dense.bias"), ["attention.output.dense.bias", "output.dense.bias"]),
        ("bert", {}, ("embeddings.LayerNorm.bias",), ["embeddings.LayerNorm.bias"]),
        ("beit", {"use_mean_pooling": True}, ("pooler.layernorm.weight",), ["pooler.layernorm.weight"]),
        ("whisper", {}, ("decoder.embed_tokens.weight", "fc1.bias"), ["fc1.bias"]),
    ],
)
def test_weights_that_tokens_need_must_be_there(model_type, changes, lacks, missing, tmp_path):
    config = tiny_config(model_type, **changes)
    encoder, found = open_encoder(without(model_type, tmp_path, *lacks, **changes), config)
    assert found == sorted(found)
    assert {ending for name in found for ending in missing if name.endswith(ending)} == set(missing)
    assert all(name.endswith(tuple(missing)) for name in found)
    assert not any(name.startswith("decoder.") for name, _ in encoder.named_parameters())


def test_an_encoder_without_needed_weights_is_refused(tmp_path):
    path = without("bert", tmp_path / "encoder", "query.weight")
    random_encoder(tiny_config("bert")).save_pretrained(tmp_path / "whole")
    config = tiny_model(str(tmp_path / "whole")).config
    config.change_part("encoder", name_or_path=path, checksum=None)
    names = ", ".join(f"encoder.layer.{number}.attention.self.query.weight" for number in range(LAYERS))
    with pytest.raises(ValueError, match=f"encoder .* lacks weights that its config requires: {names}"):
        load_encoder(config)


def numbers_of(encoder: nn.Module) -> list[list[float]]:
    return [sorted(parameter.flatten().tolist()) for parameter in encoder.parameters()]


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    encoder = random_encoder(tiny_config("bert"))
    before, numbers = copy.deepcopy(encoder.state_dict()), numbers_of(encoder)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert replace_weights(encoder, "shuffled") is encoder
    assert torch.equal(torch.get_rng_state(), state)
    assert numbers_of(encoder) == numbers
    moved = [name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == [name for name, _ in encoder.named_parameters()]
    again = random_encoder(tiny_config("bert"))
    torch.manual_seed(5)
    replace_weights(again, "shuffled")
    for one, other in zip(encoder.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_random_weights_are_drawn_apart_from_other_numbers():
    encoder = random_encoder(tiny_config("bert")).to(torch.bfloat16)
    before = copy.deepcopy(encoder.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fresh = replace_weights(encoder, "random")
    assert torch.equal(torch.get_rng_state(), state)
    assert fresh is not encoder and not fresh.training and fresh.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    torch.manual_seed(1005)
    expected = build_encoder(tiny_config("bert")).to(torch.bfloat16)
    for one, other in zip(fresh.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
