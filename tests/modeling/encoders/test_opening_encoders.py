"""Encoders that are opened, converted, frozen and replaced, without what encoding tokens does not need."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_any3d.modeling.encoders import build_encoder, encoder_settings, freeze, load_encoder
from hf_any3d.modeling.encoders.loading import (
    FROZEN,
    convert_encoder,
    encoder_dtype,
    open_encoder,
    replace_weights,
)
from hf_any3d.modeling.pretrained_parts.mixin import is_unchanged
from tests.tiny_encoders import LAYERS, random_encoder, saved_encoder, tiny_config, tiny_model


def test_settings_describe_an_encoder():
    source = saved_encoder("bert")
    settings = encoder_settings(source, None, None)
    config = settings.pop("encoder_config")
    assert config.model_type == "bert" and config.num_hidden_layers == LAYERS
    assert settings["parts"]["encoder"]["name_or_path"] == source
    assert list(settings) == ["parts", "encoder_tower"] and list(settings["parts"]) == ["encoder"]
    assert settings["encoder_tower"] is None


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


@pytest.mark.parametrize("number", [0, LAYERS + 1])
def test_layers_that_an_encoder_lacks_are_refused(number):
    source = saved_encoder("bert")
    with pytest.raises(ValueError) as error:
        encoder_settings(source, None, None, number)
    assert str(error.value) == f"num_layers={number}; expected 1 to {LAYERS}, the number of {source}"


def test_the_dtype_of_a_config_is_that_of_the_encoder():
    free, half = SimpleNamespace(), SimpleNamespace(encoder_dtype="bfloat16")
    assert encoder_dtype(free) is None and encoder_dtype(SimpleNamespace(encoder_dtype=None)) is None
    assert encoder_dtype(free, torch.float16) == torch.float16
    assert encoder_dtype(half) == encoder_dtype(half, torch.bfloat16) == torch.bfloat16
    message = (
        "dtype=torch.float32: the model's config has encoder_dtype='bfloat16'; expected the same, or encoder_dtype=… "
        "to change it"
    )
    with pytest.raises(ValueError) as error:
        encoder_dtype(half, torch.float32)
    assert str(error.value) == message


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


def test_quantized_encoders_are_not_converted():
    encoder = random_encoder(tiny_config("bert"))
    vars(encoder)["hf_quantizer"] = object()
    convert_encoder(encoder, torch.bfloat16)
    assert set(dtypes_of(encoder).values()) == {torch.float32}


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


def test_a_stored_encoder_is_not_opened_elsewhere():
    config = tiny_model().config
    config.change_part("encoder", stored=True)
    message = "the config names no encoder: it is stored with the model; load the model with from_pretrained(…)"
    with pytest.raises(ValueError) as error:
        load_encoder(config)
    assert str(error.value) == message


def test_a_loaded_encoder_is_frozen_and_in_the_dtype_of_its_config():
    model = tiny_model(encoder_dtype="bfloat16")
    encoder = load_encoder(model.config)
    assert set(dtypes_of(encoder).values()) == {torch.bfloat16} and not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(FROZEN in vars(module) for module in encoder.modules())
    assert is_unchanged(encoder)
    assert encoder.config._attn_implementation == model.config.encoder_config._attn_implementation


def test_a_built_encoder_has_no_parts_that_tokens_do_not_need():
    config = tiny_config("whisper")
    assert not hasattr(build_encoder(config), "decoder") and hasattr(random_encoder(config), "encoder")
    assert type(build_encoder(tiny_config("siglip_text_model"))).__name__ == "SiglipTextModel"


def test_frozen_modules_are_marked_and_returned():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert freeze(layers) is layers and not layers.training and not layers[1].training
    assert all(getattr(module, FROZEN) is True for module in layers.modules())
    assert not any(parameter.requires_grad for parameter in layers.parameters())


def numbers_of(encoder: nn.Module) -> list[list[float]]:
    return [sorted(parameter.flatten().tolist()) for parameter in encoder.parameters()]


def test_pretrained_weights_are_not_replaced():
    encoder = random_encoder(tiny_config("bert"))
    before = copy.deepcopy(encoder.state_dict())
    assert replace_weights(encoder, "pretrained") is encoder
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


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


@pytest.mark.parametrize("place", ["", "some/model"])
def test_settings_of_an_encoder_that_cannot_be_used_are_those_of_the_model(place):
    config = tiny_model().config
    config.name_or_path = place
    vars(config.encoder_config)["intermediate_size"] = "wide"
    with pytest.raises(ValueError) as error:
        load_encoder(config)
    before = f"{place}: " if place else ""
    assert str(error.value).startswith(f"{before}{saved_encoder('bert')}: cannot be used (TypeError: ")
